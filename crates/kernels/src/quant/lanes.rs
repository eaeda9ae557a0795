//! Sixteen weight rows at a time, one in each lane of a vector: the same numbers, bit for bit, as `QuantType::decode` makes row
//! by row.
//!
//! Four neighbouring numbers of a row have their bits in the four bytes of one word, so that a shift and a look-up make each of
//! them; scales are worked out for sixteen rows at once.

use super::QuantType;
use crate::simd::{LANES, Words};

/// Takes decoded numbers.
pub(super) trait Sink<S: Words> {
    /// Numbers `at..at + 4` of each of the sixteen rows; `at` is a multiple of 4. Must be `#[inline(always)]`.
    fn put(&mut self, s: S, at: usize, numbers: [S::V; 4]);
}

/// Gives all numbers of sixteen rows of blocks, `rows.len() / 16` bytes each, to `sink`.
#[inline(always)]
pub(super) fn decode<S: Words>(s: S, kind: QuantType, rows: &[u8], sink: &mut impl Sink<S>) {
    let stride = rows.len() / LANES;
    for index in 0..stride / kind.block_bytes() {
        let block = Lanes {
            bytes: &rows[index * kind.block_bytes()..],
            stride,
        };
        let at = index * kind.block_len();
        match kind {
            QuantType::Q4_0 => q4_0(s, block, at, sink),
            QuantType::Q4_1 => q4_1(s, block, at, sink),
            QuantType::Q5_0 => q5_0(s, block, at, sink),
            QuantType::Q5_1 => q5_1(s, block, at, sink),
            QuantType::Q8_0 => q8_0(s, block, at, sink),
            QuantType::Q2K => q2k(s, block, at, sink),
            QuantType::Q3K => q3k(s, block, at, sink),
            QuantType::Q4K => q4k(s, block, at, sink),
            QuantType::Q5K => q5k(s, block, at, sink),
            QuantType::Q6K => q6k(s, block, at, sink),
        }
    }
}

/// One block of each of sixteen rows.
#[derive(Clone, Copy)]
struct Lanes<'a> {
    bytes: &'a [u8],
    /// From row to row.
    stride: usize,
}

impl Lanes<'_> {
    /// Bytes `from..from + 16` of each block, as four words.
    #[inline(always)]
    fn words<S: Words>(self, s: S, from: usize) -> [S::W; 4] {
        let bytes = &self.bytes[from..][..(LANES - 1) * self.stride + 16];
        // SAFETY: the slice ends with the last row's sixteen bytes.
        unsafe { s.load_rows(bytes.as_ptr(), self.stride) }
    }
}

/// `f` of each of sixteen small numbers.
#[inline(always)]
fn table<S: Words>(s: S, f: impl Fn(i32) -> i32) -> S::V {
    let numbers: [f32; LANES] = std::array::from_fn(|i| f(i as i32) as f32);
    // SAFETY: sixteen numbers are readable.
    unsafe { s.load(numbers.as_ptr()) }
}

/// Each byte of `w`, shifted, looked up: four numbers of each lane.
#[inline(always)]
fn look<S: Words>(s: S, table: S::V, w: S::W, shift: u32) -> [S::V; 4] {
    [
        s.lookup(table, s.right(w, shift)),
        s.lookup(table, s.right(w, shift + 8)),
        s.lookup(table, s.right(w, shift + 16)),
        s.lookup(table, s.right(w, shift + 24)),
    ]
}

/// `a + b`.
#[inline(always)]
fn plus<S: Words>(s: S, a: [S::V; 4], b: [S::V; 4]) -> [S::V; 4] {
    [
        s.add(a[0], b[0]),
        s.add(a[1], b[1]),
        s.add(a[2], b[2]),
        s.add(a[3], b[3]),
    ]
}

/// `a * by`.
#[inline(always)]
fn times<S: Words>(s: S, mut a: [S::V; 4], by: S::V) -> [S::V; 4] {
    for a in &mut a {
        *a = s.mul(*a, by);
    }
    a
}

/// `a * by + off`, rounded twice as the formats define it.
#[inline(always)]
fn times_plus<S: Words>(s: S, mut a: [S::V; 4], by: S::V, off: S::V) -> [S::V; 4] {
    for a in &mut a {
        *a = s.add(s.mul(*a, by), off);
    }
    a
}

/// `a * by - off`.
#[inline(always)]
fn times_minus<S: Words>(s: S, mut a: [S::V; 4], by: S::V, off: S::V) -> [S::V; 4] {
    for a in &mut a {
        *a = s.sub(s.mul(*a, by), off);
    }
    a
}

#[inline(always)]
fn q4_0<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let d = s.halves(block.words(s, 0)[0]);
    let nibble = table(s, |i| i - 8);
    for (i, w) in block.words(s, 2).into_iter().enumerate() {
        sink.put(s, at + 4 * i, times(s, look(s, nibble, w, 0), d));
        sink.put(s, at + 16 + 4 * i, times(s, look(s, nibble, w, 4), d));
    }
}

