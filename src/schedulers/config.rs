//! What a diffusers `scheduler_config.json` says.

use serde::Deserialize;

use super::{Prediction, SchedulerError};
use crate::domain::sampling::{Sampler, Schedule};

/// Shape of the training noise over the timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum BetaSchedule {
    #[serde(rename = "linear")]
    Linear,
    #[serde(rename = "scaled_linear")]
    ScaledLinear,
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// Which of the training timesteps a run visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    Linspace,
    Leading,
    Trailing,
}

/// The noise level after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    Zero,
    SigmaMin,
}

/// The family of DPM-Solver formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum AlgorithmType {
    #[serde(rename = "dpmsolver++", alias = "dpmsolver", alias = "deis")]
    DpmsolverPp,
    #[serde(rename = "sde-dpmsolver++", alias = "sde-dpmsolver")]
    SdeDpmsolverPp,
}

/// Variant of the multistep solvers: `midpoint` and `heun` of DPM-Solver, `bh1` and `bh2` of UniPC. A solver that finds
/// the other one's variant uses its own default, as diffusers does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SolverType {
    Midpoint,
    Heun,
    Bh1,
    Bh2,
    Logrho,
}

/// Variance of the noise that DDPM adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    FixedSmall,
    FixedLarge,
    FixedSmallLog,
    FixedLargeLog,
    Learned,
    LearnedRange,
}

