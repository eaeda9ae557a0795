//! Samplers and noise schedules by name: what a request may ask for, and the names other tools use for the same things.
//!
//! Names are matched without regard to case, spaces, `_` and `-`, and `++` counts as `pp`, so `dpmpp_2m`, `DPM++ 2M` and
//! `k_dpmpp_2m` are one sampler. A sampler name may carry its schedule as its last word (`DPM++ 2M Karras`): see
//! [`SamplerChoice`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An integration method for the denoising equation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sampler {
    Ddim,
    Ddpm,
    Pndm,
    Lms,
    Euler,
    EulerAncestral,
    Heun,
    Dpm2,
    Dpm2Ancestral,
    Dpmpp2m,
    Dpmpp2mSde,
    DpmppSde,
    Unipc,
    Lcm,
}

/// How the noise levels of a run are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Schedule {
    /// What the model's own scheduler configuration says; with FLUX the linear sigmas with the model's shift.
    Default,
    Karras,
    Exponential,
    /// Trailing timesteps: the first one is the last of the training schedule.
    SgmUniform,
    Linspace,
    /// Leading timesteps, plus the `steps_offset` of the model's configuration.
    DdimUniform,
}

/// A name that is no sampler or schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} {name:?}; allowed: {allowed}")]
pub struct UnknownName {
    /// `sampler` or `schedule`: also the request's field.
    pub kind: &'static str,
    pub name: String,
    /// The allowed names, joined by commas.
    pub allowed: String,
}

/// The schedule does not go with the sampler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schedule {schedule} does not go with sampler {sampler}; allowed with it: {}", join(.allowed))]
pub struct UnsupportedSchedule {
    pub sampler: Sampler,
    pub schedule: Schedule,
    pub allowed: &'static [Schedule],
}

impl Sampler {
    /// Every sampler of the diffusion (Stable Diffusion) models, in the order of the capabilities list.
    pub const ALL: &[Self] = &[
        Self::Ddim,
        Self::Ddpm,
        Self::Pndm,
        Self::Lms,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Dpm2,
        Self::Dpm2Ancestral,
        Self::Dpmpp2m,
        Self::Dpmpp2mSde,
        Self::DpmppSde,
        Self::Unipc,
        Self::Lcm,
    ];

    /// The samplers of flow-matching models (FLUX).
    pub const FLOW: &[Self] = &[Self::Euler, Self::Heun, Self::Dpmpp2m];

