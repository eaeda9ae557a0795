//! The operations against torch.

use std::collections::HashMap;
use std::rc::Rc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use sd_worker::ops::{
    Activation, Bias, Conv2d, ConvShape, Embedding, GroupNorm, LayerNorm, Linear, Mask, Padding, RmsNorm, RopeTable,
    TimestepEmbedding, attention, geglu, rope, softmax, upsample_nearest, upsample_nearest2x,
};
use sd_worker::weights::{Factors, RawTensor, StoredType, TensorSource, Weights, WeightsError};

use crate::models::{Model, close, numbers, psnr};

/// Largest difference over the largest value, in f32.
const TOLERANCE: f32 = 1e-5;
/// Least PSNR of 16-bit types, in dB.
const NEAR: f32 = 40.0;

fn file() -> Model {
    Model::open("ops")
}

#[test]
fn convolutions_match() {
    let file = file();
    let after = Padding::AFTER;
    for (key, outputs, kernel, stride, padding) in [
        ("same", 5, 3, 1, Padding::all(1)),
        ("half", 5, 3, 2, Padding::all(1)),
        ("after", 5, 3, 2, after),
        ("point", 4, 1, 1, Padding::all(0)),
        ("wide", 3, 5, 1, Padding::all(2)),
        ("patch", 4, 2, 2, Padding::all(0)),
    ] {
        let shape = ConvShape {
            inputs: 6,
            outputs,
            kernel,
            stride,
            padding,
        };
        let load = |dtype| Conv2d::load(&file.weights(dtype).at("conv").at(key), shape, Bias::Yes).unwrap();
        let (conv, x) = (load(DType::F32), file.tensor("x"));
        let expected = file.tensor(&format!("conv.{key}.out"));
        close(key, &conv.forward(&x).unwrap(), &expected, TOLERANCE);
        let doubled = (&expected + &expected).unwrap();
        close(key, &conv.forward_add(&x, &expected).unwrap(), &doubled, TOLERANCE);
        let channels = Tensor::arange(0f32, 2.0 * outputs as f32, &Device::Cpu)
            .unwrap()
            .reshape((2, outputs))
            .unwrap();
        let raised = expected
            .broadcast_add(&channels.reshape((2, 1, 1, outputs)).unwrap())
            .unwrap();
        close(
            key,
            &conv.forward_add_channels(&x, &channels).unwrap(),
            &raised,
            TOLERANCE,
        );
        for dtype in [DType::BF16, DType::F16] {
            let near = psnr(&load(dtype).forward(&x.to_dtype(dtype).unwrap()).unwrap(), &expected);
            assert!(near > NEAR, "{key} {dtype:?}: {near} dB");
        }
    }
}

#[test]
fn a_picture_smaller_than_the_kernel_is_refused() {
    let shape = ConvShape {
        inputs: 6,
        outputs: 4,
        kernel: 2,
        stride: 2,
        padding: Padding::all(0),
    };
    let conv = Conv2d::load(&file().weights(DType::F32).at("conv.patch"), shape, Bias::Yes).unwrap();
    assert!(
        conv.forward(&Tensor::zeros((1, 1, 5, 6), DType::F32, &Device::Cpu).unwrap())
            .is_err()
    );
}

#[test]
fn norms_match() {
    let file = file();
    let weights = file.weights(DType::F32);
    let x = (file.tensor("x") + 3.0).unwrap();
    let group = GroupNorm::load(&weights.at("gn"), 3, 6, 1e-5).unwrap();
    close("group", &group.forward(&x).unwrap(), &file.tensor("gn.out"), TOLERANCE);
    close(
        "group silu",
        &group.forward_silu(&x).unwrap(),
        &file.tensor("gn.silu"),
        TOLERANCE,
    );
    assert!(GroupNorm::load(&weights.at("gn"), 4, 6, 1e-5).is_err());
    let tokens = file.tensor("tokens");
    let layer = LayerNorm::load(&weights.at("ln"), 8, 1e-5).unwrap();
    close(
        "layer",
        &layer.forward(&tokens).unwrap(),
        &file.tensor("ln.out"),
        TOLERANCE,
    );
    let (shift, scale) = (file.tensor("shift"), file.tensor("scale"));
    let modulated = LayerNorm::plain(1e-6)
        .forward_modulated(&tokens, &shift, &scale)
        .unwrap();
    close("modulated", &modulated, &file.tensor("ln.modulated"), TOLERANCE);
    let rms = RmsNorm::load(&weights.at("rms"), 8, 1e-6).unwrap();
    close(
        "rms",
        &rms.forward(&tokens).unwrap(),
        &file.tensor("rms.out"),
        TOLERANCE,
    );
    let rms = RmsNorm::load(&weights.at("rms_head"), 4, 1e-6).unwrap();
    close(
        "rms of heads",
        &rms.forward_heads(&tokens).unwrap(),
        &file.tensor("rms_head.out"),
        TOLERANCE,
    );
}

