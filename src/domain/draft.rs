//! From what a caller wrote to a [`GenerationRequest`]: the one place where a request is checked.
//!
//! A [`Draft`] holds values as they were written, in ranges that a request cannot have. [`Draft::build`] checks each
//! against the loaded model and the limits, fills in what is missing, and refuses what does not apply: nothing that was
//! given is dropped.

use super::limits::Limits;
use super::model::{Family, ModelInfo};
use super::picture::{InputImage, InputMask, OutputFormat, Size};
use super::request::{GenerationRequest, LoraRef, Operation, OperationKind, PromptSyntax, SizeConditioning, StepCache};
use super::sampling::{Sampler, SamplerChoice, Schedule};

/// A request as it was written; `None` where the caller said nothing.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// What to paint; must be given.
    pub prompt: Option<String>,
    /// What not to paint.
    pub negative_prompt: Option<String>,
    /// `a1111` or `plain`.
    pub prompt_syntax: Option<String>,
    /// Columns, pixels.
    pub width: Option<i64>,
    /// Rows, pixels.
    pub height: Option<i64>,
    /// Denoising steps.
    pub steps: Option<i64>,
    /// Classifier-free guidance, or FLUX dev's guidance embedding.
    pub guidance_scale: Option<f64>,
    /// Fraction of the steps at which guidance starts.
    pub guidance_start: Option<f64>,
    /// Fraction of the steps at which guidance ends.
    pub guidance_end: Option<f64>,
    /// FLUX: guidance with the negative prompt.
    pub true_cfg_scale: Option<f64>,
    /// Seed, or -1 for a random one.
    pub seed: Option<i128>,
    /// Pictures.
    pub n: Option<i64>,
    /// Sampler name.
    pub sampler: Option<String>,
    /// Schedule name.
    pub schedule: Option<String>,
    /// LoRAs as `(name, strength)`.
    pub loras: Vec<(String, f64)>,
    /// Decoded input picture.
    pub image: Option<InputImage>,
    /// Decoded mask.
    pub mask: Option<InputMask>,
    /// How far from the input picture.
    pub strength: Option<f64>,
    /// Fade of an inpaint mask, pixels.
    pub feather: Option<i64>,
    /// CLIP layers from the end.
    pub clip_skip: Option<i64>,
    /// DDIM's eta.
    pub eta: Option<f64>,
    /// SDXL: size before the crop, `(width, height)`.
    pub original_size: Option<(i64, i64)>,
    /// SDXL: top and left of the crop.
    pub crop_top_left: Option<(i64, i64)>,
    /// SDXL: size the picture is meant to have, `(width, height)`.
    pub target_size: Option<(i64, i64)>,
    /// `off`, `auto` or a threshold.
    pub step_cache: Option<String>,
    /// A preview every so many steps.
    pub preview_every: Option<i64>,
    /// File format of the result.
    pub output_format: Option<String>,
    /// Model that the caller expects.
    pub model: Option<String>,
}

/// A field that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field as the caller names it, such as `width` or `loras[1].strength`.
    pub field: String,
    /// Its value and what is allowed.
    pub message: String,
}

/// Why a draft is no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// A value is missing, out of range, or does not apply.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The caller expects another model.
    #[error("model: `{wanted}` is not loaded here; loaded: {loaded}")]
    OtherModel {
        /// What the caller wants.
        wanted: String,
        /// What is loaded.
        loaded: String,
    },
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The loaded model.
    pub model: &'a ModelInfo,
    /// Bounds from the settings.
    pub limits: &'a Limits,
    /// Reuse between steps where the request is silent.
    pub step_cache: StepCache,
    /// Names of the LoRAs that may be used.
    pub loras: &'a [String],
}

impl FieldError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

