//! Times one pass of a UNet with guidance and one decode of its VAE, with random weights of the real shapes.
//!
//! `cargo bench --bench models -- sd15 512 f32 3`: shape, side in pixels, type, runs after one warm-up.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use sd_worker::models::unet::{Added, UNet, UNetConfig};
use sd_worker::models::vae::{Tiling, Vae, VaeConfig};
use sd_worker::weights::{Component, ModelFiles, StoredType, Weights};

type Failure = Box<dyn std::error::Error>;

fn median(mut run: impl FnMut() -> Result<()>, runs: usize) -> Result<f64> {
    run()?;
    let mut times = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Peak of the resident memory of this process, in MB.
fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap_or_default();
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(0);
    kib / 1024
}

fn main() -> std::result::Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let arg = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.to_owned());
    let (shape, size, dtype) = (arg(0, "sd15"), arg(1, "512").parse::<usize>()?, arg(2, "f32"));
    let runs: usize = arg(3, "3").parse()?;
    let (dtype, stored) = match dtype.as_str() {
        "bf16" => (DType::BF16, StoredType::Bf16),
        _ => (DType::F32, StoredType::F32),
    };
    let device = Device::Cpu;
    let files = ModelFiles::random(&shape, stored, stored)?;
    let start = Instant::now();
    let config = UNetConfig::parse(files.config(Component::Unet)?)?;
    let weights = Weights::new(files.tensors(Component::Unet)?, device.clone(), dtype);
    let unet = UNet::load(&weights, &config)?;
    let load = start.elapsed().as_secs_f64();
    let side = size / 8;
    let noise = |dims: &[usize]| {
        let count: usize = dims.iter().product();
        let numbers: Vec<f32> = (0..count).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
        Tensor::from_vec(numbers, dims, &Device::Cpu)
    };
    let latents = noise(&[2, side, side, config.in_channels])?;
    let prompt = unet.prepare(&noise(&[2, 77, config.cross_attention_dim])?)?;
    let sizes = [size as f32, size as f32, 0.0, 0.0, size as f32, size as f32];
    let text_time = if config.takes_text_time {
        Some((noise(&[2, 1280])?, vec![sizes; 2]))
    } else {
        None
    };
    let added = Added {
        text_time,
        guidance: None,
    };
    let step = median(|| unet.forward(&latents, 500.0, &prompt, &added).map(drop), runs)?;
    let vae_config = VaeConfig::parse(files.config(Component::Vae)?)?;
    let vae = Vae::load(
        &Weights::new(files.tensors(Component::Vae)?, device, dtype),
        &vae_config,
    )?;
    let z = noise(&[1, side, side, 4])?;
    let decode = median(|| vae.decode(&z, &Tiling::default(), &|| true).map(drop), runs)?;
    println!(
        "{{\"shape\":\"{shape}\",\"dtype\":\"{}\",\"size\":{size},\"load_s\":{load:.2},\"step_s\":{step:.3},\
         \"vae_decode_s\":{decode:.3},\"peak_rss_mb\":{}}}",
        dtype.as_str(),
        peak_mb()
    );
    Ok(())
}
