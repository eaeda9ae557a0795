//! The block formats of ggml and what numbers they stand for.

use half::f16;

/// A quantised format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl QuantType {
    /// Every format.
    pub const ALL: [QuantType; 10] = [
        QuantType::Q4_0,
        QuantType::Q4_1,
        QuantType::Q5_0,
        QuantType::Q5_1,
        QuantType::Q8_0,
        QuantType::Q2K,
        QuantType::Q3K,
        QuantType::Q4K,
        QuantType::Q5K,
        QuantType::Q6K,
    ];

    /// Numbers of a block.
    pub fn block_len(self) -> usize {
        match self {
            QuantType::Q4_0 | QuantType::Q4_1 | QuantType::Q5_0 | QuantType::Q5_1 | QuantType::Q8_0 => 32,
            _ => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            QuantType::Q4_0 => 18,
            QuantType::Q4_1 => 20,
            QuantType::Q5_0 => 22,
            QuantType::Q5_1 => 24,
            QuantType::Q8_0 => 34,
            QuantType::Q2K => 84,
            QuantType::Q3K => 110,
            QuantType::Q4K => 144,
            QuantType::Q5K => 176,
            QuantType::Q6K => 210,
        }
    }

    /// Decodes whole blocks; the lengths were checked.
    #[inline(always)]
    pub(super) fn decode(self, blocks: &[u8], out: &mut [f32]) {
        match self {
            QuantType::Q4_0 => each::<18, 32>(blocks, out, q4_0),
            QuantType::Q4_1 => each::<20, 32>(blocks, out, q4_1),
            QuantType::Q5_0 => each::<22, 32>(blocks, out, q5_0),
            QuantType::Q5_1 => each::<24, 32>(blocks, out, q5_1),
            QuantType::Q8_0 => each::<34, 32>(blocks, out, q8_0),
            QuantType::Q2K => each::<84, 256>(blocks, out, q2k),
            QuantType::Q3K => each::<110, 256>(blocks, out, q3k),
            QuantType::Q4K => each::<144, 256>(blocks, out, q4k),
            QuantType::Q5K => each::<176, 256>(blocks, out, q5k),
            QuantType::Q6K => each::<210, 256>(blocks, out, q6k),
        }
    }
}

#[inline(always)]
fn each<const BYTES: usize, const LEN: usize>(
    blocks: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0) {
        decode(block, out);
    }
}

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for i in 0..16 {
        let q = block[2 + i];
        out[i] = (i32::from(q & 15) - 8) as f32 * d;
        out[i + 16] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for i in 0..16 {
        let q = block[4 + i];
        out[i] = f32::from(q & 15) * d + m;
        out[i + 16] = f32::from(q >> 4) * d + m;
    }
}

/// The fifth bits of a Q5 block.
#[inline(always)]
fn high_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = high_bits(block, 2);
    for i in 0..16 {
        let q = u32::from(block[6 + i]);
        let low = (q & 15) | ((high >> i) & 1) << 4;
        let up = (q >> 4) | ((high >> (i + 16)) & 1) << 4;
        out[i] = (low as i32 - 16) as f32 * d;
        out[i + 16] = (up as i32 - 16) as f32 * d;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = high_bits(block, 4);
    for i in 0..16 {
        let q = u32::from(block[8 + i]);
        let low = (q & 15) | ((high >> i) & 1) << 4;
        let up = (q >> 4) | ((high >> (i + 16)) & 1) << 4;
        out[i] = low as f32 * d + m;
        out[i + 16] = up as f32 * d + m;
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for i in 0..32 {
        out[i] = f32::from(block[2 + i] as i8) * d;
    }
}

#[inline(always)]
fn q2k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, min) = (half_at(block, 80), half_at(block, 82));
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (by, off) = (d * f32::from(scales[i] & 15), min * f32::from(scales[i] >> 4));
        let (half, shift, from) = (i / 8, i % 8 / 2 * 2, i % 2 * 16);
        for (l, x) in out.iter_mut().enumerate() {
            *x = by * f32::from((qs[half * 32 + from + l] >> shift) & 3) - off;
        }
    }
}

#[inline(always)]
fn q3k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, qs, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        let scale = low | ((packed[8 + i % 4] >> (i / 4 * 2)) & 3) << 4;
        let by = d * (i32::from(scale) - 32) as f32;
        let (half, shift, from) = (i / 8, i % 8 / 2 * 2, i % 2 * 16);
        let mask = 1u8 << (i / 2);
        for (l, x) in out.iter_mut().enumerate() {
            let q = i32::from((qs[half * 32 + from + l] >> shift) & 3);
            let off = if high[from + l] & mask == 0 { 4 } else { 0 };
            *x = by * (q - off) as f32;
        }
    }
}

/// Six-bit scale and minimum number `j` of a Q4_K or Q5_K block.
#[inline(always)]
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
            packed[j + 4] >> 4 | packed[j] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

#[inline(always)]
fn q4k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, min) = (half_at(block, 0), half_at(block, 2));
    let (packed, qs) = (&block[4..16], &block[16..]);
    for (j, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let ((s1, m1), (s2, m2)) = (scale_min(packed, 2 * j), scale_min(packed, 2 * j + 1));
        let (d1, o1, d2, o2) = (d * s1, min * m1, d * s2, min * m2);
        let qs = &qs[j * 32..][..32];
        for l in 0..32 {
            out[l] = d1 * f32::from(qs[l] & 15) - o1;
            out[l + 32] = d2 * f32::from(qs[l] >> 4) - o2;
        }
    }
}

#[inline(always)]
fn q5k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, min) = (half_at(block, 0), half_at(block, 2));
    let (packed, high, qs) = (&block[4..16], &block[16..48], &block[48..]);
    for (j, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let ((s1, m1), (s2, m2)) = (scale_min(packed, 2 * j), scale_min(packed, 2 * j + 1));
        let (d1, o1, d2, o2) = (d * s1, min * m1, d * s2, min * m2);
        let qs = &qs[j * 32..][..32];
        for l in 0..32 {
            let (low, up) = ((high[l] >> (2 * j)) & 1, (high[l] >> (2 * j + 1)) & 1);
            out[l] = d1 * f32::from((qs[l] & 15) + 16 * low) - o1;
            out[l + 32] = d2 * f32::from((qs[l] >> 4) + 16 * up) - o2;
        }
    }
}

#[inline(always)]
fn q6k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (n, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let (low, high) = (&block[n * 64..][..64], &block[128 + n * 32..][..32]);
        let scales = &block[192 + n * 8..][..8];
        let by = |i: usize| d * f32::from(scales[i] as i8);
        for l in 0..32 {
            let h = high[l];
            let at = l / 16;
            let q = |bits: u8, shift: u32| (i32::from(bits | ((h >> shift) & 3) << 4) - 32) as f32;
            out[l] = by(at) * q(low[l] & 15, 0);
            out[l + 32] = by(at + 2) * q(low[l + 32] & 15, 2);
            out[l + 64] = by(at + 4) * q(low[l] >> 4, 4);
            out[l + 96] = by(at + 6) * q(low[l + 32] >> 4, 6);
        }
    }
}