impl Draft {
    /// Checks everything and fills in the model's defaults.
    ///
    /// # Errors
    /// The first field that is missing, out of range or does not apply.
    pub fn build(self, kind: OperationKind, rules: &Rules<'_>) -> Result<GenerationRequest, DraftError> {
        let Self {
            prompt,
            negative_prompt,
            prompt_syntax,
            width,
            height,
            steps,
            guidance_scale,
            guidance_start,
            guidance_end,
            true_cfg_scale,
            seed,
            n,
            sampler,
            schedule,
            loras,
            image,
            mask,
            strength,
            feather,
            clip_skip,
            eta,
            original_size,
            crop_top_left,
            target_size,
            step_cache,
            preview_every,
            output_format,
            model,
        } = self;
        let Rules {
            model: info, limits, ..
        } = *rules;
        check_model(model, info)?;
        check_kind(kind, info)?;
        let family = info.family;
        let size = size(width, height, info, limits)?;
        let steps = within("steps", steps, 1, Limits::MAX_STEPS)?.unwrap_or(info.defaults.steps);
        let (sampler, schedule) = sampling(sampler.as_deref(), schedule.as_deref(), info)?;
        let true_cfg = true_cfg(true_cfg_scale, family)?;
        let negative_prompt = negative(negative_prompt, family, true_cfg)?;
        let guidance_scale = guidance(guidance_scale, info)?;
        let guided = !family.is_flux() || true_cfg > 1.0;
        Ok(GenerationRequest {
            operation: operation(kind, image, mask, strength, feather)?,
            prompt: text("prompt", prompt.ok_or_else(|| missing("prompt"))?)?,
            negative_prompt,
            prompt_syntax: syntax(prompt_syntax.as_deref())?,
            size,
            steps,
            guidance_scale,
            guidance_interval: interval(guidance_start, guidance_end, guided)?,
            true_cfg_scale: true_cfg,
            seed: seed_value(seed)?,
            count: within("n", n, 1, limits.max_images)?.unwrap_or(1),
            sampler,
            schedule,
            loras: lora_list(loras, rules.loras)?,
            clip_skip: skip(clip_skip, info)?,
            eta: eta_value(eta, sampler)?,
            preview_every: within("preview_every", preview_every, 0, Limits::MAX_STEPS)?.unwrap_or(0),
            size_conditioning: conditioning(original_size, crop_top_left, target_size, size, family)?,
            step_cache: cache(step_cache, rules.step_cache)?,
            output_format: format(output_format.as_deref())?,
        })
    }
}

fn missing(field: &str) -> FieldError {
    FieldError::new(field, "missing; it is required")
}

fn check_model(wanted: Option<String>, info: &ModelInfo) -> Result<(), DraftError> {
    let Some(wanted) = wanted else { return Ok(()) };
    if info.is_called(&wanted) {
        return Ok(());
    }
    Err(DraftError::OtherModel {
        wanted: shortened(&wanted),
        loaded: info.name.clone(),
    })
}

fn check_kind(kind: OperationKind, info: &ModelInfo) -> Result<(), FieldError> {
    if info.operations.contains(&kind) {
        return Ok(());
    }
    let can = info
        .operations
        .iter()
        .map(|kind| kind.name())
        .collect::<Vec<_>>()
        .join(", ");
    Err(FieldError::new(
        "operation",
        format!("`{}` is not what {} does; allowed: {can}", kind.name(), info.name),
    ))
}

/// A whole number within bounds.
fn within(field: &str, value: Option<i64>, least: u32, most: u32) -> Result<Option<u32>, FieldError> {
    let Some(value) = value else { return Ok(None) };
    match u32::try_from(value) {
        Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
        _ => Err(FieldError::new(
            field,
            format!("{value} is out of range; allowed: {least} to {most}"),
        )),
    }
}

/// A number within bounds.
fn ratio(field: &str, value: Option<f64>, least: f64, most: f64) -> Result<Option<f32>, FieldError> {
    let Some(value) = value else { return Ok(None) };
    if (least..=most).contains(&value) {
        return Ok(Some(value as f32));
    }
    Err(FieldError::new(
        field,
        format!("{value} is out of range; allowed: {least} to {most}"),
    ))
}

