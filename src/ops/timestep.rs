//! Timesteps as vectors of sines and cosines.

use candle_core::{Device, Result, Tensor};

/// How timesteps become vectors: diffusers' `get_timestep_embedding`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimestepEmbedding {
    /// Numbers of each vector, even.
    pub width: usize,
    /// Cosines first.
    pub flip_sin_to_cos: bool,
    /// Taken off the count of frequencies before they are spaced.
    pub freq_shift: f32,
}

impl TimestepEmbedding {
    /// One vector for each of `timesteps`: `(count, width)`, always `f32`.
    ///
    /// # Errors
    /// The device refused.
    pub fn of(&self, timesteps: &[f32], device: &Device) -> Result<Tensor> {
        let half = self.width / 2;
        let step = -(10_000f64.ln() as f32) / (half as f32 - self.freq_shift);
        let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * step).exp()).collect();
        let mut numbers = Vec::with_capacity(timesteps.len() * self.width);
        for t in timesteps {
            let angles = frequencies.iter().map(|f| t * f);
            let (sines, cosines) = (angles.clone().map(f32::sin), angles.map(f32::cos));
            if self.flip_sin_to_cos {
                numbers.extend(cosines.chain(sines));
            } else {
                numbers.extend(sines.chain(cosines));
            }
        }
        Tensor::from_vec(numbers, (timesteps.len(), 2 * half), device)
    }
}
