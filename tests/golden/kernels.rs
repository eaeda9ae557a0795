//! The CPU's kernels behind the operations against the plain operations, on shapes with tails.

use std::rc::Rc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use sd_worker::ops::{
    Activation, Bias, Conv2d, ConvShape, GegluLinear, GroupNorm, LayerNorm, Linear, Mask, Padding, RmsNorm, RopeTable,
    attention, concat, geglu, plainly, rope, upsample_nearest2x,
};
use sd_worker::weights::{Factors, RandomTensors, StoredType, Weights};

/// Largest difference over the largest value: f32, and bf16 (a few roundings of 2^-9).
const TOLERANCES: [(DType, f32); 2] = [(DType::F32, 2e-5), (DType::BF16, 2e-2)];

fn weights(stored: StoredType, dtype: DType) -> Weights {
    Weights::new(Rc::new(RandomTensors::new(stored)), Device::Cpu, dtype)
}

fn numbers(dims: &[usize], dtype: DType) -> Tensor {
    let count: usize = dims.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0)
        .collect();
    Tensor::from_vec(values, dims, &Device::Cpu)
        .and_then(|t| t.to_dtype(dtype))
        .unwrap()
}

/// The same computation by kernels and plainly.
fn agree(what: &str, tolerance: f32, compute: impl Fn() -> Result<Tensor>) {
    let (fast, plain) = (compute().unwrap(), plainly(&compute).unwrap());
    assert_eq!((fast.dims(), fast.dtype()), (plain.dims(), plain.dtype()), "{what}");
    let values = |t: Tensor| -> Vec<f32> {
        let t = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        t.to_vec1().unwrap()
    };
    let (fast, plain) = (values(fast), values(plain));
    let largest = plain.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = fast.iter().zip(&plain).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off <= tolerance * largest, "{what}: {off} off, largest {largest}");
}

#[test]
fn linear_layers_agree() {
    for (dtype, tolerance) in TOLERANCES {
        let w = weights(StoredType::F32, dtype);
        let layer = Linear::load(&w, 70, 45, Bias::Yes).unwrap();
        let x = numbers(&[2, 19, 70], dtype);
        let residual = numbers(&[2, 19, 45], dtype);
        agree("linear", tolerance, || layer.forward(&x));
        for activation in [
            Activation::Silu,
            Activation::GeluErf,
            Activation::GeluTanh,
            Activation::QuickGelu,
            Activation::Relu,
        ] {
            agree("linear, activated", tolerance, || layer.forward_act(&x, activation));
            agree("activation", tolerance, || activation.apply(&x));
        }
        agree("linear, added", tolerance, || layer.forward_add(&x, &residual));
        for pictures in [1, 2] {
            let gate = numbers(&[pictures, 1, 45], dtype);
            agree("linear, gated", tolerance, || {
                layer.forward_gated_add(&x, &gate, &residual)
            });
        }
        let gated = GegluLinear::load(&w.at("gated"), 70, 44).unwrap();
        agree("geglu layer", tolerance, || gated.forward(&x));
        agree("geglu", tolerance, || geglu(&x));
    }
}

fn low_rank(down: &Tensor, up: &Tensor) -> Factors {
    Factors::LowRank {
        down: down.clone(),
        up: up.clone(),
    }
}

#[test]
fn patched_layers_agree_and_come_back() {
    for (dtype, tolerance) in TOLERANCES {
        let w = weights(StoredType::F32, dtype);
        let plain = Linear::load(&w.at("plain"), 33, 20, Bias::Yes).unwrap();
        let gated = GegluLinear::load(&w.at("gated"), 33, 20).unwrap();
        let x = numbers(&[3, 5, 33], dtype);
        let before = plain.slot().original_f32().unwrap();
        let (down, up) = (numbers(&[4, 33], dtype), numbers(&[20, 4], dtype));
        plain.slot().add_side(&low_rank(&down, &up), 0.5).unwrap();
        agree("beside", tolerance, || plain.forward(&x));
        plain.slot().restore();
        plain.slot().replace(&(&before * 1.5).unwrap()).unwrap();
        agree("replaced", tolerance, || plain.forward(&x));
        plain.slot().restore();
        let back = plain.slot().original_f32().unwrap();
        assert_eq!(
            before.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            back.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        );
        let slot = w.layers().get("gated.proj").unwrap();
        slot.add_side(&low_rank(&down, &numbers(&[40, 4], dtype)), 0.5).unwrap();
        agree("beside a gate", tolerance, || gated.forward(&x));
    }
}

