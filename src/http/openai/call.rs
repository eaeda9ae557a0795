//! What a call of OpenAI's image API asks for.

use serde_json::json;

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::intake::Checker;
use super::super::picture::refusal;
use crate::domain::draft::{Draft, FieldError};
use crate::domain::limits::Limits;
use crate::domain::picture::{EncodedImage, InputImage, InputMask, OutputFormat, Size};
use crate::domain::request::{GenerationRequest, OperationKind};
use crate::pipeline::image_io;

/// A valid call.
#[derive(Debug)]
pub struct Call {
    /// What to paint.
    pub request: GenerationRequest,
    /// How the answer looks.
    pub look: Look,
}

/// How the answer to a call looks.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Links instead of base64.
    pub by_url: bool,
    /// Events instead of one object.
    pub stream: bool,
    /// Most previews.
    pub partials: u32,
    /// `image_edit.*` instead of `image_generation.*`.
    pub edit: bool,
    /// File format.
    pub format: OutputFormat,
    /// JPEG quality, if the caller chose one.
    quality: Option<u8>,
}

/// The pictures of an edit.
#[derive(Debug, Default)]
pub struct Edit {
    image: Option<InputImage>,
    mask: Option<InputMask>,
}

impl Edit {
    /// From files. A mask's transparent part is painted anew; without a mask, the picture's own transparent part.
    ///
    /// # Errors
    /// A file that cannot be used, or a mask that is all opaque.
    pub fn decode(image: Option<&[u8]>, mask: Option<&[u8]>, limits: &Limits) -> Result<Self, ApiError> {
        let image = image.ok_or_else(|| FieldError::new("image", "missing; it is required"))?;
        let picture = image_io::decode_image(image, limits).map_err(|error| refusal("image", &error))?;
        let (field, file) = match mask {
            Some(mask) => ("mask", mask),
            None => ("image", image),
        };
        let alpha = image_io::decode_alpha_mask(file, limits).map_err(|error| refusal(field, &error))?;
        let alpha = alpha.filter(|mask| mask.0.pixels().any(|pixel| pixel.0[0] > 0));
        if mask.is_some() && alpha.is_none() {
            let message = "it has no transparent part; transparent pixels say what is painted anew";
            return Err(ApiError::Picture(FieldError::new("mask", message)));
        }
        Ok(Self {
            image: Some(picture),
            mask: alpha,
        })
    }
}

impl Look {
    /// A finished picture as the caller wants it.
    ///
    /// # Errors
    /// The encoder refuses the picture.
    pub fn file(&self, image: &EncodedImage) -> Result<Vec<u8>, ApiError> {
        let Some(quality) = self.quality else {
            return Ok(image.bytes.clone());
        };
        let internal = |error: image::ImageError| ApiError::Internal(error.to_string());
        let pixels = image::load_from_memory(&image.bytes).map_err(internal)?.into_rgb8();
        let text = image_io::read_parameters(&image.bytes);
        image_io::encode(&pixels, self.format, quality, text.as_deref()).map_err(internal)
    }
}

