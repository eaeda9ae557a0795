//! What the model's output means, and the clean latents that follow from it.

use serde::Deserialize;

/// What the model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Prediction {
    #[serde(rename = "epsilon")]
    Epsilon,
    #[serde(rename = "v_prediction")]
    V,
    #[serde(rename = "sample", alias = "original_sample")]
    Sample,
    #[serde(rename = "flow_prediction")]
    Flow,
}

impl Prediction {
    /// Clean latents from variance-exploding ones: `x = x0 + sigma * noise`.
    pub(super) fn denoise_ve(self, sigma: f32, output: &[f32], latents: &[f32], denoised: &mut Vec<f32>) {
        denoised.clear();
        let pairs = latents.iter().zip(output);
        match self {
            Self::Epsilon | Self::Flow => denoised.extend(pairs.map(|(x, o)| x - sigma * o)),
            Self::V => {
                let square = sigma * sigma + 1.0;
                let c_out = -sigma / square.sqrt();
                denoised.extend(pairs.map(|(x, o)| o * c_out + x / square));
            }
            Self::Sample => denoised.extend_from_slice(output),
        }
    }

    /// Clean latents from variance-preserving (or flow) ones: `x = alpha * x0 + sigma * noise`.
    pub(super) fn denoise_vp(self, alpha: f32, sigma: f32, output: &[f32], latents: &[f32], denoised: &mut Vec<f32>) {
        denoised.clear();
        let pairs = latents.iter().zip(output);
        match self {
            Self::Epsilon => denoised.extend(pairs.map(|(x, o)| (x - sigma * o) / alpha)),
            Self::V => denoised.extend(pairs.map(|(x, o)| alpha * x - sigma * o)),
            Self::Sample => denoised.extend_from_slice(output),
            Self::Flow => denoised.extend(pairs.map(|(x, o)| x - sigma * o)),
        }
    }

    /// The noise in one variance-preserving latent.
    pub(super) fn epsilon_vp(self, alpha: f32, sigma: f32, output: f32, latent: f32) -> f32 {
        match self {
            Self::Epsilon => output,
            Self::V => alpha * output + sigma * latent,
            Self::Sample => (latent - alpha * output) / sigma,
            Self::Flow => latent + alpha * output,
        }
    }
}