fn size(width: Option<i64>, height: Option<i64>, info: &ModelInfo, limits: &Limits) -> Result<Size, FieldError> {
    let multiple = info.family.size_multiple();
    let side = |field: &str, value: Option<i64>, default: u32| {
        let Some(value) = value else { return Ok(default) };
        let fits = u32::try_from(value)
            .ok()
            .filter(|side| (Limits::MIN_SIDE..=limits.max_side).contains(side) && side % multiple == 0);
        fits.ok_or_else(|| {
            let (least, most) = (Limits::MIN_SIDE, limits.max_side);
            FieldError::new(
                field,
                format!("{value} is not allowed; allowed: multiples of {multiple} from {least} to {most}"),
            )
        })
    };
    Ok(Size {
        width: side("width", width, info.defaults.size.width)?,
        height: side("height", height, info.defaults.size.height)?,
    })
}

fn text(field: &str, text: String) -> Result<String, FieldError> {
    let count = text.chars().count();
    if count <= Limits::MAX_PROMPT_CHARS {
        return Ok(text);
    }
    let most = Limits::MAX_PROMPT_CHARS;
    Err(FieldError::new(
        field,
        format!("{count} characters are too many; allowed: up to {most}"),
    ))
}

fn negative(value: Option<String>, family: Family, true_cfg: f32) -> Result<String, FieldError> {
    let value = text("negative_prompt", value.unwrap_or_default())?;
    if !value.is_empty() && family.is_flux() && true_cfg <= 1.0 {
        let message = format!("{family} takes one only with true_cfg_scale above 1");
        return Err(FieldError::new("negative_prompt", message));
    }
    Ok(value)
}

fn syntax(value: Option<&str>) -> Result<PromptSyntax, FieldError> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None | Some("a1111") => Ok(PromptSyntax::A1111),
        Some("plain") => Ok(PromptSyntax::Plain),
        Some(other) => Err(not_one_of("prompt_syntax", other, "a1111, plain")),
    }
}

fn guidance(value: Option<f64>, info: &ModelInfo) -> Result<f32, FieldError> {
    let scale = ratio("guidance_scale", value, 0.0, Limits::MAX_GUIDANCE)?;
    match scale {
        Some(scale) if info.family == Family::FluxSchnell && scale != 0.0 => Err(FieldError::new(
            "guidance_scale",
            format!("{scale} does not apply: flux-schnell has no guidance; leave it out or send 0"),
        )),
        scale => Ok(scale.unwrap_or(info.defaults.guidance_scale)),
    }
}

fn true_cfg(value: Option<f64>, family: Family) -> Result<f32, FieldError> {
    match ratio("true_cfg_scale", value, 0.0, Limits::MAX_GUIDANCE)? {
        Some(scale) if !family.is_flux() => Err(FieldError::new(
            "true_cfg_scale",
            format!("{scale} does not apply to {family}, only to FLUX; use guidance_scale"),
        )),
        scale => Ok(scale.unwrap_or(1.0)),
    }
}

fn interval(start: Option<f64>, end: Option<f64>, guided: bool) -> Result<(f32, f32), FieldError> {
    for (field, value) in [("guidance_start", start), ("guidance_end", end)] {
        if let (Some(value), false) = (value, guided) {
            let message = format!("{value} does not apply to FLUX without true_cfg_scale above 1");
            return Err(FieldError::new(field, message));
        }
    }
    let from = ratio("guidance_start", start, 0.0, 1.0)?.unwrap_or(0.0);
    let to = ratio("guidance_end", end, 0.0, 1.0)?.unwrap_or(1.0);
    if from > to {
        let message = format!("{from} is above guidance_end, {to}; allowed: 0 to guidance_end");
        return Err(FieldError::new("guidance_start", message));
    }
    Ok((from, to))
}

fn seed_value(value: Option<i128>) -> Result<u64, FieldError> {
    match value {
        None | Some(-1) => Ok(random_seed()),
        Some(seed) => u64::try_from(seed).map_err(|_| {
            let most = u64::MAX;
            FieldError::new(
                "seed",
                format!("{seed} is out of range; allowed: -1 (random) or 0 to {most}"),
            )
        }),
    }
}