impl Call {
    /// Reads every field; refuses what has no effect here.
    ///
    /// # Errors
    /// The first field that cannot be accepted.
    pub fn read(mut fields: Fields, edit: Edit, checker: &Checker) -> Result<Self, ApiError> {
        let is_edit = edit.image.is_some();
        let look = look(&mut fields, is_edit)?;
        let kind = match (&edit.image, &edit.mask) {
            (None, _) => OperationKind::ImageGeneration,
            (Some(_), None) => OperationKind::ImageTransform,
            (Some(_), Some(_)) => OperationKind::ImageInpaint,
        };
        let size = size(&mut fields)?;
        let steps = fields.integer(&["steps"])?;
        let mut draft = Draft {
            prompt: fields.string(&["prompt"])?,
            negative_prompt: fields.string(&["negative_prompt"])?,
            n: fields.integer(&["n"])?,
            width: size.map(|size| size.width.into()),
            height: size.map(|size| size.height.into()),
            steps,
            guidance_scale: fields.number(&["guidance_scale"])?,
            seed: fields.seed(&["seed"])?,
            model: fields.string(&["model"])?,
            // A quality that the caller chose is applied afterwards, to pixels without loss.
            output_format: Some(
                if look.quality.is_some() {
                    "png"
                } else {
                    look.format.name()
                }
                .to_owned(),
            ),
            image: edit.image,
            mask: edit.mask,
            ..Draft::default()
        };
        if is_edit {
            draft.strength = fields.number(&["strength"])?;
        }
        if look.partials > 0 {
            let steps = steps.unwrap_or_else(|| checker.model.defaults.steps.into());
            draft.preview_every = Some((steps / i64::from(look.partials + 1)).max(1));
        }
        // Names of end users are for OpenAI's own watch over abuse.
        fields.ignore(&["user"]);
        fields.neutral(
            "quality",
            &["auto", "standard", "high", "medium", "low", "hd"].map(|word| json!(word)),
        )?;
        fields.neutral("background", &["auto", "opaque"].map(|word| json!(word)))?;
        fields.neutral("moderation", &["auto", "low"].map(|word| json!(word)))?;
        fields.neutral("input_fidelity", &["low", "high"].map(|word| json!(word)))?;
        fields.finish()?;
        Ok(Self {
            request: checker.build(kind, draft).map_err(renamed)?,
            look,
        })
    }
}

/// Errors name fields as this API's callers know them.
fn renamed(error: ApiError) -> ApiError {
    match error {
        ApiError::Field(FieldError { field, message }) if field == "width" || field == "height" => {
            ApiError::Field(FieldError::new("size", format!("{field} {message}")))
        }
        other => other,
    }
}

fn size(fields: &mut Fields) -> Result<Option<Size>, FieldError> {
    match fields.string(&["size"])?.as_deref() {
        None | Some("auto") => Ok(None),
        Some(text) => {
            let wrong = |_| {
                FieldError::new(
                    "size",
                    format!("`{text}` is no size; allowed: auto, or WxH such as 512x768"),
                )
            };
            text.parse().map(Some).map_err(wrong)
        }
    }
}

fn look(fields: &mut Fields, edit: bool) -> Result<Look, FieldError> {
    let by_url = match fields.string(&["response_format"])?.as_deref() {
        None | Some("b64_json") => false,
        Some("url") => true,
        Some(other) => {
            let message = format!("`{other}` is unknown; allowed: b64_json, url");
            return Err(FieldError::new("response_format", message));
        }
    };
    let format = match fields.string(&["output_format"])? {
        None => OutputFormat::Png,
        Some(name) => OutputFormat::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| {
                FieldError::new(
                    "output_format",
                    format!("`{name}` is unknown; allowed: png, jpeg, webp"),
                )
            })?,
    };
    let stream = fields.boolean(&["stream"])?.unwrap_or(false);
    let partials = bounded(fields, "partial_images", 3)?;
    if partials.is_some_and(|count| count > 0) && !stream {
        return Err(FieldError::new("partial_images", "they come only with stream: true"));
    }
    let quality = bounded(fields, "output_compression", 100)?;
    let chosen = quality.filter(|quality| *quality != 100);
    if let (Some(quality), true) = (chosen, format != OutputFormat::Jpeg || by_url) {
        let message = format!("{quality} applies to jpeg in b64_json only; png and webp are lossless here");
        return Err(FieldError::new("output_compression", message));
    }
    Ok(Look {
        by_url,
        stream,
        partials: partials.unwrap_or(0),
        edit,
        format,
        quality: chosen.and_then(|quality| u8::try_from(quality).ok()),
    })
}

fn bounded(fields: &mut Fields, name: &'static str, most: u32) -> Result<Option<u32>, FieldError> {
    let Some(value) = fields.integer(&[name])? else {
        return Ok(None);
    };
    match u32::try_from(value) {
        Ok(number) if number <= most => Ok(Some(number)),
        _ => Err(FieldError::new(
            name,
            format!("{value} is out of range; allowed: 0 to {most}"),
        )),
    }
}
