//! What steers every block: the timestep, the guidance scale and CLIP's pooled state as one vector; and positions.

use candle_core::{DType, Device, Result, Tensor};

use super::FluxConfig;
use crate::ops::{Activation, Bias, Linear, RopeTable, TimestepEmbedding};
use crate::weights::{LoadResult, Weights};

/// Numbers of the sinusoidal vectors.
const SINUSOIDS: TimestepEmbedding = TimestepEmbedding {
    width: 256,
    flip_sin_to_cos: true,
    freq_shift: 0.0,
};
/// Base of the rotary frequencies.
const THETA: f64 = 10_000.0;

/// diffusers' `CombinedTimestepGuidanceTextProjEmbeddings`, or without guidance `CombinedTimestepTextProjEmbeddings`.
#[derive(Debug)]
pub struct TimeTextEmbed {
    time: TwoLayers,
    guidance: Option<TwoLayers>,
    text: TwoLayers,
}

#[derive(Debug)]
struct TwoLayers {
    first: Linear,
    second: Linear,
}

impl TimeTextEmbed {
    /// Reads the layers at `weights`.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, config: &FluxConfig) -> LoadResult<Self> {
        let width = config.width();
        let of = |name: &str, inputs| TwoLayers::load(&weights.at(name), inputs, width);
        Ok(Self {
            time: of("timestep_embedder", SINUSOIDS.width)?,
            guidance: config
                .guidance_embeds
                .then(|| of("guidance_embedder", SINUSOIDS.width))
                .transpose()?,
            text: of("text_embedder", config.pooled_projection_dim)?,
        })
    }

    /// `(B, width)` in the type of `pooled` `(B, pooled_projection_dim)`, for a timestep from 0 to 1000 and a guidance
    /// scale (read only by a model that has a guidance embedding).
    ///
    /// # Errors
    /// The shapes do not fit, or the device refused.
    pub fn forward(&self, timestep: f32, guidance: f32, pooled: &Tensor) -> Result<Tensor> {
        let batch = pooled.dim(0)?;
        let sinusoids = |value: f32| -> Result<Tensor> {
            SINUSOIDS
                .of(&vec![value; batch], pooled.device())?
                .to_dtype(pooled.dtype())
        };
        let mut sum = self.time.forward(&sinusoids(timestep)?)?;
        if let Some(layers) = &self.guidance {
            sum = (sum + layers.forward(&sinusoids(guidance * 1000.0)?)?)?;
        }
        sum + self.text.forward(pooled)?
    }
}

impl TwoLayers {
    fn load(weights: &Weights, inputs: usize, width: usize) -> LoadResult<Self> {
        Ok(Self {
            first: Linear::load(&weights.at("linear_1"), inputs, width, Bias::Yes)?,
            second: Linear::load(&weights.at("linear_2"), width, width, Bias::Yes)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward_act(x, Activation::Silu)?)
    }
}

/// Positions of `text` tokens (all at the origin) and of a grid of `rows` by `columns` patches behind them.
pub fn positions(text: usize, rows: usize, columns: usize) -> Vec<[f64; 3]> {
    let grid = (0..rows * columns).map(|i| [0.0, (i / columns) as f64, (i % columns) as f64]);
    std::iter::repeat_n([0.0; 3], text).chain(grid).collect()
}

/// Angles of `positions`, computed in `f64` and kept as `f32`: in half precision far patches would fall together.
///
/// # Errors
/// The device refused.
pub fn rope_table(positions: &[[f64; 3]], axes: [usize; 3], device: &Device) -> Result<RopeTable> {
    let half: usize = axes.iter().map(|width| width / 2).sum();
    let (mut cos, mut sin) = (
        Vec::with_capacity(positions.len() * half),
        Vec::with_capacity(positions.len() * half),
    );
    for position in positions {
        for (place, width) in position.iter().zip(axes) {
            for i in 0..width / 2 {
                let angle = place / THETA.powf((2 * i) as f64 / width as f64);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
    }
    let table = |numbers| Tensor::from_vec(numbers, (positions.len(), half), device)?.to_dtype(DType::F32);
    Ok(RopeTable {
        cos: table(cos)?,
        sin: table(sin)?,
    })
}
