//! What a call of A1111's `txt2img` or `img2img` asks for. What has no counterpart here is refused by name, unless it has
//! the value that asks for nothing: many clients send every field they know.

use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::intake::Checker;
use super::super::picture;
use crate::domain::draft::{Draft, FieldError};
use crate::domain::request::{GenerationRequest, OperationKind};

/// Which route was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `txt2img`
    TextToImage,
    /// `img2img`
    ImageToImage,
}

/// A valid call.
#[derive(Debug)]
pub struct Call {
    /// What to paint.
    pub request: GenerationRequest,
    /// The body as it was sent, without its pictures, to be echoed.
    pub parameters: Value,
    /// Whether the caller wants the pictures.
    pub send_images: bool,
}

/// A preview every so many steps, for whoever asks for the progress.
const PREVIEW_EVERY: i64 = 2;

impl Call {
    /// Reads every field.
    ///
    /// # Errors
    /// The first field that cannot be accepted.
    pub fn read(mut fields: Fields, way: Way, checker: &Checker) -> Result<Self, ApiError> {
        let parameters = fields.echo(&["init_images", "mask"]);
        let mut draft = Draft {
            prompt: Some(fields.string(&["prompt"])?.unwrap_or_default()),
            negative_prompt: fields.string(&["negative_prompt"])?,
            width: fields.integer(&["width"])?,
            height: fields.integer(&["height"])?,
            steps: fields.integer(&["steps"])?,
            guidance_scale: fields.number(&["cfg_scale"])?,
            seed: fields.seed(&["seed"])?,
            n: count(&mut fields)?,
            eta: fields.number(&["eta"])?.filter(|eta| *eta != 0.0),
            sampler: sampler(&mut fields)?,
            schedule: fields.string(&["scheduler"])?.filter(|name| !name.is_empty()),
            preview_every: Some(PREVIEW_EVERY),
            ..Draft::default()
        };
        overrides(&mut fields, &mut draft)?;
        if let Some(skip) = fields.integer(&["clip_skip"])? {
            draft.clip_skip = Some(skip);
        }
        let kind = match way {
            Way::TextToImage => OperationKind::ImageGeneration,
            Way::ImageToImage => pictures(&mut fields, &mut draft, checker)?,
        };
        let send_images = fields.boolean(&["send_images"])?.unwrap_or(true);
        refuse_extras(&mut fields, way, kind == OperationKind::ImageInpaint)?;
        fields.finish()?;
        let request = checker.build(kind, draft).map_err(renamed)?;
        Ok(Self {
            request,
            parameters,
            send_images,
        })
    }
}

/// Errors name fields as this API's callers know them.
fn renamed(error: ApiError) -> ApiError {
    match error {
        ApiError::Field(FieldError { field, message }) => {
            let field = match field.as_str() {
                "guidance_scale" => "cfg_scale".into(),
                "sampler" => "sampler_name".into(),
                "schedule" => "scheduler".into(),
                "strength" => "denoising_strength".into(),
                "feather" => "mask_blur".into(),
                "n" => "batch_size".into(),
                _ => field,
            };
            ApiError::Field(FieldError { field, message })
        }
        other => other,
    }
}

fn count(fields: &mut Fields) -> Result<Option<i64>, FieldError> {
    let (size, rounds) = (fields.integer(&["batch_size"])?, fields.integer(&["n_iter"])?);
    Ok(match (size, rounds) {
        (None, None) => None,
        (size, rounds) => Some(size.unwrap_or(1).saturating_mul(rounds.unwrap_or(1))),
    })
}

fn sampler(fields: &mut Fields) -> Result<Option<String>, FieldError> {
    let name = fields.string(&["sampler_name"])?;
    let index = fields.string(&["sampler_index"])?;
    Ok(name.or(index).filter(|name| !name.is_empty()))
}

fn overrides(fields: &mut Fields, draft: &mut Draft) -> Result<(), FieldError> {
    let Some(value) = fields.any(&["override_settings"])? else {
        return Ok(());
    };
    let Value::Object(settings) = value else {
        return Err(FieldError::new("override_settings", "it must be an object"));
    };
    let mut settings = Fields::new(settings, "override_settings.");
    draft.model = settings.string(&["sd_model_checkpoint"])?;
    draft.clip_skip = settings.integer(&["CLIP_stop_at_last_layers"])?;
    settings.neutral("samples_format", &[json!("png")])?;
    settings.neutral("sd_vae", &["Automatic", "None", ""].map(|word| json!(word)))?;
    settings.finish()
}

