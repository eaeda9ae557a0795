//! One tree of settings: compiled-in defaults, then a file, then the environment, then flags.
//!
//! [`Settings::load`] merges the four, checks the result and names the setting and its source where something is wrong.

mod keys;
mod layers;

use std::path::PathBuf;

use serde::Deserialize;

use crate::domain::limits::Limits;
use crate::domain::load::LoadOptions;

pub use keys::{KEYS, Key};
pub use layers::{DEFAULTS, Overrides, SettingsError};

/// Everything that can be set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Who this worker is.
    pub worker: Worker,
    /// The HTTP side.
    pub server: Server,
    /// What to serve.
    pub model: Model,
    /// The model's threads.
    pub compute: Compute,
    /// Waiting and finished jobs.
    pub queue: Queue,
    /// What one request may ask for.
    pub limits: LimitSettings,
    /// Whom to report to.
    pub hive: Hive,
    /// Logging.
    pub log: Log,
}

/// `[worker]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// Name of this worker.
    pub id: String,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 for a free one.
    pub port: u16,
    /// URL under which the hive reaches this worker; empty for `http://host:port`.
    pub public_url: String,
    /// Threads that serve HTTP.
    pub threads: usize,
    /// Bearer token that callers must send; empty for none.
    pub api_key: String,
    /// Largest request body, MiB.
    pub max_body_mb: usize,
    /// Seconds between keep-alive comments on a stream.
    pub keep_alive_s: u64,
    /// Seconds that jobs get to finish after SIGTERM.
    pub grace_s: u64,
}

/// `[model]`; see [`LoadOptions`] for the parsed form.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Preset, hub id or path; empty for the built-in model.
    pub name: String,
    /// Device.
    pub device: String,
    /// Compute dtype.
    pub dtype: String,
    /// VAE folder or file; empty for the model's own.
    pub vae: String,
    /// TAESD folder or file for previews; empty for none.
    pub taesd: String,
    /// T5 tokenizer; empty for the model's own.
    pub tokenizer_2: String,
    /// Text encoders after use.
    pub residency: String,
    /// Reuse between steps.
    pub step_cache: String,
    /// LoRA folder; empty for none.
    pub lora_dir: String,
}

/// `[compute]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// Threads of the CPU work; 0 for one a core.
    pub threads: usize,
    /// Niceness of the model's threads.
    pub niceness: u8,
}

/// `[queue]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Jobs that may wait.
    pub capacity: usize,
    /// Finished jobs kept at most.
    pub keep_jobs: usize,
    /// Seconds a finished job is kept.
    pub keep_s: u64,
    /// MiB of finished pictures kept at most.
    pub keep_mb: usize,
}

/// `[limits]`; see [`Limits`] for the parsed form.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSettings {
    /// Largest width and height, pixels.
    pub max_side: u32,
    /// Most pictures of one job.
    pub max_images: u32,
    /// Largest input picture, MiB.
    pub max_image_mb: usize,
    /// Largest input picture, million pixels.
    pub max_image_megapixels: u64,
}

/// `[hive]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hive {
    /// URL of the callback, or of the hive alone; empty for no hive.
    pub callback_url: String,
    /// Bearer token for the hive; empty for none.
    pub token: String,
    /// Seconds between heartbeats.
    pub heartbeat_s: f64,
    /// First wait before a retry, milliseconds.
    pub retry_first_ms: u64,
    /// Longest wait before a retry, milliseconds.
    pub retry_longest_ms: u64,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// Level or filter.
    pub level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl Settings {
    /// The defaults alone, as tests start from.
    ///
    /// # Errors
    /// Never with the compiled-in file; a test of this module reads it.
    pub fn defaults() -> Result<Self, SettingsError> {
        layers::load(&Overrides::default(), |_| None)
    }

    /// Defaults, then the file, then `env`, then flags.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown setting, a value of the wrong type or out of range: each names the setting.
    pub fn load(flags: &Overrides, env: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        layers::load(flags, env)
    }

    /// What to load and how, read from `[model]` and `[compute]`.
    ///
    /// # Errors
    /// A word that names no device, dtype, residency or step cache.
    pub fn load_options(&self) -> Result<LoadOptions, SettingsError> {
        let Model {
            name,
            device,
            dtype,
            vae,
            taesd,
            tokenizer_2,
            residency,
            step_cache,
            lora_dir,
        } = &self.model;
        Ok(LoadOptions {
            model: set(name).map(str::to_owned),
            device: layers::choice("model.device", device)?,
            dtype: layers::choice("model.dtype", dtype)?,
            vae: set(vae).map(PathBuf::from),
            taesd: set(taesd).map(PathBuf::from),
            tokenizer_2: set(tokenizer_2).map(PathBuf::from),
            residency: layers::choice("model.residency", residency)?,
            step_cache: layers::choice("model.step_cache", step_cache)?,
            lora_dir: set(lora_dir).map(PathBuf::from),
            threads: self.compute.threads,
        })
    }

    /// Bounds of a request, in bytes and pixels.
    pub fn request_limits(&self) -> Limits {
        Limits {
            max_side: self.limits.max_side,
            max_images: self.limits.max_images,
            max_image_bytes: self.limits.max_image_mb << 20,
            max_image_pixels: self.limits.max_image_megapixels * 1_000_000,
        }
    }
}

/// A string setting, unless it is empty.
pub fn set(value: &str) -> Option<&str> {
    (!value.is_empty()).then_some(value)
}