fn sampling(
    sampler: Option<&str>,
    schedule: Option<&str>,
    info: &ModelInfo,
) -> Result<(Sampler, Schedule), FieldError> {
    let choice = match sampler {
        None => SamplerChoice {
            sampler: info.defaults.sampler,
            schedule: None,
        },
        Some(name) => name
            .parse::<SamplerChoice>()
            .ok()
            .filter(|choice| info.samplers.contains(&choice.sampler))
            .ok_or_else(|| not_one_of("sampler", name, &joined(&info.samplers)))?,
    };
    let asked = match schedule {
        None => choice.schedule,
        Some(name) => Some(
            name.parse::<Schedule>()
                .map_err(|_| not_one_of("schedule", name, &joined(&info.schedules)))?,
        ),
    };
    if let (Some(asked), Some(of_sampler)) = (asked, choice.schedule)
        && asked != of_sampler
    {
        let message = format!("{asked} contradicts the sampler's name, which asks for {of_sampler}; give one of them");
        return Err(FieldError::new("schedule", message));
    }
    let fits = |schedule: Schedule| {
        info.schedules.contains(&schedule) && (info.family.is_flux() || choice.sampler.check_schedule(schedule).is_ok())
    };
    let usual = info.defaults.schedule;
    match asked {
        Some(schedule) if !fits(schedule) => {
            let allowed: Vec<_> = info
                .schedules
                .iter()
                .copied()
                .filter(|schedule| fits(*schedule))
                .collect();
            Err(FieldError::new(
                "schedule",
                format!(
                    "{schedule} does not go with sampler {}; allowed: {}",
                    choice.sampler,
                    joined(&allowed)
                ),
            ))
        }
        Some(schedule) => Ok((choice.sampler, schedule)),
        None if fits(usual) => Ok((choice.sampler, usual)),
        None => Ok((choice.sampler, Schedule::Default)),
    }
}

fn lora_list(loras: Vec<(String, f64)>, known: &[String]) -> Result<Vec<LoraRef>, FieldError> {
    if loras.len() > Limits::MAX_LORAS {
        let message = format!("{} are too many; allowed: up to {}", loras.len(), Limits::MAX_LORAS);
        return Err(FieldError::new("loras", message));
    }
    let one = |(index, (name, strength)): (usize, (String, f64))| {
        let most = Limits::MAX_LORA_STRENGTH;
        let strength = ratio(&format!("loras[{index}].strength"), Some(strength), -most, most)?.unwrap_or(1.0);
        let stem = name.strip_suffix(".safetensors").unwrap_or(&name);
        if !known.iter().any(|known| is_named(known, stem)) {
            let allowed = if known.is_empty() {
                "none, the LoRA folder has no file".to_owned()
            } else {
                joined(known)
            };
            return Err(not_one_of(&format!("loras[{index}].name"), &name, &allowed));
        }
        Ok(LoraRef {
            name: stem.to_owned(),
            strength,
        })
    };
    loras.into_iter().enumerate().map(one).collect()
}

/// Whether a file below the LoRA folder goes by this name: its path, or the last part of it, in any case.
fn is_named(known: &str, name: &str) -> bool {
    let bare = known.rsplit('/').next().unwrap_or(known);
    known.eq_ignore_ascii_case(name) || bare.eq_ignore_ascii_case(name)
}

