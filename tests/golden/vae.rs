//! The VAE against diffusers.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};
use sd_worker::models::vae::{Tiling, Vae, VaeConfig};

use crate::models::{Model, close, numbers, psnr};

/// Largest difference over the largest value, in f32.
const TOLERANCE: f32 = 1e-4;
/// Least PSNR of 16-bit types, in dB.
const NEAR: f32 = 30.0;

fn vae(model: &Model, dtype: DType) -> Vae {
    Vae::load(&model.weights(dtype), &VaeConfig::parse(&model.config()).unwrap()).unwrap()
}

fn matches(name: &'static str) {
    let model = Model::open(name);
    let vae = vae(&model, DType::F32);
    let posterior = vae
        .encode(&model.case("picture"), &Tiling::NEVER, &|| true)
        .unwrap()
        .unwrap();
    close(&format!("{name} mean"), &posterior.mean, &model.case("mean"), TOLERANCE);
    close(&format!("{name} std"), &posterior.std, &model.case("std"), TOLERANCE);
    let drawn = vae.scale(&posterior.sample(&model.case("noise")).unwrap()).unwrap();
    close(&format!("{name} drawn"), &drawn, &model.case("drawn"), TOLERANCE);
    let decoded = vae
        .decode(&model.case("latents"), &Tiling::NEVER, &|| true)
        .unwrap()
        .unwrap();
    close(&format!("{name} decoded"), &decoded, &model.case("decoded"), TOLERANCE);
}

#[test]
fn sd_matches() {
    matches("vae_sd");
}

#[test]
fn flux_with_sixteen_channels_and_a_shift_matches() {
    matches("vae_flux");
}

#[test]
fn without_attention_it_matches() {
    matches("vae_plain");
}

#[test]
fn bf16_comes_near() {
    let model = Model::open("vae_sd");
    let vae = vae(&model, DType::BF16);
    let decoded = vae
        .decode(&model.case("latents"), &Tiling::NEVER, &|| true)
        .unwrap()
        .unwrap();
    let mean = vae
        .encode(&model.case("picture"), &Tiling::NEVER, &|| true)
        .unwrap()
        .unwrap()
        .mean;
    let (decoded, mean) = (psnr(&decoded, &model.case("decoded")), psnr(&mean, &model.case("mean")));
    assert!(decoded > NEAR && mean > NEAR, "{decoded} dB, {mean} dB");
}

#[test]
fn f16_is_not_computed_where_it_overflows() {
    let careful = VaeConfig::parse(r#"{"force_upcast": true}"#).unwrap();
    let fine = VaeConfig::parse(r#"{"force_upcast": false}"#).unwrap();
    assert_eq!(careful.compute_dtype(DType::F16), DType::F32);
    assert_eq!(careful.compute_dtype(DType::BF16), DType::BF16);
    assert_eq!(fine.compute_dtype(DType::F16), DType::F16);
}

/// Smooth latents, as a picture's are.
fn latents(height: usize, width: usize) -> Tensor {
    let wave = |y: usize, x: usize, c: usize| ((y * (c + 1)) as f32 * 0.11).sin() + ((x * (c + 2)) as f32 * 0.07).cos();
    let mut numbers = Vec::new();
    for y in 0..height {
        for x in 0..width {
            numbers.extend((0..4).map(|c| 0.3 * wave(y, x, c)));
        }
    }
    Tensor::from_vec(numbers, (1, height, width, 4), &Device::Cpu).unwrap()
}

/// Differences of neighbours along a row: the largest at columns within `reach` of `near`, and the largest of all.
fn steps(picture: &Tensor, near: &[usize], reach: usize) -> (f32, f32) {
    let (_, height, width, channels) = picture.dims4().unwrap();
    let numbers = numbers(picture);
    let (mut at_edges, mut anywhere) = (0f32, 0f32);
    for y in 0..height {
        for x in 1..width {
            let at = |x: usize, c: usize| numbers[(y * width + x) * channels + c];
            let step = (0..channels)
                .map(|c| (at(x, c) - at(x - 1, c)).abs())
                .fold(0f32, f32::max);
            anywhere = anywhere.max(step);
            if near.iter().any(|edge| x.abs_diff(*edge) <= reach) {
                at_edges = at_edges.max(step);
            }
        }
    }
    (at_edges, anywhere)
}

#[test]
fn tiles_leave_no_seam_and_come_near_the_whole() {
    let vae = vae(&Model::open("vae_sd"), DType::F32);
    let latents = latents(24, 40);
    let whole = vae.decode(&latents, &Tiling::NEVER, &|| true).unwrap().unwrap();
    let tiling = Tiling {
        above: 16 * 16,
        tile: 16,
        overlap: 8,
    };
    let tiled = vae.decode(&latents, &tiling, &|| true).unwrap().unwrap();
    // Each tile has its own norm statistics, which weigh much in tiles of 16 latents and random weights.
    let near = psnr(&tiled, &whole);
    assert!(near > 15.0, "{near} dB");
    // Tiles of 16 latents start at 0, 8, 16, 24; a latent is 4 pixels here.
    let edges: Vec<usize> = [8, 16, 24, 32].iter().map(|edge| edge * 4).collect();
    let ((tiled, _), (_, natural)) = (steps(&tiled, &edges, 1), steps(&whole, &edges, 1));
    assert!(
        tiled <= natural,
        "a step of {tiled} at an edge, {natural} anywhere without tiles"
    );
    let picture = vae.encode(&whole, &tiling, &|| true).unwrap().unwrap();
    let expected = vae.encode(&whole, &Tiling::NEVER, &|| true).unwrap().unwrap();
    let near = psnr(&picture.mean, &expected.mean);
    assert!(near > 15.0, "{near} dB");
}

#[test]
fn it_stops_between_tiles_and_between_blocks() {
    let vae = vae(&Model::open("vae_sd"), DType::F32);
    for tiling in [
        Tiling::NEVER,
        Tiling {
            above: 16,
            tile: 8,
            overlap: 4,
        },
    ] {
        let asked = Cell::new(0);
        let stop_at_third = || {
            asked.set(asked.get() + 1);
            asked.get() < 3
        };
        assert!(vae.decode(&latents(16, 16), &tiling, &stop_at_third).unwrap().is_none());
        assert_eq!(asked.get(), 3);
        let picture = Tensor::zeros((1, 64, 64, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(vae.encode(&picture, &tiling, &|| false).unwrap().is_none());
    }
}

/// Playground v2.5's VAE.
#[test]
fn statistics_of_latents_are_refused_by_name() {
    let error = VaeConfig::parse(r#"{"latents_mean": [-1.6, 1.1, 3.1, -1.1], "latents_std": [8.4, 5.9, 6.2, 5.8]}"#);
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("latents_mean"), "{error}");
    assert!(VaeConfig::parse(r#"{"latents_mean": null, "latents_std": null}"#).is_ok());
}
