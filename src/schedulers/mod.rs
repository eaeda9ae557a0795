//! Samplers: how noise becomes a latent, one model call at a time.
//!
//! Pure arithmetic on `f32` slices, no I/O and no tensors. Every sampler follows its diffusers 0.42 class operation by
//! operation (same order, `f32` where torch computes in `f32`, `f64` where numpy does), so that the trajectories are
//! the same to rounding; `tests/golden/schedulers.rs` holds the proof. Where we leave diffusers on purpose the file of
//! the sampler says so.
//!
//! | sampler | diffusers class | noise drawn per step |
//! |---|---|---|
//! | `ddim` | `DDIMScheduler` | only with `eta` > 0 |
//! | `ddpm` | `DDPMScheduler` | one, not at timestep 0 |
//! | `pndm` | `PNDMScheduler` | none |
//! | `lms` | `LMSDiscreteScheduler` | none |
//! | `euler` | `EulerDiscreteScheduler`, `FlowMatchEulerDiscreteScheduler` | none |
//! | `euler_ancestral` | `EulerAncestralDiscreteScheduler` | one |
//! | `heun` | `HeunDiscreteScheduler`, `FlowMatchHeunDiscreteScheduler` | none |
//! | `dpm_2`, `dpm_2_ancestral` | `KDPM2DiscreteScheduler`, `KDPM2AncestralDiscreteScheduler` | none, one |
//! | `dpmpp_2m`, `dpmpp_2m_sde` | `DPMSolverMultistepScheduler` (`dpmsolver++`, `sde-dpmsolver++`) | none, one |
//! | `dpmpp_sde` | `DPMSolverSDEScheduler` with a Brownian path from the image's own generator | two, none at the last |
//! | `unipc` | `UniPCMultistepScheduler` | none |
//! | `lcm` | `LCMScheduler` | one, not at the last |
//!
//! A *model call* is one evaluation of the UNet or transformer; a *step* is what the user asked for. `heun`, `dpm_2` and
//! `dpmpp_sde` call the model twice a step (once at the last), `pndm` once more in all: [`Scheduler::steps_done`] maps
//! the one to the other.

mod alphas;
mod build;
mod config;
mod ddim;
mod ddpm;
mod dpm_2;
mod dpm_multistep;
mod dpm_sde;
mod error;
mod euler;
mod flow;
mod flow_sigmas;
mod heun;
mod lcm;
mod lms;
mod noise_levels;
mod plan;
mod pndm;
mod prediction;
mod spacing;
mod unipc;

pub use build::{Options, build, decimal};
pub use config::{AlgorithmType, BetaSchedule, FinalSigmas, SchedulerConfig, SolverType, Spacing, VarianceType};
pub use error::SchedulerError;
pub use prediction::Prediction;

/// Where a stochastic sampler gets its noise from.
pub trait NoiseSource {
    /// Fills `out` with independent standard normal values, in the layout of the latents.
    fn fill(&mut self, out: &mut [f32]);
}

/// One run of one sampler. Built by [`build`] for a number of steps; holds the state between steps, so a new run needs
/// a new one. `call` counts the model calls of this run from 0; calls come in order.
pub trait Scheduler: Send {
    /// The timestep to give to the model at each call, first to last. Empty when `strength` leaves nothing to do.
    fn timesteps(&self) -> &[f32];

    /// The steps of this run, as the user counts them.
    fn steps(&self) -> usize;

    /// The steps done once model call `call` has been applied.
    fn steps_done(&self, call: usize) -> usize;

    /// Standard deviation of the start noise when nothing is known of the picture (txt2img).
    fn init_noise_sigma(&self) -> f32;

    /// Scales a copy of the latents to what the model wants to see at `call`.
    fn scale_model_input(&self, call: usize, latents: &mut [f32]);

    /// Moves `latents` to the next noise level, given what the model said of them at `call`.
    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], noise: &mut dyn NoiseSource);

    /// `original` with noise of the level of `call`: the start of img2img, and what inpainting puts outside the mask.
    fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32>;

    /// The clean latents as predicted at the last step: what a preview shows. Empty before the first step.
    fn denoised(&self) -> &[f32];
}