    /// The name used in requests and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Pndm => "pndm",
            Self::Lms => "lms",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_ancestral",
            Self::Heun => "heun",
            Self::Dpm2 => "dpm_2",
            Self::Dpm2Ancestral => "dpm_2_ancestral",
            Self::Dpmpp2m => "dpmpp_2m",
            Self::Dpmpp2mSde => "dpmpp_2m_sde",
            Self::DpmppSde => "dpmpp_sde",
            Self::Unipc => "unipc",
            Self::Lcm => "lcm",
        }
    }

    /// The label that A1111 writes into `parameters` and lists under `/sdapi/v1/samplers`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ddim => "DDIM",
            Self::Ddpm => "DDPM",
            Self::Pndm => "PLMS",
            Self::Lms => "LMS",
            Self::Euler => "Euler",
            Self::EulerAncestral => "Euler a",
            Self::Heun => "Heun",
            Self::Dpm2 => "DPM2",
            Self::Dpm2Ancestral => "DPM2 a",
            Self::Dpmpp2m => "DPM++ 2M",
            Self::Dpmpp2mSde => "DPM++ 2M SDE",
            Self::DpmppSde => "DPM++ SDE",
            Self::Unipc => "UniPC",
            Self::Lcm => "LCM",
        }
    }

    /// Other names of the sampler, as [`fold`] leaves them: A1111's, ComfyUI's, InvokeAI's and diffusers' class names.
    #[must_use]
    pub fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Ddim => &["kddim", "ddimscheduler"],
            Self::Ddpm => &["kddpm", "ddpmscheduler"],
            Self::Pndm => &["plms", "pndmscheduler"],
            Self::Lms => &["klms", "lmsdiscrete", "lmsdiscretescheduler"],
            Self::Euler => &[
                "keuler",
                "eulerdiscrete",
                "eulerdiscretescheduler",
                "flowmatcheuler",
                "flowmatcheulerdiscrete",
                "flowmatcheulerdiscretescheduler",
            ],
            Self::EulerAncestral => &[
                "eulera",
                "keulera",
                "keulerancestral",
                "eulerancestraldiscrete",
                "eulerancestraldiscretescheduler",
            ],
            Self::Heun => &[
                "kheun",
                "heundiscrete",
                "heundiscretescheduler",
                "flowmatchheun",
                "flowmatchheundiscretescheduler",
            ],
            Self::Dpm2 => &["kdpm2", "kdpm2discrete", "kdpm2discretescheduler"],
            Self::Dpm2Ancestral => &[
                "dpm2a",
                "kdpm2a",
                "kdpm2ancestral",
                "kdpm2ancestraldiscrete",
                "kdpm2ancestraldiscretescheduler",
            ],
            Self::Dpmpp2m => &[
                "kdpmpp2m",
                "dpmsolverpp2m",
                "dpmsolvermultistep",
                "dpmsolvermultistepscheduler",
            ],
            Self::Dpmpp2mSde => &["kdpmpp2msde", "dpmpp2msdegpu"],
            Self::DpmppSde => &["kdpmppsde", "dpmppsdegpu", "dpmsolversde", "dpmsolversdescheduler"],
            Self::Unipc => &["kunipc", "unipcmultistep", "unipcmultistepscheduler"],
            Self::Lcm => &["klcm", "lcmscheduler"],
        }
    }

    /// The schedules that go with this sampler on diffusion models.
    ///
    /// PLMS needs equal distances between timesteps, so `pndm` takes neither Karras nor exponential (`lms` is the same
    /// idea for any distances).
    #[must_use]
    pub fn schedules(self) -> &'static [Schedule] {
        match self {
            Self::Pndm => &[
                Schedule::Default,
                Schedule::SgmUniform,
                Schedule::Linspace,
                Schedule::DdimUniform,
            ],
            _ => Schedule::ALL,
        }
    }

    /// Whether the sampler exists for flow-matching models.
    #[must_use]
    pub fn supports_flow(self) -> bool {
        Self::FLOW.contains(&self)
    }

    /// Refuses a schedule that the sampler cannot follow on a diffusion model.
    pub fn check_schedule(self, schedule: Schedule) -> Result<(), UnsupportedSchedule> {
        if self.schedules().contains(&schedule) {
            return Ok(());
        }
        Err(UnsupportedSchedule {
            sampler: self,
            schedule,
            allowed: self.schedules(),
        })
    }
}

impl Schedule {
    /// Every schedule, in the order of the capabilities list.
    pub const ALL: &[Self] = &[
        Self::Default,
        Self::Karras,
        Self::Exponential,
        Self::SgmUniform,
        Self::Linspace,
        Self::DdimUniform,
    ];

    /// The schedules of flow-matching models (FLUX).
    pub const FLOW: &[Self] = &[
        Self::Default,
        Self::Karras,
        Self::Exponential,
        Self::SgmUniform,
        Self::Linspace,
    ];

    /// The name used in requests and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::SgmUniform => "sgm_uniform",
            Self::Linspace => "linspace",
            Self::DdimUniform => "ddim_uniform",
        }
    }

    /// The label that A1111 writes into `parameters` and lists under `/sdapi/v1/schedulers`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Default => "Automatic",
            Self::Karras => "Karras",
            Self::Exponential => "Exponential",
            Self::SgmUniform => "SGM Uniform",
            Self::Linspace => "Uniform",
            Self::DdimUniform => "DDIM",
        }
    }

    /// Other names of the schedule, as [`fold`] leaves them.
    #[must_use]
    pub fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Default => &["automatic", "auto"],
            Self::Karras => &[],
            Self::Exponential => &[],
            Self::SgmUniform => &["trailing", "simple"],
            Self::Linspace => &["uniform", "normal"],
            Self::DdimUniform => &["leading", "ddim"],
        }
    }
}

/// A sampler and, where the request or the sampler's name says so, a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerChoice {
    pub sampler: Sampler,
    pub schedule: Option<Schedule>,
}

impl FromStr for SamplerChoice {
    type Err = UnknownName;

    /// Reads a sampler name that may end in a schedule's: `DPM++ 2M SDE Karras`.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        if let Ok(sampler) = name.parse() {
            return Ok(Self {
                sampler,
                schedule: None,
            });
        }
        let folded = fold(name);
        for &schedule in Schedule::ALL {
            for suffix in
                std::iter::once(fold(schedule.name())).chain(schedule.aliases().iter().map(ToString::to_string))
            {
                if let Some(sampler) = folded.strip_suffix(&suffix).and_then(|rest| rest.parse().ok()) {
                    return Ok(Self {
                        sampler,
                        schedule: Some(schedule),
                    });
                }
            }
        }
        Err(unknown("sampler", name, Sampler::ALL))
    }
}

