//! Queries, keys and values of one stream of tokens.

use candle_core::{Result, Tensor};

use crate::ops::{Bias, Linear, RmsNorm};
use crate::weights::{LoadResult, Weights};

/// Adds to the mean square of the query and key norms.
const NORM_EPS: f64 = 1e-6;

/// Names of the layers of one stream below `attn`.
pub(super) struct Names {
    pub(super) q: &'static str,
    pub(super) k: &'static str,
    pub(super) v: &'static str,
    pub(super) norm_q: &'static str,
    pub(super) norm_k: &'static str,
}

/// The image's stream, and the only one of a single block.
pub(super) const IMAGE: Names = Names {
    q: "to_q",
    k: "to_k",
    v: "to_v",
    norm_q: "norm_q",
    norm_k: "norm_k",
};

/// The text's stream in a double block.
pub(super) const TEXT: Names = Names {
    q: "add_q_proj",
    k: "add_k_proj",
    v: "add_v_proj",
    norm_q: "norm_added_q",
    norm_k: "norm_added_k",
};

/// Projects tokens to queries, keys and values; queries and keys are normalised head by head.
#[derive(Debug)]
pub(super) struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    norm_q: RmsNorm,
    norm_k: RmsNorm,
}

impl Projections {
    pub(super) fn load(weights: &Weights, names: &Names, width: usize, head: usize) -> LoadResult<Self> {
        let linear = |name: &str| Linear::load(&weights.at(name), width, width, Bias::Yes);
        let norm = |name: &str| RmsNorm::load(&weights.at(name), head, NORM_EPS);
        Ok(Self {
            q: linear(names.q)?,
            k: linear(names.k)?,
            v: linear(names.v)?,
            norm_q: norm(names.norm_q)?,
            norm_k: norm(names.norm_k)?,
        })
    }

    /// Queries, keys and values of `x` `(B, N, width)`, each of that shape.
    pub(super) fn forward(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let q = self.norm_q.forward_heads(&self.q.forward(x)?)?;
        let k = self.norm_k.forward_heads(&self.k.forward(x)?)?;
        Ok([q, k, self.v.forward(x)?])
    }
}
