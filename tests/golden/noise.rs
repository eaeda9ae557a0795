//! `torch.randn` from `torch.Generator("cpu")`, to the bit; recipe: `tests/fixtures/noise/make_noise.py`.

use sd_worker::pipeline::noise::{NoiseType, TorchGenerator};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    seed: u64,
    dtype: String,
    sizes: Vec<usize>,
}

#[test]
fn draws_of_every_size_follow_torch() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../fixtures/noise/noise.json")).unwrap();
    let bytes = include_bytes!("../fixtures/noise/noise.f32");
    let mut expected = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    for case in cases {
        let dtype = match case.dtype.as_str() {
            "f16" => NoiseType::F16,
            "bf16" => NoiseType::Bf16,
            _ => NoiseType::F32,
        };
        let mut generator = TorchGenerator::with_type(case.seed, dtype);
        for size in case.sizes {
            for (i, drawn) in generator.randn(size).into_iter().enumerate() {
                let wanted = expected.next().unwrap();
                assert_eq!(drawn, wanted, "seed {} {dtype:?} size {size} value {i}", case.seed);
            }
        }
    }
    assert_eq!(expected.next(), None);
}
