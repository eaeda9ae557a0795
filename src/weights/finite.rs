//! Looks for NaN and infinity in a file's bytes.

use candle_core::quantized::GgmlDType;

use super::StoredType;

/// Whether no number is infinite or NaN. Integers are taken as they are.
pub(super) fn all_finite(stored: StoredType, bytes: &[u8]) -> bool {
    let below16 = |limit: u16| {
        bytes
            .as_chunks::<2>()
            .0
            .iter()
            .fold(0, |m, b| (u16::from_le_bytes(*b) & 0x7fff).max(m))
            < limit
    };
    match stored {
        StoredType::F32 => {
            let most = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .fold(0, |m, b| (u32::from_le_bytes(*b) & 0x7fff_ffff).max(m));
            most < 0x7f80_0000
        }
        StoredType::F64 => bytes
            .as_chunks::<8>()
            .0
            .iter()
            .all(|b| f64::from_le_bytes(*b).is_finite()),
        StoredType::F16 => below16(0x7c00),
        StoredType::Bf16 => below16(0x7f80),
        StoredType::F8E4M3 => bytes.iter().all(|b| b & 0x7f != 0x7f),
        StoredType::F8E5M2 => bytes.iter().all(|b| b & 0x7f < 0x7c),
        StoredType::Ggml(kind) => scales_finite(kind, bytes),
        StoredType::I64 | StoredType::I32 | StoredType::Other(_) => true,
    }
}

/// Whether every block's scale and minimum are finite.
fn scales_finite(kind: GgmlDType, bytes: &[u8]) -> bool {
    let halves: &[usize] = match kind {
        GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q2K => &[80, 82],
        GgmlDType::Q3K => &[108],
        GgmlDType::Q6K => &[208],
        _ => &[],
    };
    bytes.chunks_exact(kind.type_size()).all(|block| {
        halves
            .iter()
            .all(|&at| u16::from_le_bytes([block[at], block[at + 1]]) & 0x7c00 != 0x7c00)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_nan_and_infinity_in_every_float_type() {
        let bad: &[(StoredType, &[u8])] = &[
            (StoredType::F32, &f32::NAN.to_le_bytes()),
            (StoredType::F32, &f32::NEG_INFINITY.to_le_bytes()),
            (StoredType::F64, &f64::NAN.to_le_bytes()),
            (StoredType::F16, &half::f16::NAN.to_le_bytes()),
            (StoredType::F16, &half::f16::INFINITY.to_le_bytes()),
            (StoredType::Bf16, &half::bf16::NAN.to_le_bytes()),
            (StoredType::F8E4M3, &[0xff]),
            (StoredType::F8E5M2, &[0x7d]),
        ];
        for (stored, bytes) in bad {
            assert!(!all_finite(*stored, bytes), "{stored:?}");
        }
        let mut block = vec![0; GgmlDType::Q6K.type_size() * 2];
        assert!(all_finite(StoredType::Ggml(GgmlDType::Q6K), &block));
        let last = block.len() - 1;
        block[last] = 0x7c;
        assert!(!all_finite(StoredType::Ggml(GgmlDType::Q6K), &block));
        assert!(all_finite(StoredType::F16, &half::f16::MAX.to_le_bytes()));
        assert!(all_finite(StoredType::Bf16, &half::bf16::MIN.to_le_bytes()));
        assert!(all_finite(StoredType::F8E4M3, &[0xfe, 0x7e]));
    }
}