fn operation(
    kind: OperationKind,
    image: Option<InputImage>,
    mask: Option<InputMask>,
    strength: Option<f64>,
    feather: Option<i64>,
) -> Result<Operation, FieldError> {
    let given = [
        ("image", image.is_some(), kind != OperationKind::ImageGeneration),
        ("mask", mask.is_some(), kind == OperationKind::ImageInpaint),
        ("strength", strength.is_some(), kind != OperationKind::ImageGeneration),
        ("feather", feather.is_some(), kind == OperationKind::ImageInpaint),
    ];
    for (field, given, applies) in given {
        if given && !applies {
            return Err(FieldError::new(
                field,
                format!("does not apply to {}; leave it out", kind.name()),
            ));
        }
    }
    let strength = ratio("strength", strength, 0.0, 1.0)?.unwrap_or(0.8);
    let feather = within("feather", feather, 0, Limits::MAX_FEATHER)?.unwrap_or(0);
    Ok(match kind {
        OperationKind::ImageGeneration => Operation::TextToImage,
        OperationKind::ImageTransform => Operation::ImageToImage {
            image: image.ok_or_else(|| missing("image"))?,
            strength,
        },
        OperationKind::ImageInpaint => Operation::Inpaint {
            image: image.ok_or_else(|| missing("image"))?,
            mask: mask.ok_or_else(|| missing("mask"))?,
            strength,
            feather,
        },
    })
}

fn skip(value: Option<i64>, info: &ModelInfo) -> Result<u32, FieldError> {
    if let (Some(value), true) = (value, info.family.is_flux()) {
        return Err(FieldError::new(
            "clip_skip",
            format!("{value} does not apply to {}", info.family),
        ));
    }
    Ok(within("clip_skip", value, 1, Limits::MAX_CLIP_SKIP)?.unwrap_or(info.defaults.clip_skip))
}

fn eta_value(value: Option<f64>, sampler: Sampler) -> Result<f32, FieldError> {
    let eta = ratio("eta", value, 0.0, 1.0)?.unwrap_or(0.0);
    if eta != 0.0 && sampler != Sampler::Ddim {
        return Err(FieldError::new(
            "eta",
            format!("{eta} does not apply to sampler {sampler}, only to ddim"),
        ));
    }
    Ok(eta)
}

fn conditioning(
    original: Option<(i64, i64)>,
    crop: Option<(i64, i64)>,
    target: Option<(i64, i64)>,
    size: Size,
    family: Family,
) -> Result<Option<SizeConditioning>, FieldError> {
    let given = [
        ("original_size", original),
        ("crop_top_left", crop),
        ("target_size", target),
    ];
    if family != Family::Sdxl {
        return match given.into_iter().find(|(_, value)| value.is_some()) {
            Some((field, _)) => Err(FieldError::new(
                field,
                format!("does not apply to {family}, only to sdxl"),
            )),
            None => Ok(None),
        };
    }
    if given.iter().all(|(_, value)| value.is_none()) {
        return Ok(None);
    }
    let pair = |field: &str, value: Option<(i64, i64)>, least: u32, default: (u32, u32)| match value {
        None => Ok(default),
        Some((a, b)) => {
            let one = |value| within(field, Some(value), least, 16_384).map(|side| side.unwrap_or(least));
            Ok::<_, FieldError>((one(a)?, one(b)?))
        }
    };
    let of = |(width, height)| Size { width, height };
    let own = (size.width, size.height);
    Ok(Some(SizeConditioning {
        original: of(pair("original_size", original, 1, own)?),
        crop_top_left: pair("crop_top_left", crop, 0, (0, 0))?,
        target: of(pair("target_size", target, 1, own)?),
    }))
}

fn cache(value: Option<String>, default: StepCache) -> Result<StepCache, FieldError> {
    match value {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|error| FieldError::new("step_cache", format!("{error}"))),
    }
}

fn format(value: Option<&str>) -> Result<OutputFormat, FieldError> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None => Ok(OutputFormat::Png),
        Some("jpg") => Ok(OutputFormat::Jpeg),
        Some(name) => OutputFormat::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| not_one_of("output_format", name, "png, jpeg, webp")),
    }
}

fn not_one_of(field: &str, value: &str, allowed: &str) -> FieldError {
    FieldError::new(field, format!("`{}` is unknown; allowed: {allowed}", shortened(value)))
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The start of a text that may be long, for messages.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST).chain("...".chars()).collect()
}

/// A seed for a request that asks for none: 32 bits, so that every reader of JSON keeps it exact.
fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u128() as u64 & 0xffff_ffff
}
