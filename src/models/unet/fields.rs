//! A UNet's `config.json` as the file has it.

use serde::Deserialize;
use serde_json::Value;

use super::super::ModelError;
use super::super::config::{PerBlock, require};

pub(super) const MODEL: &str = "UNet";

pub(super) const PLAIN_DOWN: &str = "DownBlock2D";
pub(super) const CROSS_DOWN: &str = "CrossAttnDownBlock2D";
pub(super) const PLAIN_UP: &str = "UpBlock2D";
pub(super) const CROSS_UP: &str = "CrossAttnUpBlock2D";
pub(super) const PLAIN_MID: &str = "UNetMidBlock2D";
pub(super) const CROSS_MID: &str = "UNetMidBlock2DCrossAttn";

/// The fields of diffusers' `UNet2DConditionModel` that its shape follows from, as the file has them.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    pub sample_size: Option<Value>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f32,
    pub down_block_types: Vec<String>,
    pub mid_block_type: Option<String>,
    pub up_block_types: Vec<String>,
    pub only_cross_attention: PerBlock<bool>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: PerBlock<usize>,
    pub downsample_padding: usize,
    pub mid_block_scale_factor: f64,
    pub act_fn: String,
    pub norm_num_groups: Option<usize>,
    pub norm_eps: f64,
    pub cross_attention_dim: PerBlock<usize>,
    pub transformer_layers_per_block: PerBlock<usize>,
    pub reverse_transformer_layers_per_block: Option<Vec<usize>>,
    pub encoder_hid_dim: Option<usize>,
    pub encoder_hid_dim_type: Option<String>,
    pub attention_head_dim: PerBlock<usize>,
    pub num_attention_heads: Option<PerBlock<usize>>,
    pub dual_cross_attention: bool,
    pub use_linear_projection: bool,
    pub class_embed_type: Option<String>,
    pub num_class_embeds: Option<usize>,
    pub addition_embed_type: Option<String>,
    pub addition_time_embed_dim: Option<usize>,
    pub projection_class_embeddings_input_dim: Option<usize>,
    pub resnet_time_scale_shift: String,
    pub resnet_skip_time_act: bool,
    pub resnet_out_scale_factor: f64,
    pub time_embedding_type: String,
    pub time_embedding_dim: Option<usize>,
    pub time_embedding_act_fn: Option<String>,
    pub timestep_post_act: Option<String>,
    pub time_cond_proj_dim: Option<usize>,
    pub conv_in_kernel: usize,
    pub conv_out_kernel: usize,
    pub attention_type: String,
    pub cross_attention_norm: Option<String>,
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

impl Fields {
    /// Refuses what is not built here.
    pub fn check(&self) -> Result<(), ModelError> {
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
}