#[test]
fn convolutions_agree() {
    for (dtype, tolerance) in TOLERANCES {
        let w = weights(StoredType::F32, dtype);
        let shapes = [
            ConvShape::same3(36, 21),
            ConvShape::pointwise(36, 21),
            ConvShape {
                stride: 2,
                padding: Padding::AFTER,
                ..ConvShape::same3(36, 21)
            },
        ];
        for (i, shape) in shapes.into_iter().enumerate() {
            let conv = Conv2d::load(&w.at(i), shape, Bias::Yes).unwrap();
            let x = numbers(&[2, 7, 9, 36], dtype);
            let residual = conv.forward(&x).unwrap();
            agree("convolution", tolerance, || conv.forward(&x));
            agree("convolution, added", tolerance, || conv.forward_add(&x, &residual));
            agree("convolution, doubled", tolerance, || conv.forward_doubled(&x));
            for pictures in [1, 2] {
                let raised = numbers(&[pictures, 21], dtype);
                agree("convolution, raised", tolerance, || {
                    conv.forward_add_channels(&x, &raised)
                });
            }
        }
    }
}

#[test]
fn norms_agree() {
    for (dtype, tolerance) in TOLERANCES {
        let w = weights(StoredType::F32, dtype);
        let x = numbers(&[2, 5, 6, 40], dtype);
        let group = GroupNorm::load(&w.at("group"), 8, 40, 1e-5).unwrap();
        agree("group norm", tolerance, || group.forward(&x));
        agree("group norm, silu", tolerance, || group.forward_silu(&x));
        let tokens = numbers(&[2, 30, 40], dtype);
        let layer = LayerNorm::load(&w.at("layer"), 40, 1e-5).unwrap();
        agree("layer norm", tolerance, || layer.forward(&tokens));
        let plain = LayerNorm::plain(1e-6);
        let (shift, scale) = (numbers(&[2, 1, 40], dtype), numbers(&[2, 1, 40], dtype));
        agree("layer norm, modulated", tolerance, || {
            plain.forward_modulated(&tokens, &shift, &scale)
        });
        let rms = RmsNorm::load(&w.at("rms"), 10, 1e-6).unwrap();
        agree("rms norm by head", tolerance, || rms.forward_heads(&tokens));
    }
}

#[test]
fn attention_agrees() {
    for (dtype, tolerance) in TOLERANCES {
        let (q, k) = (numbers(&[2, 21, 48], dtype), numbers(&[2, 13, 48], dtype));
        agree("attention", tolerance, || attention(&q, &k, &k, 3, 0.25, Mask::None));
        agree("causal", tolerance, || attention(&q, &q, &q, 2, 0.2, Mask::Causal));
        for dims in [[1, 1, 21, 13], [2, 1, 21, 13], [1, 3, 21, 13], [2, 3, 21, 13]] {
            let mask = numbers(&dims, DType::F32);
            agree("masked", tolerance, || attention(&q, &k, &k, 3, 0.25, Mask::Add(&mask)));
        }
        let table = RopeTable {
            cos: numbers(&[21, 8], DType::F32),
            sin: numbers(&[21, 8], DType::F32),
        };
        agree("rope", tolerance, || rope(&q, 3, &table));
    }
}

#[test]
fn layouts_agree() {
    for (dtype, _) in TOLERANCES {
        let (a, b) = (numbers(&[2, 3, 4, 10], dtype), numbers(&[2, 3, 4, 7], dtype));
        agree("side by side", 0.0, || concat(&a, &b));
        agree("doubled", 0.0, || upsample_nearest2x(&a));
    }
}

#[test]
fn ggml_blocks_mean_the_same_and_their_products_agree() {
    for format in [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ] {
        let dense = numbers(&[35, 512], DType::F32);
        let blocks = QTensor::quantize(&dense, format).unwrap();
        let expected = blocks.dequantize(&Device::Cpu).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let kind = *sd_kernels::QuantType::ALL
            .iter()
            .find(|kind| format!("{kind:?}") == format!("{format:?}"))
            .unwrap();
        let mut decoded = vec![0f32; 35 * 512];
        sd_kernels::dequantise(kind, &blocks.data().unwrap(), &mut decoded).unwrap();
        assert_eq!(decoded, expected, "{format:?}");

        for (dtype, _) in TOLERANCES {
            let layer = Linear::load(
                &weights(StoredType::Ggml(format), dtype).at("layer"),
                512,
                35,
                Bias::Yes,
            )
            .unwrap();
            assert_eq!(layer.slot().quantisation(), Some(format));
            for rows in [2, 20] {
                let x = numbers(&[rows, 512], dtype);
                // The plain product rounds activations to eight bits.
                agree(&format!("{format:?}"), 3e-2, || layer.forward(&x));
            }
        }
    }
}
