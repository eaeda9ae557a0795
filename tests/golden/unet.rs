//! UNets against diffusers, each block and the whole.

use candle_core::{DType, Tensor};
use sd_worker::models::unet::{Added, UNet, UNetConfig};

use crate::models::{Model, close, psnr, worst};

/// Largest difference over the largest value, in f32.
const TOLERANCE: f32 = 1e-4;
/// Least PSNR of 16-bit types, in dB.
const NEAR: f32 = 30.0;

fn config(model: &Model) -> UNetConfig {
    UNetConfig::parse(&model.config()).unwrap()
}

fn unet(model: &Model, dtype: DType) -> UNet {
    UNet::load(&model.weights(dtype), &config(model)).unwrap()
}

fn added(model: &Model) -> Added {
    let text_time = model.has("case.sizes").then(|| {
        let sizes: Vec<Vec<f32>> = model.case("sizes").to_vec2().unwrap();
        let sizes = sizes.into_iter().map(|row| row.try_into().unwrap()).collect();
        (model.case("pooled"), sizes)
    });
    Added {
        text_time,
        guidance: model.has("case.guidance").then(|| model.case("guidance")),
    }
}

fn run(model: &Model, unet: &UNet, show: &mut dyn FnMut(&str, &Tensor)) -> Tensor {
    let prompt = unet.prepare(&model.case("text")).unwrap();
    let t = model.case("t").to_vec1::<f32>().unwrap()[0];
    unet.forward_shown(&model.case("x"), t, &prompt, &added(model), show)
        .unwrap()
}

fn matches(name: &'static str) {
    let model = Model::open(name);
    let mut blocks = 0;
    let out = run(&model, &unet(&model, DType::F32), &mut |block, found| {
        close(
            &format!("{name} {block}"),
            found,
            &model.case(&format!("at.{block}")),
            TOLERANCE,
        );
        blocks += 1;
    });
    assert!(blocks >= 5, "{blocks} blocks seen");
    close(name, &out, &model.case("out"), TOLERANCE);
}

#[test]
fn sd1_with_convolutions_around_attention_matches() {
    matches("unet_sd1");
}

#[test]
fn sd2_with_linear_layers_and_heads_by_level_matches() {
    matches("unet_sd2");
}

#[test]
fn nine_channels_match() {
    matches("unet_inpaint");
    assert_eq!(config(&Model::open("unet_inpaint")).in_channels, 9);
}

#[test]
fn sdxl_with_pooled_text_and_sizes_matches() {
    matches("unet_xl");
    assert!(config(&Model::open("unet_xl")).takes_text_time);
}

#[test]
fn rarer_options_match() {
    matches("unet_odd");
}

#[test]
fn without_a_middle_it_matches() {
    matches("unet_no_mid");
}

#[test]
fn sixteen_bit_types_come_near() {
    for name in ["unet_sd2", "unet_xl"] {
        let model = Model::open(name);
        for dtype in [DType::BF16, DType::F16] {
            let near = psnr(&run(&model, &unet(&model, dtype), &mut |_, _| ()), &model.case("out"));
            assert!(near > NEAR, "{name} {dtype:?}: {near} dB");
        }
    }
}

#[test]
fn what_the_model_is_told_must_be_what_it_takes() {
    let (sd, xl) = (Model::open("unet_inpaint"), Model::open("unet_xl"));
    for (model, told) in [(&sd, added(&xl)), (&xl, added(&sd))] {
        let unet = unet(model, DType::F32);
        let prompt = unet.prepare(&model.case("text")).unwrap();
        assert!(unet.forward(&model.case("x"), 1.0, &prompt, &told).is_err());
    }
}

#[test]
fn every_layer_can_be_patched_and_restored() {
    let model = Model::open("unet_xl");
    let weights = model.weights(DType::F32);
    let unet = UNet::load(&weights, &config(&model)).unwrap();
    let names = weights.layers().names();
    for name in [
        "conv_in",
        "down_blocks.1.attentions.0.proj_in",
        "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
        "mid_block.attentions.0.transformer_blocks.2.ff.net.0.proj",
        "up_blocks.0.resnets.1.conv_shortcut",
        "up_blocks.0.upsamplers.0.conv",
        "add_embedding.linear_1",
    ] {
        let slot = weights
            .layers()
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in {names:?}"));
        slot.replace(&(slot.original_f32().unwrap() * 1.5).unwrap()).unwrap();
        let moved = worst(&run(&model, &unet, &mut |_, _| ()), &model.case("out"));
        assert!(moved > TOLERANCE, "{name} changes nothing");
        slot.restore();
        close(name, &run(&model, &unet, &mut |_, _| ()), &model.case("out"), TOLERANCE);
    }
}

#[test]
fn what_is_not_built_here_is_refused_by_field() {
    for (field, json) in [
        ("class_embed_type", r#"{"class_embed_type": "timestep"}"#),
        ("num_class_embeds", r#"{"num_class_embeds": 7}"#),
        (
            "down_block_types",
            r#"{"down_block_types": ["KDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]}"#,
        ),
        (
            "up_block_types",
            r#"{"up_block_types": ["UpBlock2D"], "down_block_types": ["DownBlock2D"]}"#,
        ),
        (
            "mid_block_type",
            r#"{"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}"#,
        ),
        ("addition_embed_type", r#"{"addition_embed_type": "image"}"#),
        ("addition_time_embed_dim", r#"{"addition_embed_type": "text_time"}"#),
        (
            "resnet_time_scale_shift",
            r#"{"resnet_time_scale_shift": "scale_shift"}"#,
        ),
        ("dual_cross_attention", r#"{"dual_cross_attention": true}"#),
        ("attention_head_dim", r#"{"attention_head_dim": [1, 2]}"#),
        ("act_fn", r#"{"act_fn": "mish"}"#),
        ("conv_in_kernel", r#"{"conv_in_kernel": 4}"#),
    ] {
        let error = UNetConfig::parse(json).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}