#[test]
fn norms_sum_in_f32_whatever_the_type() {
    // Eight bits could not hold the mean of these.
    let x = (file().tensor("x") + 100.0).unwrap().to_dtype(DType::BF16).unwrap();
    let group = |dtype| GroupNorm::load(&file().weights(dtype).at("gn"), 3, 6, 1e-5).unwrap();
    let exact = group(DType::F32).forward(&x.to_dtype(DType::F32).unwrap()).unwrap();
    let near = psnr(&group(DType::BF16).forward(&x).unwrap(), &exact);
    assert!(near > NEAR, "{near} dB");
}

#[test]
fn activations_match() {
    let tokens = file().tensor("tokens");
    for (name, key) in [
        ("silu", "silu"),
        ("gelu", "gelu_erf"),
        ("gelu_new", "gelu_tanh"),
        ("quick_gelu", "quick_gelu"),
    ] {
        let found = Activation::from_name(name).unwrap().apply(&tokens).unwrap();
        close(name, &found, &file().tensor(key), TOLERANCE);
    }
    assert_eq!(
        numbers(&Activation::from_name("relu").unwrap().apply(&tokens).unwrap())
            .iter()
            .filter(|x| **x < 0.0)
            .count(),
        0
    );
    assert!(Activation::from_name("mish").is_none());
    close("geglu", &geglu(&tokens).unwrap(), &file().tensor("geglu"), TOLERANCE);
    close(
        "softmax",
        &softmax(&(&tokens * 30.0).unwrap()).unwrap(),
        &file().tensor("softmax"),
        TOLERANCE,
    );
}

#[test]
fn linear_layers_match() {
    let file = file();
    let linear = Linear::load(&file.weights(DType::F32).at("linear"), 8, 6, Bias::Yes).unwrap();
    let (tokens, expected, gate) = (file.tensor("tokens"), file.tensor("linear.out"), file.tensor("gate"));
    close("linear", &linear.forward(&tokens).unwrap(), &expected, TOLERANCE);
    let activated = linear.forward_act(&tokens, Activation::GeluTanh).unwrap();
    close(
        "act",
        &activated,
        &Activation::GeluTanh.apply(&expected).unwrap(),
        TOLERANCE,
    );
    let doubled = linear.forward_add(&tokens, &expected).unwrap();
    close("add", &doubled, &(&expected * 2.0).unwrap(), TOLERANCE);
    let gated = linear.forward_gated_add(&tokens, &gate, &expected).unwrap();
    close(
        "gated",
        &gated,
        &(&expected + expected.broadcast_mul(&gate).unwrap()).unwrap(),
        TOLERANCE,
    );
}

#[test]
fn a_side_adds_what_a_patched_weight_would_give() {
    let file = file();
    let linear = Linear::load(&file.weights(DType::F32).at("linear"), 8, 6, Bias::Yes).unwrap();
    let tokens = file.tensor("tokens");
    let before = linear.forward(&tokens).unwrap();
    let down = file.tensor("ln.weight").reshape((1, 8)).unwrap();
    let up = file.tensor("gn.weight").reshape((6, 1)).unwrap();
    let factors = Factors::LowRank {
        down: down.clone(),
        up: up.clone(),
    };
    linear.slot().add_side(&factors, 0.7).unwrap();
    let beside = linear.forward(&tokens).unwrap();
    linear.slot().restore();
    let delta = (up.matmul(&down).unwrap() * 0.7).unwrap();
    linear
        .slot()
        .replace(&(linear.slot().original_f32().unwrap() + delta).unwrap())
        .unwrap();
    close("side", &beside, &linear.forward(&tokens).unwrap(), TOLERANCE);
    linear.slot().restore();
    assert_eq!(numbers(&before), numbers(&linear.forward(&tokens).unwrap()));
}

