//! The float types that fused loops compute in, float by float: the compiler vectorises the loops.

use std::ops::{Add, AddAssign, Mul, Sub};

use crate::simd::{self, Arithmetic, Single};

/// Float32 or float64.
pub(crate) trait Float:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + 'static
{
    /// `self * b + c`.
    fn multiply_add<A: Arithmetic>(self, b: Self, c: Self) -> Self;

    /// `exp(self)` for arguments up to 88, to about one unit in the last place; 0 below the smallest normal float32
    /// or, for float64, float64. NaN stays NaN.
    fn exp<A: Arithmetic>(self) -> Self;
}

impl Float for f32 {
    #[inline(always)]
    fn multiply_add<A: Arithmetic>(self, b: f32, c: f32) -> f32 {
        A::mul_add(self, b, c)
    }

    #[inline(always)]
    fn exp<A: Arithmetic>(self) -> f32 {
        // SAFETY: single floats need no instructions that a processor may lack.
        unsafe { simd::exp::<Single<A>>(self) }
    }
}

impl Float for f64 {
    #[inline(always)]
    fn multiply_add<A: Arithmetic>(self, b: f64, c: f64) -> f64 {
        if A::FUSED { f64::mul_add(self, b, c) } else { self * b + c }
    }

    #[inline(always)]
    fn exp<A: Arithmetic>(self) -> f64 {
        // As in `simd::exp`: rounded to an integer in the low bits of the mantissa; ln 2 in two parts; Taylor's series,
        // whose first term left out is below 5e-18.
        const ROUND: f64 = 6_755_399_441_055_744.0;
        const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
        const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
        const INVERSE_FACTORIALS: [f64; 13] = {
            let mut series = [1.0; 13];
            let mut n = 11;
            // 1/12!, 1/11!, .., 1/0!: each from the one after it.
            while n > 0 {
                series[n - 1] = series[n] / (13 - n) as f64;
                n -= 1;
            }
            series
        };
        let shifted = self.multiply_add::<A>(std::f64::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = (-n).multiply_add::<A>(LN2_HIGH, self);
        let r = (-n).multiply_add::<A>(LN2_LOW, r);
        let mut p = INVERSE_FACTORIALS[0] / 13.0;
        for c in INVERSE_FACTORIALS {
            p = p.multiply_add::<A>(r, c);
        }
        let y = f64::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 52));
        if self < -708.0 { 0.0 } else { y }
    }
}

/// Dot product of two slices of one length, in an order that depends on nothing but the length.
#[inline(always)]
pub(crate) fn dot<F: Float, A: Arithmetic>(a: &[F], b: &[F]) -> F {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [F::default(); 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] = a[i].multiply_add::<A>(b[i], sums[i]);
        }
    }
    let mut rest = F::default();
    for (a, b) in a_rest.iter().zip(b_rest) {
        rest = a.multiply_add::<A>(*b, rest);
    }
    sum16(&sums) + rest
}

/// The sum of sixteen numbers in a fixed tree order.
#[inline(always)]
fn sum16<F: Float>(x: &[F; 16]) -> F {
    let halves: [F; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
    let quarters: [F; 4] = std::array::from_fn(|i| halves[i] + halves[i + 4]);
    (quarters[0] + quarters[2]) + (quarters[1] + quarters[3])
}
