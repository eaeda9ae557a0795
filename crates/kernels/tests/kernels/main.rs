//! Every kernel against a plain f64 reference, at every instruction level this machine has, over odd shapes and tails.
#![allow(clippy::unwrap_used)]

mod attention;
mod passes;
mod products;
mod quantised;
mod support;