impl FromStr for Sampler {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let folded = fold(name);
        Self::ALL
            .iter()
            .copied()
            .find(|s| fold(s.name()) == folded || s.aliases().contains(&folded.as_str()))
            .ok_or_else(|| unknown("sampler", name, Self::ALL))
    }
}

impl FromStr for Schedule {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let folded = fold(name);
        Self::ALL
            .iter()
            .copied()
            .find(|s| fold(s.name()) == folded || s.aliases().contains(&folded.as_str()))
            .ok_or_else(|| unknown("schedule", name, Self::ALL))
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Sampler {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Sampler {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Lower case without spaces, `_` and `-`; `++` becomes `pp`.
fn fold(name: &str) -> String {
    name.to_lowercase().replace("++", "pp").replace([' ', '_', '-'], "")
}

fn unknown<T: fmt::Display>(kind: &'static str, name: &str, all: &[T]) -> UnknownName {
    UnknownName {
        kind,
        name: name.to_owned(),
        allowed: join(all),
    }
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_label_and_alias_reads_back() {
        for &sampler in Sampler::ALL {
            assert_eq!(sampler.name().parse(), Ok(sampler));
            assert_eq!(sampler.label().parse(), Ok(sampler), "{}", sampler.label());
            for alias in sampler.aliases() {
                assert_eq!(alias.parse(), Ok(sampler), "{alias}");
            }
        }
        for &schedule in Schedule::ALL {
            assert_eq!(schedule.name().parse(), Ok(schedule));
            assert_eq!(schedule.label().parse(), Ok(schedule));
        }
    }

    #[test]
    fn no_alias_belongs_to_two() {
        let mut seen = std::collections::HashSet::new();
        for &sampler in Sampler::ALL {
            assert!(seen.insert(fold(sampler.name())), "{sampler}");
            for alias in sampler.aliases() {
                assert!(seen.insert((*alias).to_owned()), "{alias}");
            }
        }
    }

    #[test]
    fn a_sampler_name_may_end_in_a_schedule() {
        let cases = [
            ("DPM++ 2M Karras", Sampler::Dpmpp2m, Some(Schedule::Karras)),
            (
                "dpm++ 2m sde exponential",
                Sampler::Dpmpp2mSde,
                Some(Schedule::Exponential),
            ),
            ("k_dpmpp_2m_sgm_uniform", Sampler::Dpmpp2m, Some(Schedule::SgmUniform)),
            ("Euler a", Sampler::EulerAncestral, None),
            ("LMS Karras", Sampler::Lms, Some(Schedule::Karras)),
            ("DPM2 a Karras", Sampler::Dpm2Ancestral, Some(Schedule::Karras)),
            ("DDIM", Sampler::Ddim, None),
            ("k_euler", Sampler::Euler, None),
        ];
        for (name, sampler, schedule) in cases {
            assert_eq!(name.parse(), Ok(SamplerChoice { sampler, schedule }), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_allowed_ones() {
        let error = "dpm9".parse::<SamplerChoice>().unwrap_err();
        assert_eq!(error.kind, "sampler");
        assert!(error.to_string().contains("dpmpp_2m_sde"), "{error}");
        let error = "curved".parse::<Schedule>().unwrap_err();
        assert!(
            error.to_string().ends_with("sgm_uniform, linspace, ddim_uniform"),
            "{error}"
        );
    }

    #[test]
    fn pndm_refuses_uneven_schedules_by_name() {
        let error = Sampler::Pndm.check_schedule(Schedule::Karras).unwrap_err();
        assert_eq!(
            error.to_string(),
            "schedule karras does not go with sampler pndm; allowed with it: default, sgm_uniform, linspace, ddim_uniform"
        );
        assert_eq!(Sampler::Euler.check_schedule(Schedule::Karras), Ok(()));
    }

    #[test]
    fn serde_uses_the_names() {
        assert_eq!(serde_json::to_string(&Sampler::Dpm2).unwrap(), "\"dpm_2\"");
        let read: Schedule = serde_json::from_str("\"Karras\"").unwrap();
        assert_eq!(read, Schedule::Karras);
    }
}
