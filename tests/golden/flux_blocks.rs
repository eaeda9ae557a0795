//! Each part of the FLUX transformer against diffusers. Recipe: `tests/fixtures/flux/make_flux.py`.

use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use sd_worker::models::flux::{
    BlockCache, DoubleBlock, FluxConfig, FluxInput, FluxTransformer, SingleBlock, TimeTextEmbed, positions, rope_table,
};
use sd_worker::ops::RopeTable;
use sd_worker::weights::{TensorSource, Weights};

use crate::flux::{close, fixture, json, tensors, worst};

/// Largest difference over the largest value, in f32.
const TOLERANCE: f32 = 1e-4;
/// The same with bf16's eight bits, over the whole transformer.
const TOLERANCE_BF16: f32 = 0.05;

fn weights(dtype: DType) -> Weights {
    let source: Rc<dyn TensorSource> = Rc::new(tensors("dev/transformer/diffusion_pytorch_model.safetensors"));
    Weights::new(source, Device::Cpu, dtype)
}

fn config() -> FluxConfig {
    serde_json::from_value(json("dev/transformer/config.json")).unwrap()
}

fn block(name: &str) -> Tensor {
    fixture("blocks.safetensors", name)
}

/// Seven text tokens and a grid of 3 x 5 patches.
fn angles() -> RopeTable {
    rope_table(&positions(7, 3, 5), config().axes_dims_rope, &Device::Cpu).unwrap()
}

#[test]
fn the_shapes_tell_the_configuration() {
    for model in ["dev", "schnell", "fill"] {
        let source: Rc<dyn TensorSource> = Rc::new(tensors(&format!(
            "{model}/transformer/diffusion_pytorch_model.safetensors"
        )));
        let guessed = FluxConfig::from_weights(&Weights::new(source, Device::Cpu, DType::F32)).unwrap();
        let written: FluxConfig = serde_json::from_value(json(&format!("{model}/transformer/config.json"))).unwrap();
        assert_eq!(guessed, written, "{model}");
    }
}

#[test]
fn angles_of_far_patches_are_exact() {
    let ids: Vec<Vec<f32>> = block("rope.ids").to_vec2().unwrap();
    let ids: Vec<[f64; 3]> = ids.iter().map(|p| [p[0], p[1], p[2]].map(f64::from)).collect();
    let table = rope_table(&ids, config().axes_dims_rope, &Device::Cpu).unwrap();
    // diffusers gives each angle twice.
    let every_other = |name: &str| {
        let twice = block(name);
        let (rows, width) = twice.dims2().unwrap();
        twice
            .reshape((rows, width / 2, 2))
            .unwrap()
            .narrow(2, 0, 1)
            .unwrap()
            .squeeze(2)
            .unwrap()
    };
    close("cos", &table.cos, &every_other("rope.cos"), 1e-6);
    close("sin", &table.sin, &every_other("rope.sin"), 1e-6);
}

#[test]
fn time_guidance_and_text_embedding() {
    let embed = TimeTextEmbed::load(&weights(DType::F32).at("time_text_embed"), &config()).unwrap();
    let found = embed.forward(738.1, 3.5, &block("pooled")).unwrap();
    close("time_text", &found, &block("time_text.out0"), TOLERANCE);
}

#[test]
fn a_double_block() {
    let loaded = DoubleBlock::load(&weights(DType::F32).at("transformer_blocks.0"), &config()).unwrap();
    let condition = DoubleBlock::condition(&block("double.temb")).unwrap();
    let (text, image) = loaded
        .forward(
            &block("double.encoder_hidden_states"),
            &block("double.hidden_states"),
            &condition,
            &angles(),
        )
        .unwrap();
    close("text", &text, &block("double.out0"), TOLERANCE);
    close("image", &image, &block("double.out1"), TOLERANCE);
}

#[test]
fn a_single_block() {
    let loaded = SingleBlock::load(&weights(DType::F32).at("single_transformer_blocks.1"), &config()).unwrap();
    let condition = DoubleBlock::condition(&block("single.temb")).unwrap();
    let tokens = Tensor::cat(
        &[block("single.encoder_hidden_states"), block("single.hidden_states")],
        1,
    )
    .unwrap();
    let found = loaded.forward(&tokens, &condition, &angles()).unwrap();
    let expected = Tensor::cat(&[block("single.out0"), block("single.out1")], 1).unwrap();
    close("single", &found, &expected, TOLERANCE);
}

fn velocity(dtype: DType, cache: Option<&mut BlockCache>) -> Tensor {
    let transformer = FluxTransformer::load(&weights(dtype), &config(), &mut |_| ()).unwrap();
    evaluate(&transformer, 738.1, cache)
}

fn evaluate(transformer: &FluxTransformer, timestep: f32, cache: Option<&mut BlockCache>) -> Tensor {
    let (image, text, pooled, positions) = (block("image"), block("text"), block("pooled"), angles());
    let input = FluxInput {
        image: &image,
        text: &text,
        pooled: &pooled,
        positions: &positions,
        timestep,
        guidance: 3.5,
    };
    transformer.forward(&input, cache).unwrap()
}

#[test]
fn the_whole_transformer() {
    close("f32", &velocity(DType::F32, None), &block("out"), TOLERANCE);
    close("bf16", &velocity(DType::BF16, None), &block("out"), TOLERANCE_BF16);
}

#[test]
fn the_block_cache_is_exact_until_it_reuses() {
    let transformer = FluxTransformer::load(&weights(DType::F32), &config(), &mut |_| ()).unwrap();
    let mut never = BlockCache::new(0.0);
    let mut often = BlockCache::new(0.5);
    let mut reused = [0, 0];
    for timestep in [738.1, 737.0, 300.0] {
        let plain = evaluate(&transformer, timestep, None);
        close(
            "never",
            &evaluate(&transformer, timestep, Some(&mut never)),
            &plain,
            1e-6,
        );
        assert!(worst(&evaluate(&transformer, timestep, Some(&mut often)), &plain) < 0.2);
        reused[0] += usize::from(never.reused());
        reused[1] += usize::from(often.reused());
    }
    assert_eq!(reused[0], 0);
    assert!(reused[1] >= 1);
}
