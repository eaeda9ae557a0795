//! Parity with the reference implementations: each module compares with numbers made by the recipe beside its fixtures.
#![allow(clippy::unwrap_used)]

mod flux;
mod flux_blocks;
mod noise;
mod pictures;
mod t5;
mod schedulers;
mod tokenizer;
