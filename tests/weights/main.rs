//! Files of weights, model folders, the hub: everything that comes from outside.
#![allow(clippy::unwrap_used)]

mod damaged;
mod folders;
mod hub;
mod hub_server;
mod support;