#[inline(always)]
fn q4_1<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let (d, m) = two_halves(s, block.words(s, 0)[0]);
    let nibble = table(s, |i| i);
    for (i, w) in block.words(s, 4).into_iter().enumerate() {
        sink.put(s, at + 4 * i, times_plus(s, look(s, nibble, w, 0), d, m));
        sink.put(s, at + 16 + 4 * i, times_plus(s, look(s, nibble, w, 4), d, m));
    }
}

#[inline(always)]
fn two_halves<S: Words>(s: S, w: S::W) -> (S::V, S::V) {
    (s.halves(w), s.halves(s.right(w, 16)))
}

/// Bits `from..from + 4` of `high`, worth 16 each.
#[inline(always)]
fn fifth<S: Words>(s: S, high: S::W, from: u32) -> [S::V; 4] {
    let bit = table(s, |i| (i & 1) * 16);
    [
        s.lookup(bit, s.right(high, from)),
        s.lookup(bit, s.right(high, from + 1)),
        s.lookup(bit, s.right(high, from + 2)),
        s.lookup(bit, s.right(high, from + 3)),
    ]
}

#[inline(always)]
fn q5_0<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let [head, next, ..] = block.words(s, 0);
    let d = s.halves(head);
    let high = s.or(s.right(head, 16), s.left(next, 16));
    let nibble = table(s, |i| i - 16);
    for (i, w) in block.words(s, 6).into_iter().enumerate() {
        let low = plus(s, look(s, nibble, w, 0), fifth(s, high, 4 * i as u32));
        sink.put(s, at + 4 * i, times(s, low, d));
        let up = plus(s, look(s, nibble, w, 4), fifth(s, high, 16 + 4 * i as u32));
        sink.put(s, at + 16 + 4 * i, times(s, up, d));
    }
}

#[inline(always)]
fn q5_1<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let [head, high, ..] = block.words(s, 0);
    let (d, m) = two_halves(s, head);
    let nibble = table(s, |i| i);
    for (i, w) in block.words(s, 8).into_iter().enumerate() {
        let low = plus(s, look(s, nibble, w, 0), fifth(s, high, 4 * i as u32));
        sink.put(s, at + 4 * i, times_plus(s, low, d, m));
        let up = plus(s, look(s, nibble, w, 4), fifth(s, high, 16 + 4 * i as u32));
        sink.put(s, at + 16 + 4 * i, times_plus(s, up, d, m));
    }
}

/// Byte `i` of each word, signed.
#[inline(always)]
fn signed_byte<S: Words>(s: S, w: S::W, i: u32) -> S::V {
    s.to_f32(s.right_signed(s.left(w, 24 - 8 * i), 24))
}

#[inline(always)]
fn q8_0<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let d = s.halves(block.words(s, 0)[0]);
    for half in 0..2 {
        for (i, w) in block.words(s, 2 + 16 * half).into_iter().enumerate() {
            let numbers = [
                signed_byte(s, w, 0),
                signed_byte(s, w, 1),
                signed_byte(s, w, 2),
                signed_byte(s, w, 3),
            ];
            sink.put(s, at + 16 * half + 4 * i, times(s, numbers, d));
        }
    }
}

/// Bits `from..from + 4` of `words`, byte `byte` of sixteen, as numbers.
#[inline(always)]
fn nibble_at<S: Words>(s: S, words: [S::W; 4], byte: usize, from: u32) -> S::V {
    s.lookup(table(s, |i| i), s.right(words[byte / 4], byte as u32 % 4 * 8 + from))
}

#[inline(always)]
fn q2k<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let scales = block.words(s, 0);
    let (d, min) = two_halves(s, block.words(s, 68)[3]);
    let two_bits = table(s, |i| i & 3);
    for part in 0..4 {
        let qs = block.words(s, 16 + 16 * part);
        for pair in 0..4 {
            let group = part / 2 * 8 + part % 2 + 2 * pair;
            let by = s.mul(d, nibble_at(s, scales, group, 0));
            let off = s.mul(min, nibble_at(s, scales, group, 4));
            for (i, w) in qs.into_iter().enumerate() {
                let q = look(s, two_bits, w, 2 * pair as u32);
                sink.put(s, at + 16 * group + 4 * i, times_minus(s, q, by, off));
            }
        }
    }
}

