//! From a user's choice of model to a pipeline that paints.

use candle_core::DType;

use super::device::{self, DeviceError};
use super::flux::FluxParts;
use super::loaded::Loaded;
use super::stable_diffusion::Parts;
use super::{Compute, LoadWatch, PartsError, Pipeline};
use crate::domain::load::{DtypeChoice, LoadOptions};
use crate::domain::model::{Defaults, Family, ModelInfo};
use crate::domain::picture::Size;
use crate::domain::request::OperationKind;
use crate::domain::sampling::{Sampler, Schedule};
use crate::schedulers::{SchedulerConfig, Spacing};
use crate::weights::{LayerTable, ModelFiles, ModelSpec, OpenOptions, Precision, WeightsError, family_defaults};

/// Why a model could not be loaded. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its files.
    #[error(transparent)]
    Files(#[from] WeightsError),
    /// A part of the model.
    #[error(transparent)]
    Parts(#[from] PartsError),
}

/// Loads the model that `options` name: a preset, hub id, folder or file, or the built-in one.
///
/// # Errors
/// The model cannot be had, is damaged or of an unknown kind, or the device is not there.
pub fn load(options: &LoadOptions, watch: &mut dyn LoadWatch) -> Result<Box<dyn Pipeline>, LoadError> {
    let spec = match &options.model {
        Some(name) => name.parse()?,
        None => ModelSpec::built_in(),
    };
    watch.progress("opening the model", 0.0);
    let open = OpenOptions {
        precision: match options.dtype {
            DtypeChoice::F32 => Precision::Full,
            DtypeChoice::Bf16 | DtypeChoice::F16 => Precision::Half,
            DtypeChoice::Auto => precision_of(&spec),
        },
        vae: options.vae.clone(),
        tokenizer_2: options.tokenizer_2.clone(),
    };
    let files = ModelFiles::open(&spec, &open, &mut |progress| {
        let share = progress.done as f32 / progress.total.max(1) as f32;
        watch.progress("downloading", share);
    })?;
    load_files(&spec, &files, options, watch)
}

/// The variant of the files for `--dtype auto`: half where the family computes in half on any device.
fn precision_of(spec: &ModelSpec) -> Precision {
    match spec.family {
        Some(Family::Sdxl | Family::FluxDev | Family::FluxSchnell) => Precision::Half,
        Some(Family::Sd1 | Family::Sd2) | None => Precision::Full,
    }
}

/// As [`load`], from files that are open.
///
/// # Errors
/// As [`load`].
pub fn load_files(
    spec: &ModelSpec,
    files: &ModelFiles,
    options: &LoadOptions,
    watch: &mut dyn LoadWatch,
) -> Result<Box<dyn Pipeline>, LoadError> {
    if options.threads > 0 {
        sd_kernels::set_threads(options.threads);
    }
    let device = device::open(options.device)?;
    let compute = Compute {
        dtype: device::dtype(options.dtype, &device, files.family(), files.is_large_in_half()?),
        device,
        residency: options.residency,
        taesd: options.taesd.clone(),
    };
    if files.family().is_flux() {
        let parts = FluxParts::load(files, compute, watch)?;
        let info = info(spec, files, options, &parts.facts());
        let previewer = parts.previewer()?;
        return Ok(Box::new(Loaded::new(info, parts, previewer, options.lora_dir.clone())));
    }
    let parts = Parts::load(files, compute, watch)?;
    let info = info(spec, files, options, &parts.facts());
    let previewer = parts.previewer()?;
    Ok(Box::new(Loaded::new(info, parts, previewer, options.lora_dir.clone())))
}

/// What a loaded model's parts tell of it.
pub(super) struct Facts<'a> {
    pub compute: &'a Compute,
    /// The denoiser's layers.
    pub layers: &'a LayerTable,
    /// Side in pixels of the pictures that it was trained with, where its files say so.
    pub trained: Option<u32>,
    pub scheduler: &'a SchedulerConfig,
    pub operations: Vec<OperationKind>,
    pub samplers: &'static [Sampler],
    pub schedules: &'static [Schedule],
    /// Steps and guidance of a variant of its family that is used differently.
    pub usual: Option<(u32, f32)>,
}

/// All that a model can be asked for.
pub(super) fn every_operation() -> Vec<OperationKind> {
    vec![
        OperationKind::ImageGeneration,
        OperationKind::ImageTransform,
        OperationKind::ImageInpaint,
    ]
}

fn info(spec: &ModelSpec, files: &ModelFiles, options: &LoadOptions, facts: &Facts<'_>) -> ModelInfo {
    let family = files.family();
    ModelInfo {
        name: spec.name.clone(),
        aliases: spec.aliases.clone(),
        family,
        source: files.source().to_owned(),
        dtype: dtype_name(facts.compute.dtype).to_owned(),
        quantization: quantization(facts.layers),
        device: device::name(&facts.compute.device, options.device),
        operations: facts.operations.clone(),
        samplers: facts.samplers.to_vec(),
        schedules: facts.schedules.to_vec(),
        defaults: defaults(spec, family, facts),
    }
}

/// What a request gets where it is silent: the preset's word, then the files', then the family's.
fn defaults(spec: &ModelSpec, family: Family, facts: &Facts<'_>) -> Defaults {
    let scheduler = facts.scheduler;
    let mut own = spec.defaults;
    if own.sampler.is_none() && !scheduler.is_known() {
        let (class, sampler) = (&scheduler.class_name, scheduler.default_sampler());
        tracing::warn!(%class, %sampler, "the model's scheduler is not built here; another sampler takes its place");
    }
    own.sampler = own.sampler.or(Some(scheduler.default_sampler()));
    own.size = own.size.or(facts.trained.filter(|side| *side >= 64).map(|side| Size {
        width: side,
        height: side,
    }));
    // Few-step models come with the scheduler that they were distilled for.
    let trailing = scheduler.timestep_spacing == Some(Spacing::Trailing);
    let few = match scheduler.default_sampler() {
        Sampler::EulerAncestral if trailing && family == Family::Sdxl => Some((1, 0.0)),
        Sampler::Lcm => facts.usual.or(Some((4, 1.0))),
        _ => facts.usual,
    };
    if let Some((steps, guidance)) = few {
        own.steps = own.steps.or(Some(steps));
        own.guidance_scale = own.guidance_scale.or(Some(guidance));
    }
    own.over(family_defaults(family))
}

fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        _ => "f32",
    }
}

/// The GGUF type that most of a denoiser's layers are stored in.
fn quantization(layers: &LayerTable) -> Option<String> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for slot in layers.names().iter().filter_map(|name| layers.get(name)) {
        if let Some(format) = slot.quantisation() {
            let name = format!("{format:?}").to_lowercase();
            match counts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => counts.push((name, 1)),
            }
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name)
}
