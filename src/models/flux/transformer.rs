//! The whole transformer.

use candle_core::{D, DType, Device, Result, Tensor};

use super::double::NORM_EPS;
use super::{BlockCache, DoubleBlock, FluxConfig, SingleBlock, TimeTextEmbed};
use crate::ops::{Bias, LayerNorm, Linear, RopeTable};
use crate::weights::{LoadResult, Weights};

/// diffusers' `FluxTransformer2DModel`.
#[derive(Debug)]
pub struct FluxTransformer {
    embed: TimeTextEmbed,
    text_in: Linear,
    image_in: Linear,
    double: Vec<DoubleBlock>,
    single: Vec<SingleBlock>,
    final_modulation: Linear,
    final_norm: LayerNorm,
    out: Linear,
    config: FluxConfig,
    device: Device,
    dtype: DType,
}

/// One evaluation's input.
#[derive(Clone, Copy, Debug)]
pub struct FluxInput<'a> {
    /// Packed latents `(B, N, in_channels)`.
    pub image: &'a Tensor,
    /// T5's hidden states `(B, T, joint_attention_dim)`.
    pub text: &'a Tensor,
    /// CLIP's pooled state `(B, pooled_projection_dim)`.
    pub pooled: &'a Tensor,
    /// Angles of the text's tokens, then of the image's.
    pub positions: &'a RopeTable,
    /// Timestep from 0 to 1000 (the noise level times 1000).
    pub timestep: f32,
    /// Guidance scale; read only by models with a guidance embedding.
    pub guidance: f32,
}

impl FluxTransformer {
    /// Reads the transformer; `progress` is told the share that is read, from 0 to 1.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, config: &FluxConfig, progress: &mut dyn FnMut(f32)) -> LoadResult<Self> {
        let width = config.width();
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.at(name), inputs, outputs, Bias::Yes);
        // A double block has 2.4 times the weights of a single one.
        let (double, single) = (2.4 * config.num_layers as f32, config.num_single_layers as f32);
        let mut done = 0.0;
        let mut count = |share: f32| {
            done += share;
            progress(done / (double + single));
        };
        let double = (0..config.num_layers).map(|i| {
            let block = DoubleBlock::load(&weights.at("transformer_blocks").at(i), config);
            count(2.4);
            block
        });
        let double = double.collect::<LoadResult<_>>()?;
        let single = (0..config.num_single_layers).map(|i| {
            let block = SingleBlock::load(&weights.at("single_transformer_blocks").at(i), config);
            count(1.0);
            block
        });
        Ok(Self {
            embed: TimeTextEmbed::load(&weights.at("time_text_embed"), config)?,
            text_in: linear("context_embedder", config.joint_attention_dim, width)?,
            image_in: linear("x_embedder", config.in_channels, width)?,
            double,
            single: single.collect::<LoadResult<_>>()?,
            final_modulation: linear("norm_out.linear", width, 2 * width)?,
            final_norm: LayerNorm::plain(NORM_EPS),
            out: linear("proj_out", width, config.out_channels())?,
            config: config.clone(),
            device: weights.device().clone(),
            dtype: weights.dtype(),
        })
    }

    /// Its shape.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// In which type it computes.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The velocity `(B, N, out_channels)` in the compute type; inputs may be of any float type.
    ///
    /// With a `cache`, the blocks behind the first are left out where the first one's change says that they would hardly
    /// differ from the last evaluation.
    ///
    /// # Errors
    /// The shapes do not fit, or the device refused.
    pub fn forward(&self, input: &FluxInput<'_>, cache: Option<&mut BlockCache>) -> Result<Tensor> {
        let typed = |x: &Tensor| x.to_dtype(self.dtype);
        let embedding = self
            .embed
            .forward(input.timestep, input.guidance, &typed(input.pooled)?)?;
        let condition = DoubleBlock::condition(&embedding)?;
        let text = self.text_in.forward(&typed(input.text)?)?;
        let image = self.image_in.forward(&typed(input.image)?)?;
        let image = match cache {
            None => self.blocks(0, text, image, &condition, input.positions)?,
            Some(cache) => self.cached_blocks(cache, &text, &image, &condition, input.positions)?,
        };
        self.finish(&image, &condition)
    }

    fn cached_blocks(
        &self,
        cache: &mut BlockCache,
        text: &Tensor,
        image: &Tensor,
        condition: &Tensor,
        positions: &RopeTable,
    ) -> Result<Tensor> {
        let Some(first) = self.double.first() else {
            return self.blocks(0, text.clone(), image.clone(), condition, positions);
        };
        let (new_text, new_image) = first.forward(text, image, condition, positions)?;
        cache.recall_or(image, &new_image, || {
            self.blocks(1, new_text, new_image.clone(), condition, positions)
        })
    }

    /// The image's tokens after every block from double block `from` on.
    fn blocks(
        &self,
        from: usize,
        mut text: Tensor,
        mut image: Tensor,
        condition: &Tensor,
        positions: &RopeTable,
    ) -> Result<Tensor> {
        for block in &self.double[from..] {
            (text, image) = block.forward(&text, &image, condition, positions)?;
        }
        let before = text.dim(1)?;
        let mut tokens = Tensor::cat(&[text, image], 1)?;
        for block in &self.single {
            tokens = block.forward(&tokens, condition, positions)?;
        }
        tokens.narrow(1, before, tokens.dim(1)? - before)?.contiguous()
    }

    fn finish(&self, image: &Tensor, condition: &Tensor) -> Result<Tensor> {
        let parts = self
            .final_modulation
            .forward(condition)?
            .unsqueeze(1)?
            .chunk(2, D::Minus1)?;
        let [scale, shift] = parts.as_slice() else {
            candle_core::bail!("the last modulation has two parts")
        };
        let normed = self
            .final_norm
            .forward_modulated(image, &shift.contiguous()?, &scale.contiguous()?)?;
        self.out.forward(&normed)
    }
}