fn pictures(fields: &mut Fields, draft: &mut Draft, checker: &Checker) -> Result<OperationKind, ApiError> {
    let images = match fields.any(&["init_images"])? {
        Some(Value::Array(images)) => images,
        Some(_) => return Err(FieldError::new("init_images", "it must be a list of pictures in base64").into()),
        None => return Err(FieldError::new("init_images", "missing; it is required").into()),
    };
    let [Value::String(image)] = images.as_slice() else {
        let message = format!("{} pictures; exactly one, in base64, is allowed", images.len());
        return Err(FieldError::new("init_images", message).into());
    };
    draft.image = Some(picture::image("init_images", image, &checker.limits)?);
    draft.strength = fields.number(&["denoising_strength"])?.or(Some(0.75));
    let mask = fields.string(&["mask"])?;
    let blur = fields.integer(&["mask_blur"])?;
    match mask {
        None => Ok(OperationKind::ImageTransform),
        Some(mask) => {
            draft.mask = Some(picture::mask("mask", &mask, &checker.limits)?);
            draft.feather = blur;
            Ok(OperationKind::ImageInpaint)
        }
    }
}

/// Fields of A1111 that have no counterpart here, with the values that ask for nothing.
fn refuse_extras(fields: &mut Fields, way: Way, masked: bool) -> Result<(), FieldError> {
    let (no, none, zero) = (json!(false), json!([]), json!(0));
    for name in ["restore_faces", "tiling", "enable_hr", "disable_extra_networks"] {
        fields.neutral(name, std::slice::from_ref(&no))?;
    }
    // Nothing is ever saved or changed here, so both words mean the same.
    for name in [
        "do_not_save_samples",
        "do_not_save_grid",
        "save_images",
        "override_settings_restore_afterwards",
    ] {
        fields.neutral(name, &[json!(true), json!(false)])?;
    }
    for name in ["styles", "script_args"] {
        fields.neutral(name, std::slice::from_ref(&none))?;
    }
    fields.neutral("alwayson_scripts", &[Value::Object(Map::new())])?;
    fields.neutral("comments", &[Value::Object(Map::new())])?;
    for name in ["script_name", "refiner_checkpoint"] {
        fields.neutral(name, &[json!("")])?;
    }
    fields.neutral("subseed", &[json!(-1), json!(0)])?;
    for name in ["subseed_strength", "s_churn", "s_tmin", "s_tmax", "s_min_uncond"] {
        fields.neutral(name, &[zero.clone(), json!(0.0)])?;
    }
    fields.neutral("s_noise", &[json!(1), json!(1.0)])?;
    fields.neutral("seed_resize_from_w", &[json!(-1), json!(0)])?;
    fields.neutral("seed_resize_from_h", &[json!(-1), json!(0)])?;
    // The refiner is off; front ends pass on where they reached the worker and how they name the task.
    fields.ignore(&["refiner_switch_at", "force_task_id", "url", "auth"]);
    match way {
        Way::TextToImage => {
            fields.ignore(HIGH_RESOLUTION);
            Ok(())
        }
        Way::ImageToImage => refuse_inpainting(fields, masked),
    }
}

/// They belong to the high resolution pass, which is off.
const HIGH_RESOLUTION: &[&str] = &[
    "denoising_strength",
    "firstphase_width",
    "firstphase_height",
    "hr_scale",
    "hr_upscaler",
    "hr_second_pass_steps",
    "hr_resize_x",
    "hr_resize_y",
    "hr_checkpoint_name",
    "hr_sampler_name",
    "hr_scheduler",
    "hr_prompt",
    "hr_negative_prompt",
    "hr_cfg",
    "hr_additional_modules",
];

/// They say how a mask is used, and nothing where there is none.
const INPAINTING: &[&str] = &[
    "inpainting_fill",
    "inpaint_full_res",
    "inpaint_full_res_padding",
    "inpainting_mask_invert",
    "mask_round",
    "initial_noise_multiplier",
];

fn refuse_inpainting(fields: &mut Fields, masked: bool) -> Result<(), FieldError> {
    let (no, zero) = (json!(false), json!(0));
    fields.neutral("resize_mode", std::slice::from_ref(&zero))?;
    fields.neutral("include_init_images", std::slice::from_ref(&no))?;
    fields.neutral("image_cfg_scale", &[])?;
    if masked {
        fields.neutral("inpainting_fill", &[json!(1)])?;
        fields.neutral("inpaint_full_res", &[no.clone(), zero.clone()])?;
        fields.neutral("inpainting_mask_invert", &[zero, no])?;
        fields.neutral("mask_round", &[json!(true)])?;
        fields.neutral("initial_noise_multiplier", &[json!(1), json!(1.0)])?;
    }
    fields.ignore(INPAINTING);
    Ok(())
}
