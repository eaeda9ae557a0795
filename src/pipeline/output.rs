//! A painted picture as a file, with what it was made from.

use image::RgbImage;

use super::PipelineError;
use super::image_io::{self, DEFAULT_JPEG_QUALITY};
use super::parameters::Parameters;
use crate::domain::model::ModelInfo;
use crate::domain::picture::EncodedImage;
use crate::domain::request::{GenerationRequest, Operation};

/// Encodes picture `index` of a job.
///
/// # Errors
/// The encoder refused.
pub fn encode(
    picture: &RgbImage,
    request: &GenerationRequest,
    info: &ModelInfo,
    index: u64,
) -> Result<EncodedImage, PipelineError> {
    let seed = request.seed.wrapping_add(index);
    let parameters = Parameters {
        prompt: request.prompt.clone(),
        negative_prompt: request.negative_prompt.clone(),
        steps: request.steps,
        sampler: request.sampler,
        schedule: request.schedule,
        cfg_scale: request.guidance_scale,
        seed,
        size: request.size,
        model: info.name.clone(),
        denoising_strength: match &request.operation {
            Operation::TextToImage => None,
            Operation::ImageToImage { strength, .. } | Operation::Inpaint { strength, .. } => Some(*strength),
        },
        clip_skip: request.clip_skip,
        extra: Vec::new(),
    };
    let text = parameters.to_string();
    Ok(EncodedImage {
        bytes: image_io::encode(picture, request.output_format, DEFAULT_JPEG_QUALITY, Some(&text))?,
        format: request.output_format,
        size: request.size,
        seed,
    })
}
