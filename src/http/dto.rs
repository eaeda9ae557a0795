//! The request as it travels over the wire, and its way into a [`Draft`].

use serde_json::Value;

use super::fields::Fields;
use crate::domain::draft::{Draft, FieldError};
use crate::domain::request::OperationKind;

/// Where a request comes from: each way has its fields around the common ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `/txt2img`, `/img2img`, `/inpaint`: the path says what to do.
    Path(OperationKind),
    /// `/v1/jobs`: `operation` says it, as a hive sends it.
    Tagged,
}

/// A request body.
#[derive(Debug, Default)]
pub struct GenerateBody {
    prompt: Option<String>,
    negative_prompt: Option<String>,
    prompt_syntax: Option<String>,
    width: Option<i64>,
    height: Option<i64>,
    steps: Option<i64>,
    guidance_scale: Option<f64>,
    guidance_start: Option<f64>,
    guidance_end: Option<f64>,
    true_cfg_scale: Option<f64>,
    seed: Option<i128>,
    n: Option<i64>,
    sampler: Option<String>,
    schedule: Option<String>,
    loras: Vec<(String, f64)>,
    image: Option<String>,
    mask: Option<String>,
    strength: Option<f64>,
    feather: Option<i64>,
    clip_skip: Option<i64>,
    eta: Option<f64>,
    original_size: Option<(i64, i64)>,
    crop_top_left: Option<(i64, i64)>,
    target_size: Option<(i64, i64)>,
    step_cache: Option<String>,
    preview_every: Option<i64>,
    output_format: Option<String>,
    model: Option<String>,
}

/// Input pictures as they were sent: base64 or a data URL.
#[derive(Debug, Default)]
pub struct SentPictures {
    /// `image`
    pub image: Option<String>,
    /// `mask`
    pub mask: Option<String>,
}

/// Names of the input picture.
const IMAGE: &[&str] = &["image", "input_image", "init_image"];
/// Names of the mask.
const MASK: &[&str] = &["mask", "mask_image"];

impl GenerateBody {
    /// Reads every field and what to do; refuses unknown fields.
    ///
    /// # Errors
    /// The first field of the wrong type, doubled, or unknown.
    pub fn read(mut fields: Fields, form: Form) -> Result<(OperationKind, Self), FieldError> {
        let kind = match form {
            Form::Path(kind) => kind,
            Form::Tagged => {
                fields.ignore(&["hive_id", "worker_id"]);
                operation(&mut fields)?
            }
        };
        let body = Self {
            prompt: fields.string(&["prompt"])?,
            negative_prompt: fields.string(&["negative_prompt"])?,
            prompt_syntax: fields.string(&["prompt_syntax"])?,
            width: fields.integer(&["width"])?,
            height: fields.integer(&["height"])?,
            steps: fields.integer(&["steps"])?,
            guidance_scale: fields.number(&["guidance_scale"])?,
            guidance_start: fields.number(&["guidance_start"])?,
            guidance_end: fields.number(&["guidance_end"])?,
            true_cfg_scale: fields.number(&["true_cfg_scale"])?,
            seed: fields.seed(&["seed"])?,
            n: fields.integer(&["n"])?,
            sampler: fields.string(&["sampler"])?,
            schedule: fields.string(&["schedule"])?,
            loras: loras(&mut fields)?,
            image: fields.string(IMAGE)?,
            mask: fields.string(MASK)?,
            strength: fields.number(&["strength"])?,
            feather: fields.integer(&["feather"])?,
            clip_skip: fields.integer(&["clip_skip"])?,
            eta: fields.number(&["eta"])?,
            original_size: fields.pair(&["original_size"])?,
            crop_top_left: fields.pair(&["crop_top_left"])?,
            target_size: fields.pair(&["target_size"])?,
            step_cache: step_cache(&mut fields)?,
            preview_every: fields.integer(&["preview_every"])?,
            output_format: fields.string(&["output_format"])?,
            model: fields.string(&["model"])?,
        };
        fields.finish()?;
        Ok((kind, body))
    }

    /// The draft without its pictures, and the pictures as they were sent.
    pub fn into_draft(self) -> (Draft, SentPictures) {
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
        let draft = Draft {
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
            image: None,
            mask: None,
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
        };
        (draft, SentPictures { image, mask })
    }
}

fn operation(fields: &mut Fields) -> Result<OperationKind, FieldError> {
    let allowed = || OperationKind::ALL.map(OperationKind::name).join(", ");
    let Some(name) = fields.string(&["operation"])? else {
        return Err(FieldError::new("operation", format!("missing; allowed: {}", allowed())));
    };
    OperationKind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)
        .ok_or_else(|| FieldError::new("operation", format!("`{name}` is unknown; allowed: {}", allowed())))
}

fn loras(fields: &mut Fields) -> Result<Vec<(String, f64)>, FieldError> {
    let mut loras = Vec::new();
    for (index, object) in fields.objects(&["loras"])?.into_iter().enumerate() {
        let mut lora = Fields::new(object, &format!("loras[{index}]."));
        let name = lora.string(&["name", "path"])?;
        let strength = lora.number(&["strength"])?.unwrap_or(1.0);
        lora.finish()?;
        let missing = || FieldError::new(format!("loras[{index}].name"), "missing; give `name` or `path`");
        loras.push((name.ok_or_else(missing)?, strength));
    }
    Ok(loras)
}

/// A word or a number.
fn step_cache(fields: &mut Fields) -> Result<Option<String>, FieldError> {
    match fields.any(&["step_cache"])? {
        None => Ok(None),
        Some(Value::String(word)) => Ok(Some(word)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(FieldError::new("step_cache", "it must be `off`, `auto` or a number")),
    }
}
