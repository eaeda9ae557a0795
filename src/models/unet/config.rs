//! A UNet's `config.json`.

use serde::Deserialize;
use serde_json::Value;

use super::super::ModelError;
use super::super::config::{PerBlock, read, require};

const MODEL: &str = "UNet";

/// The fields of diffusers' `UNet2DConditionModel` that its shape follows from, as the file has them.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Fields {
    sample_size: Option<Value>,
    in_channels: usize,
    out_channels: usize,
    center_input_sample: bool,
    flip_sin_to_cos: bool,
    freq_shift: f32,
    down_block_types: Vec<String>,
    mid_block_type: Option<String>,
    up_block_types: Vec<String>,
    only_cross_attention: PerBlock<bool>,
    block_out_channels: Vec<usize>,
    layers_per_block: PerBlock<usize>,
    downsample_padding: usize,
    mid_block_scale_factor: f64,
    act_fn: String,
    norm_num_groups: Option<usize>,
    norm_eps: f64,
    cross_attention_dim: PerBlock<usize>,
    transformer_layers_per_block: PerBlock<usize>,
    reverse_transformer_layers_per_block: Option<Vec<usize>>,
    encoder_hid_dim: Option<usize>,
    encoder_hid_dim_type: Option<String>,
    attention_head_dim: PerBlock<usize>,
    num_attention_heads: Option<PerBlock<usize>>,
    dual_cross_attention: bool,
    use_linear_projection: bool,
    class_embed_type: Option<String>,
    num_class_embeds: Option<usize>,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
    resnet_time_scale_shift: String,
    resnet_skip_time_act: bool,
    resnet_out_scale_factor: f64,
    time_embedding_type: String,
    time_embedding_dim: Option<usize>,
    time_embedding_act_fn: Option<String>,
    timestep_post_act: Option<String>,
    time_cond_proj_dim: Option<usize>,
    conv_in_kernel: usize,
    conv_out_kernel: usize,
    attention_type: String,
    cross_attention_norm: Option<String>,
}

impl Default for Fields {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(str::to_owned).to_vec();
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names([CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN]),
            mid_block_type: Some(CROSS_MID.to_owned()),
            up_block_types: names([PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP]),
            only_cross_attention: PerBlock::One(false),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::One(2),
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            act_fn: "silu".to_owned(),
            norm_num_groups: Some(32),
            norm_eps: 1e-5,
            cross_attention_dim: PerBlock::One(1280),
            transformer_layers_per_block: PerBlock::One(1),
            reverse_transformer_layers_per_block: None,
            encoder_hid_dim: None,
            encoder_hid_dim_type: None,
            attention_head_dim: PerBlock::One(8),
            num_attention_heads: None,
            dual_cross_attention: false,
            use_linear_projection: false,
            class_embed_type: None,
            num_class_embeds: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            resnet_time_scale_shift: "default".to_owned(),
            resnet_skip_time_act: false,
            resnet_out_scale_factor: 1.0,
            time_embedding_type: "positional".to_owned(),
            time_embedding_dim: None,
            time_embedding_act_fn: None,
            timestep_post_act: None,
            time_cond_proj_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            attention_type: "default".to_owned(),
            cross_attention_norm: None,
        }
    }
}

const PLAIN_DOWN: &str = "DownBlock2D";
const CROSS_DOWN: &str = "CrossAttnDownBlock2D";
const PLAIN_UP: &str = "UpBlock2D";
const CROSS_UP: &str = "CrossAttnUpBlock2D";
const PLAIN_MID: &str = "UNetMidBlock2D";
const CROSS_MID: &str = "UNetMidBlock2DCrossAttn";

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
    /// Refuses what is not built here.
    fn check(&self) -> Result<(), ModelError> {
        let none =
            |field, value: &Option<String>| require(value.is_none(), MODEL, field, value, "only null is supported");
        none("class_embed_type", &self.class_embed_type)?;
        none("encoder_hid_dim_type", &self.encoder_hid_dim_type)?;
        none("time_embedding_act_fn", &self.time_embedding_act_fn)?;
        none("timestep_post_act", &self.timestep_post_act)?;
        none("cross_attention_norm", &self.cross_attention_norm)?;
        let unset =
            |field, value: Option<usize>| require(value.is_none(), MODEL, field, value, "only null is supported");
        unset("num_class_embeds", self.num_class_embeds)?;
        unset("encoder_hid_dim", self.encoder_hid_dim)?;
        let off = |field, on: bool| require(!on, MODEL, field, on, "only false is supported");
        off("dual_cross_attention", self.dual_cross_attention)?;
        off("resnet_skip_time_act", self.resnet_skip_time_act)?;
        let only = |field, value: &str, wanted: &str, allowed| require(value == wanted, MODEL, field, value, allowed);
        only(
            "resnet_time_scale_shift",
            &self.resnet_time_scale_shift,
            "default",
            "only \"default\" is supported",
        )?;
        only(
            "time_embedding_type",
            &self.time_embedding_type,
            "positional",
            "only \"positional\" is supported",
        )?;
        only(
            "attention_type",
            &self.attention_type,
            "default",
            "only \"default\" is supported",
        )?;
        let silu = ["silu", "swish"].contains(&self.act_fn.as_str());
        require(silu, MODEL, "act_fn", &self.act_fn, "only \"silu\" is supported")?;
        let one = |field, value: f64| require(value == 1.0, MODEL, field, value, "only 1 is supported");
        one("resnet_out_scale_factor", self.resnet_out_scale_factor)?;
        one("mid_block_scale_factor", self.mid_block_scale_factor)?;
        let heads = self.num_attention_heads.is_none();
        require(
            heads,
            MODEL,
            "num_attention_heads",
            &self.num_attention_heads,
            "only null is supported",
        )?;
        let odd = |field, side: usize| require(side % 2 == 1, MODEL, field, side, "it must be odd");
        odd("conv_in_kernel", self.conv_in_kernel)?;
        odd("conv_out_kernel", self.conv_out_kernel)
    }

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
