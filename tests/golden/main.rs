//! Parity with the reference implementations: each module compares with numbers made by the recipe beside its fixtures.
#![allow(clippy::unwrap_used)]

mod clip;
mod flux;
mod flux_blocks;
mod flux_pipeline;
mod guidance;
mod images;
mod jobs;
mod kernels;
mod models;
mod noise;
mod ops;
mod painting;
mod pictures;
mod schedulers;
mod single_files;
mod step_cache;
mod t5;
mod taesd;
mod tokenizer;
mod unet;
mod vae;