/// The model's scheduler configuration. What a file leaves out is `None` where the default differs between diffusers'
/// classes: it is settled when a sampler is chosen, as `X.from_config(model.scheduler.config)` does.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub num_train_timesteps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: BetaSchedule,
    pub trained_betas: Option<Vec<f32>>,
    pub prediction_type: Prediction,
    pub timestep_spacing: Option<Spacing>,
    pub steps_offset: usize,
    pub set_alpha_to_one: Option<bool>,
    pub skip_prk_steps: bool,
    pub clip_sample: Option<bool>,
    pub clip_sample_range: f32,
    pub thresholding: bool,
    pub rescale_betas_zero_snr: bool,
    pub use_karras_sigmas: Option<bool>,
    pub use_exponential_sigmas: Option<bool>,
    pub use_beta_sigmas: Option<bool>,
    pub use_lu_lambdas: Option<bool>,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    pub interpolation_type: Option<String>,
    pub timestep_type: Option<String>,
    pub final_sigmas_type: Option<FinalSigmas>,
    pub solver_order: usize,
    pub solver_type: Option<SolverType>,
    pub algorithm_type: Option<AlgorithmType>,
    pub lower_order_final: bool,
    pub euler_at_final: bool,
    pub lambda_min_clipped: Option<f64>,
    pub predict_x0: bool,
    pub disable_corrector: Vec<usize>,
    pub variance_type: Option<VarianceType>,
    pub original_inference_steps: usize,
    pub timestep_scaling: f64,
    pub use_dynamic_shifting: bool,
    pub use_flow_sigmas: bool,
    pub flow_shift: Option<f64>,
    pub shift: f64,
    pub base_shift: f64,
    pub max_shift: f64,
    pub base_image_seq_len: usize,
    pub max_image_seq_len: usize,
    pub time_shift_type: Option<String>,
    pub shift_terminal: Option<f64>,
    pub invert_sigmas: bool,
    pub stochastic_sampling: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: Prediction::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            skip_prk_steps: false,
            clip_sample: None,
            clip_sample_range: 1.0,
            thresholding: false,
            rescale_betas_zero_snr: false,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            use_lu_lambdas: None,
            sigma_min: None,
            sigma_max: None,
            interpolation_type: None,
            timestep_type: None,
            final_sigmas_type: None,
            solver_order: 2,
            solver_type: None,
            algorithm_type: None,
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: None,
            predict_x0: true,
            disable_corrector: Vec::new(),
            variance_type: None,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
            use_dynamic_shifting: false,
            use_flow_sigmas: false,
            flow_shift: None,
            shift: 1.0,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: None,
            shift_terminal: None,
            invert_sigmas: false,
            stochastic_sampling: false,
        }
    }
}

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`. diffusers writes `-Infinity` there (`lambda_min_clipped`), which is
    /// not JSON: it is read as absent.
    pub fn from_json(text: &str) -> Result<Self, SchedulerError> {
        let text = text
            .replace("-Infinity", "null")
            .replace("Infinity", "null")
            .replace("NaN", "null");
        let mut tree: serde_json::Value = serde_json::from_str(&text)?;
        if let Some(fields) = tree.as_object_mut() {
            // A null means "the default" wherever diffusers writes one.
            fields.retain(|_, value| !value.is_null());
        }
        let config: Self = serde_json::from_value(tree)?;
        if config.class_name.starts_with("EDM") {
            return Err(SchedulerError::Config {
                field: "_class_name",
                value: config.class_name,
                hint: "EDM models such as Playground v2.5 and CosXL are not",
            });
        }
        Ok(config)
    }

    /// Stable Diffusion 1.x, for checkpoints that come without a configuration.
    #[must_use]
    pub fn stable_diffusion() -> Self {
        Self {
            class_name: "PNDMScheduler".to_owned(),
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            steps_offset: 1,
            set_alpha_to_one: Some(false),
            skip_prk_steps: true,
            clip_sample: Some(false),
            ..Self::default()
        }
    }

    /// FLUX.1 dev: shifted with the picture's size.
    #[must_use]
    pub fn flux_dev() -> Self {
        Self {
            class_name: "FlowMatchEulerDiscreteScheduler".to_owned(),
            shift: 3.0,
            use_dynamic_shifting: true,
            ..Self::default()
        }
    }

    /// FLUX.1 schnell: not shifted.
    #[must_use]
    pub fn flux_schnell() -> Self {
        Self {
            class_name: "FlowMatchEulerDiscreteScheduler".to_owned(),
            ..Self::default()
        }
    }

    /// Whether the model is a flow-matching one.
    #[must_use]
    pub fn is_flow(&self) -> bool {
        self.class_name.starts_with("FlowMatch") || self.use_flow_sigmas || self.prediction_type == Prediction::Flow
    }

    /// Whether [`SchedulerConfig::default_sampler`] is the one that the model comes with.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.class_name.is_empty()
            || self.class_name == "DPMSolverMultistepScheduler"
            || self.class_name.parse::<Sampler>().is_ok()
    }

    /// The sampler the model comes with; the nearest, or `euler`, where the class is not one of ours.
    #[must_use]
    pub fn default_sampler(&self) -> Sampler {
        match self.class_name.as_str() {
            "DPMSolverMultistepScheduler" | "DEISMultistepScheduler" | "DPMSolverSinglestepScheduler" => {
                match self.algorithm_type {
                    Some(AlgorithmType::SdeDpmsolverPp) => Sampler::Dpmpp2mSde,
                    Some(AlgorithmType::DpmsolverPp) | None => Sampler::Dpmpp2m,
                }
            }
            class => class.parse().unwrap_or(Sampler::Euler),
        }
    }

    /// The schedule that [`Schedule::Default`] stands for with a sampler that knows all of them.
    #[must_use]
    pub fn default_schedule(&self) -> Schedule {
        match self.timestep_spacing {
            _ if self.use_karras_sigmas == Some(true) => Schedule::Karras,
            _ if self.use_exponential_sigmas == Some(true) => Schedule::Exponential,
            Some(Spacing::Trailing) => Schedule::SgmUniform,
            Some(Spacing::Leading) => Schedule::DdimUniform,
            Some(Spacing::Linspace) => Schedule::Linspace,
            None => Schedule::Default,
        }
    }

    /// Refuses what no sampler here can honour.
    pub(super) fn check(&self) -> Result<(), SchedulerError> {
        let refuse = |field, value: &str, hint| {
            Err(SchedulerError::Config {
                field,
                value: value.to_owned(),
                hint,
            })
        };
        let set = |flag: Option<bool>| flag == Some(true);
        if self.num_train_timesteps < 2 {
            return refuse(
                "num_train_timesteps",
                &self.num_train_timesteps.to_string(),
                "give 2 or more",
            );
        }
        if self
            .trained_betas
            .as_ref()
            .is_some_and(|b| b.len() != self.num_train_timesteps)
        {
            return refuse(
                "trained_betas",
                "a list of another length",
                "give num_train_timesteps values",
            );
        }
        if self.thresholding {
            return refuse("thresholding", "true", "it is for pixel-space models; use false");
        }
        if set(self.use_beta_sigmas) {
            return refuse("use_beta_sigmas", "true", "use karras or exponential sigmas");
        }
        if set(self.use_lu_lambdas) {
            return refuse("use_lu_lambdas", "true", "use karras or exponential sigmas");
        }
        if set(self.use_karras_sigmas) && set(self.use_exponential_sigmas) {
            return refuse(
                "use_karras_sigmas",
                "true beside use_exponential_sigmas",
                "set one of them",
            );
        }
        if let Some(kind) = self.interpolation_type.as_deref().filter(|k| *k != "linear") {
            return refuse("interpolation_type", kind, "use linear");
        }
        if let Some(kind) = self.timestep_type.as_deref().filter(|k| *k != "discrete") {
            return refuse("timestep_type", kind, "use discrete");
        }
        if let Some(kind) = self.time_shift_type.as_deref().filter(|k| *k != "exponential") {
            return refuse("time_shift_type", kind, "use exponential");
        }
        if !self.predict_x0 {
            return refuse("predict_x0", "false", "use true");
        }
        if self.invert_sigmas {
            return refuse("invert_sigmas", "true", "use false");
        }
        if self.stochastic_sampling {
            return refuse("stochastic_sampling", "true", "use false");
        }
        if !(1..=3).contains(&self.solver_order) {
            return refuse("solver_order", &self.solver_order.to_string(), "use 1, 2 or 3");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_diffusers_writes() {
        let config = SchedulerConfig::from_json(
            r#"{"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1", "algorithm_type": "sde-dpmsolver++",
               "lambda_min_clipped": -Infinity, "trained_betas": null, "variance_type": null, "beta_schedule": "scaled_linear",
               "timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": true}"#,
        )
        .unwrap();
        assert_eq!(config.default_sampler(), Sampler::Dpmpp2mSde);
        assert_eq!(config.default_schedule(), Schedule::SgmUniform);
        assert_eq!(config.prediction_type, Prediction::V);
        assert_eq!(config.lambda_min_clipped, None);
        assert!(config.rescale_betas_zero_snr);
    }

    #[test]
    fn class_names_name_the_default_sampler() {
        for (class, sampler) in [
            ("PNDMScheduler", Sampler::Pndm),
            ("DDIMScheduler", Sampler::Ddim),
            ("EulerAncestralDiscreteScheduler", Sampler::EulerAncestral),
            ("KDPM2DiscreteScheduler", Sampler::Dpm2),
            ("LCMScheduler", Sampler::Lcm),
            ("FlowMatchEulerDiscreteScheduler", Sampler::Euler),
            ("UniPCMultistepScheduler", Sampler::Unipc),
            ("SomethingNewScheduler", Sampler::Euler),
        ] {
            let config = SchedulerConfig {
                class_name: class.to_owned(),
                ..SchedulerConfig::default()
            };
            assert_eq!(config.default_sampler(), sampler, "{class}");
            assert_eq!(config.is_known(), class != "SomethingNewScheduler", "{class}");
        }
        let near = SchedulerConfig {
            class_name: "DEISMultistepScheduler".to_owned(),
            ..SchedulerConfig::default()
        };
        assert!(near.default_sampler() == Sampler::Dpmpp2m && !near.is_known());
    }

    #[test]
    fn edm_schedulers_are_refused_when_they_are_read() {
        let text = r#"{"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5}"#;
        let error = SchedulerConfig::from_json(text).unwrap_err().to_string();
        assert!(
            error.contains("EDMDPMSolver") && error.contains("Playground"),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let config = SchedulerConfig {
            thresholding: true,
            ..SchedulerConfig::default()
        };
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("thresholding = true"), "{error}");
    }
}
