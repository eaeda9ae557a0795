//! Noise with the numbers of `torch.Generator("cpu")`, so that a seed names the same picture as in diffusers, on every
//! device.
//!
//! torch 2.x in short. Engine: mt19937, seeded with the low 32 bits of the seed. `randn` of fewer than 16 values:
//! Box-Muller in `f64` on 53-bit uniforms, the second value of each pair kept for the next scalar draw. From 16 on:
//! 24-bit uniforms for the whole tensor, then Box-Muller in `f32` on blocks of 16 (eight radii, eight angles); a last
//! block that is not whole is drawn anew, over the last 16 values. Half types run the same blocks, but draw each block
//! just before it is transformed, and round at the end. The numbers are the same to the bit.

mod box_muller;

use box_muller::{BLOCK, box_muller};

use crate::schedulers::NoiseSource;

/// Type that torch would draw in: it changes the order of draws for sizes that are no multiple of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseType {
    F32,
    F16,
    Bf16,
}

/// `torch.Generator("cpu").manual_seed(seed)`.
#[derive(Clone)]
pub struct TorchGenerator {
    engine: Mt19937,
    /// The second value of the last scalar Box-Muller pair.
    cached: Option<f64>,
    dtype: NoiseType,
}

impl TorchGenerator {
    /// A generator that draws in `f32`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_type(seed, NoiseType::F32)
    }

    /// A generator that draws as torch does for tensors of `dtype`; the values come as `f32`.
    #[must_use]
    pub fn with_type(seed: u64, dtype: NoiseType) -> Self {
        Self {
            engine: Mt19937::new(seed as u32),
            cached: None,
            dtype,
        }
    }

    /// `torch.randn(n, generator=self)`.
    #[must_use]
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        let mut values = vec![0.0; n];
        self.fill(&mut values);
        values
    }

    fn scalar(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return value;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * u1;
        self.cached = Some(radius * theta.sin());
        radius * theta.cos()
    }

    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.engine.next()), u64::from(self.engine.next()));
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn uniforms(&mut self, out: &mut [f32]) {
        for value in out {
            *value = (self.engine.next() & 0x00ff_ffff) as f32 / 16_777_216.0;
        }
    }
}

impl NoiseSource for TorchGenerator {
    fn fill(&mut self, out: &mut [f32]) {
        let n = out.len();
        if n < BLOCK {
            out.iter_mut().for_each(|value| *value = self.scalar() as f32);
        } else {
            let whole = n - n % BLOCK;
            if self.dtype == NoiseType::F32 {
                self.uniforms(out);
            } else {
                self.uniforms(&mut out[..whole]);
            }
            out[..whole].chunks_exact_mut(BLOCK).for_each(box_muller);
            if whole < n {
                self.uniforms(&mut out[n - BLOCK..]);
                box_muller(&mut out[n - BLOCK..]);
            }
        }
        match self.dtype {
            NoiseType::F32 => {}
            NoiseType::F16 => out.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
            NoiseType::Bf16 => out.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
        }
    }
}

/// The 32-bit Mersenne Twister.
#[derive(Clone)]
struct Mt19937 {
    state: [u32; N],
    next: usize,
}

const N: usize = 624;
const M: usize = 397;

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = (previous ^ (previous >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    fn next(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twisted = (mixed >> 1) ^ if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ twisted;
        }
        self.next = 0;
    }
}

/// Noise for a batch of latents kept as (batch, height, width, channels): image `i` draws from its own generator in
/// torch's order (channels, height, width).
pub struct LatentNoise {
    generators: Vec<TorchGenerator>,
    channels: usize,
}

impl LatentNoise {
    /// One generator per image of the batch.
    #[must_use]
    pub fn new(generators: Vec<TorchGenerator>, channels: usize) -> Self {
        Self { generators, channels }
    }
}

impl NoiseSource for LatentNoise {
    fn fill(&mut self, out: &mut [f32]) {
        let images = self.generators.len();
        if images == 0 || out.is_empty() {
            return;
        }
        let size = out.len() / images;
        for (generator, image) in self.generators.iter_mut().zip(out.chunks_exact_mut(size)) {
            let planes = generator.randn(size);
            channels_last(&planes, self.channels, image);
        }
    }
}

/// Copies (channels, pixels) to (pixels, channels).
pub fn channels_last(planes: &[f32], channels: usize, out: &mut [f32]) {
    let pixels = planes.len() / channels.max(1);
    for (p, pixel) in out.chunks_exact_mut(channels.max(1)).enumerate() {
        for (c, value) in pixel.iter_mut().enumerate() {
            *value = planes[c * pixels + p];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mersenne_twister_gives_the_published_numbers() {
        let mut engine = Mt19937::new(5489);
        let last = (0..10_000).map(|_| engine.next()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn a_batch_draws_each_image_from_its_own_seed() {
        let generators = vec![TorchGenerator::new(3), TorchGenerator::new(4)];
        let mut both = vec![0.0; 2 * 4 * 6];
        LatentNoise::new(generators, 4).fill(&mut both);
        let second = TorchGenerator::new(4).randn(4 * 6);
        // Channel 2 of pixel 5 of the second image.
        assert_eq!(both[24 + 5 * 4 + 2], second[2 * 6 + 5]);
    }
}
