//! Fields that choose: a text, a name among those that the model knows, what the operation needs.

use super::super::limits::Limits;
use super::super::model::{Family, ModelInfo};
use super::super::picture::{InputImage, InputMask, OutputFormat};
use super::super::request::{LoraRef, Operation, OperationKind, PromptSyntax};
use super::super::sampling::{Sampler, SamplerChoice, Schedule};
use super::DraftError;
use super::amount::{ratio, within};
use super::error::{FieldError, joined, missing, not_one_of, shortened};

pub(super) fn check_model(wanted: Option<String>, info: &ModelInfo) -> Result<(), DraftError> {
    let Some(wanted) = wanted else { return Ok(()) };
    if info.is_called(&wanted) {
        return Ok(());
    }
    Err(DraftError::OtherModel {
        wanted: shortened(&wanted),
        loaded: info.name.clone(),
    })
}

pub(super) fn check_kind(kind: OperationKind, info: &ModelInfo) -> Result<(), FieldError> {
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

pub(super) fn text(field: &str, text: String) -> Result<String, FieldError> {
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

pub(super) fn negative(value: Option<String>, family: Family, true_cfg: f32) -> Result<String, FieldError> {
    let value = text("negative_prompt", value.unwrap_or_default())?;
    if !value.is_empty() && family.is_flux() && true_cfg <= 1.0 {
        let message = format!("{family} takes one only with true_cfg_scale above 1");
        return Err(FieldError::new("negative_prompt", message));
    }
    Ok(value)
}

pub(super) fn syntax(value: Option<&str>) -> Result<PromptSyntax, FieldError> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None | Some("a1111") => Ok(PromptSyntax::A1111),
        Some("plain") => Ok(PromptSyntax::Plain),
        Some(other) => Err(not_one_of("prompt_syntax", other, "a1111, plain")),
    }
}

pub(super) fn sampling(
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

pub(super) fn lora_list(loras: Vec<(String, f64)>, known: &[String]) -> Result<Vec<LoraRef>, FieldError> {
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
pub(super) fn is_named(known: &str, name: &str) -> bool {
    let bare = known.rsplit('/').next().unwrap_or(known);
    known.eq_ignore_ascii_case(name) || bare.eq_ignore_ascii_case(name)
}

pub(super) fn format(value: Option<&str>) -> Result<OutputFormat, FieldError> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None => Ok(OutputFormat::Png),
        Some("jpg") => Ok(OutputFormat::Jpeg),
        Some(name) => OutputFormat::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| not_one_of("output_format", name, "png, jpeg, webp")),
    }
}

pub(super) fn operation(
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
