//! Files of weights, model folders, the hub: everything that comes from outside.
#![allow(clippy::unwrap_used)]

mod damaged;
mod folders;
mod gguf;
mod hub;
mod hub_parts;
mod hub_server;
mod lora;
mod single_files;
mod support;
