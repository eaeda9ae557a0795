//! The Box-Muller transform of torch's vectorised CPU kernel, to the bit.
//!
//! torch computes it with the polynomials of `avx_mathfun` (Cephes), and its compiler fuses multiplications with
//! additions: the `mul_add`s below are where it does. An accurate logarithm would differ in the last bit of every sixth
//! value.

// The constants as Cephes prints them.
#![allow(clippy::excessive_precision, clippy::unreadable_literal)]

use std::f32::consts::PI;

/// Values that are transformed together: eight radii, then eight angles.
pub(super) const BLOCK: usize = 16;

/// Turns a block of values that are uniform in [0, 1) into normal ones.
pub(super) fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(2.0 * PI * *b);
        *a = radius * cos;
        *b = radius * sin;
    }
}

/// Natural logarithm of a positive number.
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ];
    const LN2_LOW: f32 = -2.12194440e-4;
    const LN2_HIGH: f32 = 0.693359375;
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut exponent = ((bits >> 23) as i32 - 126) as f32;
    let mut x = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    if x < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        x = (x - 1.0) + x;
    } else {
        x -= 1.0;
    }
    let z = x * x;
    let y = P[1..].iter().fold(P[0], |y, p| y.mul_add(x, *p)) * x;
    let y = y.mul_add(z, exponent * LN2_LOW);
    let y = (-0.5f32).mul_add(z, y);
    exponent.mul_add(LN2_HIGH, x + y)
}

/// Sine and cosine of an angle from 0 on.
fn sin_cos(angle: f32) -> (f32, f32) {
    // pi / 4 in three parts.
    const PARTS: [f32; 3] = [-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8];
    let octant = ((angle * 1.27323954473516) as i32 + 1) & !1;
    let x = PARTS.iter().fold(angle, |x, part| (octant as f32).mul_add(*part, x));
    let z = x * x;
    let even = 2.443315711809948e-5f32
        .mul_add(z, -1.388731625493765e-3)
        .mul_add(z, 4.166664568298827e-2)
        * z;
    let even = even.mul_add(z, -(z * 0.5)) + 1.0;
    let odd = (-1.9515295891e-4f32)
        .mul_add(z, 8.3321608736e-3)
        .mul_add(z, -1.6666654611e-1)
        * z;
    let odd = odd.mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (odd, even) } else { (even, odd) };
    (
        if octant & 4 == 0 { sin } else { -sin },
        if (octant - 2) & 4 == 0 { -cos } else { cos },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_are_close_to_the_functions() {
        for i in 1..1000 {
            let x = i as f32 / 1000.0;
            assert!((ln(x) - x.ln()).abs() < 1e-6, "{x}");
            let (sin, cos) = sin_cos(2.0 * PI * x);
            assert!((sin - (2.0 * PI * x).sin()).abs() < 1e-6, "{x}");
            assert!((cos - (2.0 * PI * x).cos()).abs() < 1e-6, "{x}");
        }
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }
}
