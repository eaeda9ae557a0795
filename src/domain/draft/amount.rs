//! Fields that are amounts: each within its range, or the range is named.

use super::super::limits::Limits;
use super::super::model::{Family, ModelInfo};
use super::super::picture::Size;
use super::super::request::{SizeConditioning, StepCache};
use super::super::sampling::Sampler;
use super::error::FieldError;

/// A whole number within bounds.
pub(super) fn within(field: &str, value: Option<i64>, least: u32, most: u32) -> Result<Option<u32>, FieldError> {
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
pub(super) fn ratio(field: &str, value: Option<f64>, least: f64, most: f64) -> Result<Option<f32>, FieldError> {
    let Some(value) = value else { return Ok(None) };
    if (least..=most).contains(&value) {
        return Ok(Some(value as f32));
    }
    Err(FieldError::new(
        field,
        format!("{value} is out of range; allowed: {least} to {most}"),
    ))
}

pub(super) fn size(
    width: Option<i64>,
    height: Option<i64>,
    info: &ModelInfo,
    limits: &Limits,
) -> Result<Size, FieldError> {
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

pub(super) fn guidance(value: Option<f64>, info: &ModelInfo) -> Result<f32, FieldError> {
    let scale = ratio("guidance_scale", value, 0.0, Limits::MAX_GUIDANCE)?;
    match scale {
        Some(scale) if info.family == Family::FluxSchnell && scale != 0.0 => Err(FieldError::new(
            "guidance_scale",
            format!("{scale} does not apply: flux-schnell has no guidance; leave it out or send 0"),
        )),
        scale => Ok(scale.unwrap_or(info.defaults.guidance_scale)),
    }
}

pub(super) fn true_cfg(value: Option<f64>, family: Family) -> Result<f32, FieldError> {
    match ratio("true_cfg_scale", value, 0.0, Limits::MAX_GUIDANCE)? {
        Some(scale) if !family.is_flux() => Err(FieldError::new(
            "true_cfg_scale",
            format!("{scale} does not apply to {family}, only to FLUX; use guidance_scale"),
        )),
        scale => Ok(scale.unwrap_or(1.0)),
    }
}

pub(super) fn interval(start: Option<f64>, end: Option<f64>, guided: bool) -> Result<(f32, f32), FieldError> {
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

pub(super) fn seed_value(value: Option<i128>) -> Result<u64, FieldError> {
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

/// A seed for a request that asks for none: 32 bits, so that every reader of JSON keeps it exact.
pub(super) fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u128() as u64 & 0xffff_ffff
}

pub(super) fn skip(value: Option<i64>, info: &ModelInfo) -> Result<u32, FieldError> {
    if let (Some(value), true) = (value, info.family.is_flux()) {
        return Err(FieldError::new(
            "clip_skip",
            format!("{value} does not apply to {}", info.family),
        ));
    }
    Ok(within("clip_skip", value, 1, Limits::MAX_CLIP_SKIP)?.unwrap_or(info.defaults.clip_skip))
}

pub(super) fn eta_value(value: Option<f64>, sampler: Sampler) -> Result<f32, FieldError> {
    let eta = ratio("eta", value, 0.0, 1.0)?.unwrap_or(0.0);
    if eta != 0.0 && sampler != Sampler::Ddim {
        return Err(FieldError::new(
            "eta",
            format!("{eta} does not apply to sampler {sampler}, only to ddim"),
        ));
    }
    Ok(eta)
}

pub(super) fn conditioning(
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

pub(super) fn cache(value: Option<String>, default: StepCache) -> Result<StepCache, FieldError> {
    match value {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|error| FieldError::new("step_cache", format!("{error}"))),
    }
}
