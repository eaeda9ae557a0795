//! A UNet's shape, as its `config.json` asks for it.

use serde_json::Value;

use super::super::ModelError;
use super::super::config::{PerBlock, read, require};
use super::fields::{CROSS_DOWN, CROSS_MID, CROSS_UP, Fields, MODEL, PLAIN_DOWN, PLAIN_MID, PLAIN_UP};

/// The attention of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttentionShape {
    /// Heads; the files call it `attention_head_dim`, a slip that diffusers keeps.
    pub heads: usize,
    /// Transformer layers in a row.
    pub depth: usize,
    /// Width of the prompt's states.
    pub prompt: usize,
    /// The first attention of each layer looks at the prompt too.
    pub only_cross: bool,
    /// Projections around it are linear layers, not 1x1 convolutions.
    pub linear: bool,
}

/// One level of the UNet, on the way down or up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub channels: usize,
    /// Residual blocks on the way down; one more on the way up.
    pub layers: usize,
    pub attention: Option<AttentionShape>,
}

/// What stands between the ways down and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mid {
    Absent,
    /// A single residual block (diffusers builds it without attention).
    Plain,
    Attention(AttentionShape),
}

/// Embeddings of SDXL's pooled text and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TextTime {
    /// Width of each size's vector.
    pub each: usize,
    /// Width of all of them and the pooled text.
    pub total: usize,
}

/// A UNet's shape, checked.
#[derive(Clone, Debug)]
pub struct UNetConfig {
    /// Channels of the input: 4, or 9 for an inpainting model (latents, mask, masked picture's latents).
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Side of the latents that it was trained on, where the file says so.
    pub sample_size: Option<usize>,
    /// Width of the prompt's states that it looks at.
    pub cross_attention_dim: usize,
    /// Whether it takes pooled text and sizes, as SDXL does.
    pub takes_text_time: bool,
    /// Width of the guidance embedding, in distilled models (LCM) that have one.
    pub guidance_embedding: Option<usize>,
    pub(super) center_input: bool,
    pub(super) flip_sin_to_cos: bool,
    pub(super) freq_shift: f32,
    pub(super) time_width: usize,
    pub(super) down: Vec<Level>,
    pub(super) mid: Mid,
    /// Levels on the way up, deepest first.
    pub(super) up: Vec<Level>,
    pub(super) groups: usize,
    pub(super) eps: f64,
    pub(super) text_time: Option<TextTime>,
    pub(super) conv_in_kernel: usize,
    pub(super) conv_out_kernel: usize,
    pub(super) downsample_padding: usize,
}

impl UNetConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// It is not one, or asks for something that is not built here; the message names the field.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let fields: Fields = read(MODEL, text)?;
        fields.check()?;
        fields.plan()
    }
}

