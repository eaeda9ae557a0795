//! **sd-worker** owns one image model on one device and serves it over HTTP.
//!
//! # The journey of a request
//! ```text
//! http body -> DTO -> domain request (always valid) -> jobs actor (admit, queue, position)
//!    -> Generate message -> model actor (own OS thread) -> Pipeline::generate(request, watch)
//!         text encoders -> noise -> denoise loop (scheduler x denoiser) -> VAE decode -> image encode
//!    -> Progress | Preview | Done | Failed | Cancelled -> jobs actor -> subscribers -> SSE
//! ```
//! One way in, one way back. The only thing that travels forward during a run is a cancellation flag.
//!
//! # Code map
//! - [`cli`], [`settings`], [`telemetry`], [`commands`]: how the process starts; [`app`] wires it together.
//! - [`actors`]: who does what on which thread; [`http`]: bodies to requests, events to answers.
//! - [`domain`]: what a request, an event and a model description are. No actix, no candle.
//! - [`pipeline`]: run time: text, noise, denoise loop, guidance, previews, image files.
//! - [`schedulers`]: the samplers, pure arithmetic.
//! - [`models`]: UNet, VAE, CLIP, T5, FLUX: plain forward passes over [`ops`].
//! - [`ops`]: the few operations that models are made of, per device.
//! - [`weights`]: where tensors come from: hub, folder, single file, GGUF; key maps; LoRA.
//!
//! # Invariants
//! - The pipeline lives in one thread, is built there and never leaves it; nothing is shared by lock.
//! - `pipeline`, `models`, `schedulers`, `ops` and `weights` know nothing of actix, tokio or HTTP; `http` knows nothing
//!   of candle; `domain` knows neither.
//! - Only code that the compiler can check: the rest lives in `crates/kernels`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

/// Tensors come and go with every operation: the system's allocator would give their pages back and fault them in again.
#[global_allocator]
static ALLOCATOR: sd_kernels::Reusing<mimalloc::MiMalloc> = sd_kernels::Reusing(mimalloc::MiMalloc);

pub mod actors;
pub mod app;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod domain;
pub mod http;
pub mod models;
pub mod ops;
pub mod pipeline;
pub mod schedulers;
pub mod settings;
pub mod telemetry;
pub mod weights;