#[inline(always)]
fn q3k<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let [_, low, next, top] = block.words(s, 92);
    let d = s.halves(s.right(block.words(s, 94)[3], 16));
    let (two_bits, bit) = (table(s, |i| i & 3), table(s, |i| (i & 1) * 4 - 4));
    for part in 0..4 {
        let qs = block.words(s, 32 + 16 * part);
        let high = block.words(s, 16 * (part % 2));
        for pair in 0..4 {
            let group = part / 2 * 8 + part % 2 + 2 * pair;
            let byte = group as u32 % 4 * 8;
            // Four bits of each scale lie in the first eight bytes, two in the last four.
            let word = if group % 8 < 4 { low } else { next };
            let four = s.mask(s.right(word, byte + group as u32 / 8 * 4), 15);
            let two = s.mask(s.right(top, byte + group as u32 / 4 * 2), 3);
            let scale = s.sub(s.to_f32(s.or(four, s.left(two, 4))), s.splat(32.0));
            let by = s.mul(d, scale);
            for (i, w) in qs.into_iter().enumerate() {
                let q = look(s, two_bits, w, 2 * pair as u32);
                let off = look(s, bit, high[i], group as u32 / 2);
                sink.put(s, at + 16 * group + 4 * i, times(s, plus(s, q, off), by));
            }
        }
    }
}

/// Scale and offset number `j` of a Q4_K or Q5_K block whose first sixteen bytes are `head`.
#[inline(always)]
fn scale_min<S: Words>(s: S, [head, low, middle, top]: [S::W; 4], j: usize) -> (S::V, S::V) {
    let (d, min) = two_halves(s, head);
    let byte = j as u32 % 4 * 8;
    let (low, middle, top) = (s.right(low, byte), s.right(middle, byte), s.right(top, byte));
    let (scale, off) = if j < 4 {
        (s.mask(low, 63), s.mask(middle, 63))
    } else {
        // Their lower four bits lie in the last bytes, the upper two above those of the first eight scales and offsets.
        (
            s.or(s.mask(top, 15), s.mask(s.right(low, 2), 48)),
            s.or(s.mask(s.right(top, 4), 15), s.mask(s.right(middle, 2), 48)),
        )
    };
    (s.mul(d, s.to_f32(scale)), s.mul(min, s.to_f32(off)))
}

#[inline(always)]
fn q4k<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let head = block.words(s, 0);
    let nibble = table(s, |i| i);
    for j in 0..4 {
        let ((d1, o1), (d2, o2)) = (scale_min(s, head, 2 * j), scale_min(s, head, 2 * j + 1));
        for half in 0..2 {
            for (i, w) in block.words(s, 16 + 32 * j + 16 * half).into_iter().enumerate() {
                let at = at + 64 * j + 16 * half + 4 * i;
                sink.put(s, at, times_minus(s, look(s, nibble, w, 0), d1, o1));
                sink.put(s, at + 32, times_minus(s, look(s, nibble, w, 4), d2, o2));
            }
        }
    }
}

#[inline(always)]
fn q5k<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let head = block.words(s, 0);
    let (nibble, bit) = (table(s, |i| i), table(s, |i| (i & 1) * 16));
    for half in 0..2 {
        let high = block.words(s, 16 + 16 * half);
        for j in 0..4 {
            let ((d1, o1), (d2, o2)) = (scale_min(s, head, 2 * j), scale_min(s, head, 2 * j + 1));
            for (i, w) in block.words(s, 48 + 32 * j + 16 * half).into_iter().enumerate() {
                let at = at + 64 * j + 16 * half + 4 * i;
                let low = plus(s, look(s, nibble, w, 0), look(s, bit, high[i], 2 * j as u32));
                sink.put(s, at, times_minus(s, low, d1, o1));
                let up = plus(s, look(s, nibble, w, 4), look(s, bit, high[i], 2 * j as u32 + 1));
                sink.put(s, at + 32, times_minus(s, up, d2, o2));
            }
        }
    }
}

#[inline(always)]
fn q6k<S: Words>(s: S, block: Lanes<'_>, at: usize, sink: &mut impl Sink<S>) {
    let d = s.halves(s.right(block.words(s, 194)[3], 16));
    let scales = block.words(s, 192);
    let (nibble, two_bits) = (table(s, |i| i - 32), table(s, |i| (i & 3) * 16));
    for part in 0..4 {
        let (n, half) = (part / 2, part % 2);
        let from = 64 * n + 16 * half;
        let low = [block.words(s, from), block.words(s, from + 32)];
        let high = block.words(s, 128 + 16 * part);
        for line in 0..4 {
            let scale = 8 * n + half + 2 * line;
            let by = s.mul(d, signed_byte(s, scales[scale / 4], scale as u32 % 4));
            for (i, &h) in high.iter().enumerate() {
                let q = look(s, nibble, low[line % 2][i], line as u32 / 2 * 4);
                let q = plus(s, q, look(s, two_bits, h, 2 * line as u32));
                sink.put(s, at + 128 * n + 32 * line + 16 * half + 4 * i, times(s, q, by));
            }
        }
    }
}