impl Fields {
    fn plan(&self) -> Result<UNetConfig, ModelError> {
        let count = self.block_out_channels.len();
        let lists = "it must be one value, or a list as long as block_out_channels";
        let spread = |field, values: &PerBlock<usize>| {
            values
                .spread(count)
                .ok_or_else(|| unsupported(field, format!("{values:?}"), lists))
        };
        require(
            count > 0,
            MODEL,
            "block_out_channels",
            &self.block_out_channels,
            "it must not be empty",
        )?;
        let fits = self.down_block_types.len() == count && self.up_block_types.len() == count;
        require(
            fits,
            MODEL,
            "down_block_types",
            &self.down_block_types,
            "it, up_block_types and block_out_channels must be equally long",
        )?;
        let layers = spread("layers_per_block", &self.layers_per_block)?;
        let heads = spread("attention_head_dim", &self.attention_head_dim)?;
        let prompts = spread("cross_attention_dim", &self.cross_attention_dim)?;
        let depths = spread("transformer_layers_per_block", &self.transformer_layers_per_block)?;
        let only_cross = self.only_cross_attention.spread(count).ok_or_else(|| {
            unsupported(
                "only_cross_attention",
                format!("{:?}", self.only_cross_attention),
                lists,
            )
        })?;
        let mut depths_up: Vec<usize> = depths.iter().rev().copied().collect();
        if let Some(given) = &self.reverse_transformer_layers_per_block {
            require(
                given.len() == count,
                MODEL,
                "reverse_transformer_layers_per_block",
                given,
                lists,
            )?;
            depths_up.clone_from(given);
        }
        let shape = |i: usize, depth: usize, only_cross: bool| AttentionShape {
            heads: heads[i],
            depth,
            prompt: prompts[i],
            only_cross,
            linear: self.use_linear_projection,
        };
        let level = |i: usize, attention| Level {
            channels: self.block_out_channels[i],
            layers: layers[i],
            attention,
        };
        let mut down = Vec::with_capacity(count);
        for (i, name) in self.down_block_types.iter().enumerate() {
            let attends = attends(name, PLAIN_DOWN, CROSS_DOWN, "down_block_types")?;
            down.push(level(i, attends.then(|| shape(i, depths[i], only_cross[i]))));
        }
        let mut up = Vec::with_capacity(count);
        for (j, name) in self.up_block_types.iter().enumerate() {
            let i = count - 1 - j;
            let attends = attends(name, PLAIN_UP, CROSS_UP, "up_block_types")?;
            up.push(level(i, attends.then(|| shape(i, depths_up[j], only_cross[i]))));
        }
        let last = count - 1;
        let mid = match self.mid_block_type.as_deref() {
            None => Mid::Absent,
            Some(PLAIN_MID) => Mid::Plain,
            Some(CROSS_MID) => Mid::Attention(shape(last, depths[last], false)),
            Some(other) => {
                return Err(unsupported(
                    "mid_block_type",
                    other,
                    "UNetMidBlock2DCrossAttn, UNetMidBlock2D and null are supported",
                ));
            }
        };
        let text_time = self.text_time()?;
        Ok(UNetConfig {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            sample_size: self
                .sample_size
                .as_ref()
                .and_then(Value::as_u64)
                .map(|side| side as usize),
            cross_attention_dim: prompts[0],
            takes_text_time: text_time.is_some(),
            guidance_embedding: self.time_cond_proj_dim,
            center_input: self.center_input_sample,
            flip_sin_to_cos: self.flip_sin_to_cos,
            freq_shift: self.freq_shift,
            time_width: self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0]),
            down,
            mid,
            up,
            groups: self
                .norm_num_groups
                .ok_or_else(|| unsupported("norm_num_groups", "null", "it must be a number"))?,
            eps: self.norm_eps,
            text_time,
            conv_in_kernel: self.conv_in_kernel,
            conv_out_kernel: self.conv_out_kernel,
            downsample_padding: self.downsample_padding,
        })
    }

    fn text_time(&self) -> Result<Option<TextTime>, ModelError> {
        let missing = |field| unsupported(field, "null", "an addition_embed_type of text_time needs it");
        match self.addition_embed_type.as_deref() {
            None => Ok(None),
            Some("text_time") => Ok(Some(TextTime {
                each: self
                    .addition_time_embed_dim
                    .ok_or_else(|| missing("addition_time_embed_dim"))?,
                total: self
                    .projection_class_embeddings_input_dim
                    .ok_or_else(|| missing("projection_class_embeddings_input_dim"))?,
            })),
            Some(other) => Err(unsupported(
                "addition_embed_type",
                other,
                "only \"text_time\" and null are supported",
            )),
        }
    }
}

/// Whether a block of this type has attention.
fn attends(name: &str, plain: &str, cross: &str, field: &'static str) -> Result<bool, ModelError> {
    if name == cross {
        return Ok(true);
    }
    let allowed = "plain blocks and blocks with cross-attention are supported";
    require(name == plain, MODEL, field, name, allowed).map(|()| false)
}

fn unsupported(field: &'static str, value: impl Into<String>, allowed: &'static str) -> ModelError {
    ModelError::Unsupported {
        model: MODEL,
        field,
        value: value.into(),
        allowed,
    }
}