#[test]
fn attention_matches() {
    let file = file();
    let (q, k, v) = (file.tensor("q"), file.tensor("k"), file.tensor("v"));
    let mask = file.tensor("mask");
    let plain = attention(&q, &k, &v, 2, 0.5, Mask::None).unwrap();
    close("plain", &plain, &file.tensor("attention"), TOLERANCE);
    let masked = attention(&q, &k, &v, 2, 0.3, Mask::Add(&mask)).unwrap();
    close("mask", &masked, &file.tensor("attention.mask"), TOLERANCE);
    let causal = attention(&q, &q, &q, 2, 0.5, Mask::Causal).unwrap();
    close("causal", &causal, &file.tensor("attention.causal"), TOLERANCE);
    let low = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
    let near = psnr(
        &attention(&low(&q), &low(&k), &low(&v), 2, 0.5, Mask::None).unwrap(),
        &plain,
    );
    assert!(near > NEAR, "{near} dB");
    assert!(attention(&q, &k, &v, 3, 0.5, Mask::None).is_err());
}

#[test]
fn rope_matches() {
    let file = file();
    let table = RopeTable {
        cos: file.tensor("rope.cos"),
        sin: file.tensor("rope.sin"),
    };
    close(
        "rope",
        &rope(&file.tensor("q"), 2, &table).unwrap(),
        &file.tensor("rope.out"),
        TOLERANCE,
    );
    assert!(rope(&file.tensor("q"), 1, &table).is_err());
}

#[test]
fn timesteps_match() {
    let steps = [0.0, 1.0, 421.5, 999.0];
    let sd = TimestepEmbedding {
        width: 32,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
    };
    let shifted = TimestepEmbedding {
        flip_sin_to_cos: false,
        freq_shift: 1.0,
        ..sd
    };
    // An angle of 999 is known to about 6e-5 in f32, in torch too.
    close(
        "sd",
        &sd.of(&steps, &Device::Cpu).unwrap(),
        &file().tensor("time.sd"),
        1e-4,
    );
    close(
        "shifted",
        &shifted.of(&steps, &Device::Cpu).unwrap(),
        &file().tensor("time.shifted"),
        1e-4,
    );
}

#[test]
fn upsampling_matches() {
    let x = file().tensor("x");
    assert_eq!(
        numbers(&upsample_nearest2x(&x).unwrap()),
        numbers(&file().tensor("up2"))
    );
    let (_, height, width, _) = file().tensor("up_odd").dims4().unwrap();
    assert_eq!(
        numbers(&upsample_nearest(&x, height, width).unwrap()),
        numbers(&file().tensor("up_odd"))
    );
}

/// Tensors as GGUF blocks, in memory.
struct Blocks(HashMap<String, RawTensor>);

impl TensorSource for Blocks {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)> {
        self.0.get(name).map(|raw| (raw.shape.clone(), raw.stored))
    }

    fn read(&self, name: &str) -> Result<RawTensor, WeightsError> {
        self.0
            .get(name)
            .cloned()
            .ok_or_else(|| WeightsError::Missing { name: name.to_owned() })
    }
}

#[test]
fn quantised_layers_compute_with_their_blocks() {
    let dense: Vec<f32> = (0..64 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let dense = Tensor::from_vec(dense, (64, 64), &Device::Cpu).unwrap();
    let blocks = QTensor::quantize(&dense, GgmlDType::Q8_0).unwrap();
    let expanded = blocks.dequantize(&Device::Cpu).unwrap();
    let bytes = blocks.data().unwrap().into_owned();
    let raw = RawTensor {
        stored: StoredType::Ggml(GgmlDType::Q8_0),
        shape: vec![64, 64],
        bytes,
    };
    let weights = |dtype| {
        let source = Blocks(HashMap::from([("layer.weight".to_owned(), raw.clone())]));
        Weights::new(Rc::new(source), Device::Cpu, dtype).at("layer")
    };
    let x = (dense.narrow(0, 3, 5).unwrap() * 0.5).unwrap();
    let expected = x.matmul(&expanded.t().unwrap()).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let linear = Linear::load(&weights(dtype), 64, 64, Bias::No).unwrap();
        assert_eq!(linear.slot().quantisation(), Some(GgmlDType::Q8_0));
        assert_eq!(numbers(&linear.slot().original_f32().unwrap()), numbers(&expanded));
        let found = linear.forward(&x.to_dtype(dtype).unwrap()).unwrap();
        assert_eq!(found.dtype(), dtype);
        let near = psnr(&found, &expected);
        assert!(near > 35.0, "{dtype:?}: {near} dB");
    }
    let rows = Tensor::new(&[[3u32, 9], [0, 63]], &Device::Cpu).unwrap();
    let found = Embedding::load(&weights(DType::F32), 64, 64)
        .unwrap()
        .forward(&rows)
        .unwrap();
    assert_eq!(found.dims(), [2, 2, 64]);
    let picked = expanded.index_select(&rows.flatten_all().unwrap(), 0).unwrap();
    assert_eq!(numbers(&found), numbers(&picked));
}
