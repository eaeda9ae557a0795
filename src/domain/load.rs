//! What to load and how to compute with it: the choices of whoever starts a worker.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::request::StepCache;

/// Which model to load, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// Preset name, hub id (`owner/name[@revision]`) or path; `None` for the built-in model.
    pub model: Option<String>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Numbers to compute with.
    pub dtype: DtypeChoice,
    /// VAE folder or file to use instead of the model's own.
    pub vae: Option<PathBuf>,
    /// TAESD folder or file for previews; without it they are a linear map of the latents.
    pub taesd: Option<PathBuf>,
    /// `tokenizer.json` of T5 for files that come without one.
    pub tokenizer_2: Option<PathBuf>,
    /// What becomes of the text encoders after use.
    pub residency: Residency,
    /// Reuse between steps for requests that do not say.
    pub step_cache: StepCache,
    /// Folder of LoRA files.
    pub lora_dir: Option<PathBuf>,
    /// Threads of the CPU work; 0 for one a core.
    pub threads: usize,
}

/// A device as a user names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best device that this build and machine have.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

/// A compute dtype as a user names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// The best for the device.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half floats.
    F16,
}

/// What becomes of the text encoders between uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// They stay loaded.
    #[default]
    Keep,
    /// They leave the device for main memory.
    Offload,
    /// They are dropped before denoising and read again for the next job.
    Sequential,
}

/// A word that names none of the choices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not allowed; allowed: {allowed}")]
pub struct ParseChoiceError {
    /// What was written.
    pub text: String,
    /// What may be written.
    pub allowed: &'static str,
}

impl DeviceChoice {
    const ALLOWED: &str = "auto, cpu, cuda, cuda:N, metal";
}

impl FromStr for DeviceChoice {
    type Err = ParseChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let folded = text.trim().to_ascii_lowercase();
        let wrong = || ParseChoiceError {
            text: text.to_owned(),
            allowed: Self::ALLOWED,
        };
        match folded.as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            other => match other.strip_prefix("cuda:") {
                Some(number) => number.parse().map(Self::Cuda).map_err(|_| wrong()),
                None => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DtypeChoice {
    type Err = ParseChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(ParseChoiceError {
                text: text.to_owned(),
                allowed: "auto, f32, bf16, f16",
            }),
        }
    }
}

impl FromStr for Residency {
    type Err = ParseChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().as_str() {
            "keep" => Ok(Self::Keep),
            "offload" => Ok(Self::Offload),
            "sequential" => Ok(Self::Sequential),
            _ => Err(ParseChoiceError {
                text: text.to_owned(),
                allowed: "keep, offload, sequential",
            }),
        }
    }
}

impl FromStr for StepCache {
    type Err = ParseChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let folded = text.trim().to_ascii_lowercase();
        match folded.as_str() {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            number => match number.parse::<f32>() {
                Ok(threshold) if threshold > 0.0 && threshold <= 1.0 => Ok(Self::Threshold(threshold)),
                _ => Err(ParseChoiceError {
                    text: text.to_owned(),
                    allowed: "off, auto, or a threshold above 0 and up to 1",
                }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_in_any_case() {
        assert_eq!("CPU".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert_eq!(DeviceChoice::Cuda(3).to_string(), "cuda:3");
        for wrong in ["cuda:", "cuda:x", "gpu", ""] {
            let error = wrong.parse::<DeviceChoice>().unwrap_err();
            assert!(error.to_string().contains("cuda:N"), "{error}");
        }
    }

    #[test]
    fn other_choices_name_what_is_allowed() {
        assert_eq!("BF16".parse(), Ok(DtypeChoice::Bf16));
        assert!("f64".parse::<DtypeChoice>().unwrap_err().to_string().contains("bf16"));
        assert_eq!("offload".parse(), Ok(Residency::Offload));
        assert!("drop".parse::<Residency>().is_err());
    }

    #[test]
    fn step_cache_takes_a_threshold() {
        assert_eq!("0.08".parse(), Ok(StepCache::Threshold(0.08)));
        assert_eq!("AUTO".parse(), Ok(StepCache::Auto));
        for wrong in ["0", "-1", "nan", "inf", "2", "on"] {
            assert!(wrong.parse::<StepCache>().is_err(), "{wrong}");
        }
    }
}
