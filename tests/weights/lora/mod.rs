//! LoRAs: every format changes the weights as its makers' code does, and taking it off gives the same bits back.

mod folder;
mod formats;
mod fused_dora;
mod names;
mod oddities;
mod quantised;
mod refused;
mod support;
mod swaps;
