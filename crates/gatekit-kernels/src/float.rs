//! The float types that fused kernels and loops compute in.

use std::ops::{Add, AddAssign, Mul, Neg, Sub};

use crate::simd::{self, Arithmetic, Simd, Single};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};

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
    + Neg<Output = Self>
    + 'static
{
    /// Its vectors.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Simd<Float = Self>;
    /// Its vectors.
    #[cfg(target_arch = "x86_64")]
    type Avx2: Simd<Float = Self>;

    /// What [`exp`](simd::exp) is made of: a number that rounds to an integer, left in the low bits of the mantissa,
    /// when it is added; `log2(e)`; `ln 2` in two parts, of which multiples of the first by a small integer are exact.
    const ROUND: Self;
    const LOG2_E: Self;
    const LN2: [Self; 2];
    /// Taylor's series of the exponential, `1/n!, .., 1/1!, 1/0!`, for arguments up to `ln(2)/2`.
    const SERIES: &'static [Self];
    /// The logarithm of the smallest result.
    const LOWEST: Self;

    /// The nearest number of this type.
    fn of(x: f64) -> Self;

    /// `self * b + c`.
    fn multiply_add<A: Arithmetic>(self, b: Self, c: Self) -> Self;

    /// `self * 2^n` with n in the low bits of `n`'s representation.
    fn shift_exponent(self, n: Self) -> Self;

    /// `exp(self)` for arguments up to 88, to about one unit in the last place; 0 below the smallest normal float32
    /// or, for float64, float64. NaN stays NaN.
    #[inline(always)]
    fn exp<A: Arithmetic>(self) -> Self {
        // SAFETY: single floats need no instructions that a processor may lack.
        unsafe { simd::exp::<Single<A, Self>>(self) }
    }
}

/// `1/n!` for n from `N - 1` to 0.
const fn inverse_factorials<const N: usize>() -> [f64; N] {
    let mut series = [1.0; N];
    let mut n = N - 1;
    while n > 0 {
        series[n - 1] = series[n] / (N - n) as f64;
        n -= 1;
    }
    series
}

impl Float for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = Avx512<f32>;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = Avx2<f32>;

    const ROUND: f32 = 12_582_912.0;
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    // The first term left out is below 6e-9.
    const SERIES: &'static [f32] =
        &[1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    const LOWEST: f32 = -87.0;

    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn multiply_add<A: Arithmetic>(self, b: f32, c: f32) -> f32 {
        A::mul_add(self, b, c)
    }

    #[inline(always)]
    fn shift_exponent(self, n: f32) -> f32 {
        f32::from_bits(self.to_bits().wrapping_add(n.to_bits() << 23))
    }
}

impl Float for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = Avx512<f64>;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = Avx2<f64>;

    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    const LN2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
    // The first term left out is below 5e-18.
    const SERIES: &'static [f64] = &inverse_factorials::<14>();
    const LOWEST: f64 = -708.0;

    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }

    #[inline(always)]
    fn multiply_add<A: Arithmetic>(self, b: f64, c: f64) -> f64 {
        if A::FUSED { f64::mul_add(self, b, c) } else { self * b + c }
    }

    #[inline(always)]
    fn shift_exponent(self, n: f64) -> f64 {
        f64::from_bits(self.to_bits().wrapping_add(n.to_bits() << 52))
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
pub(crate) fn sum16<F: Float>(x: &[F; 16]) -> F {
    let halves: [F; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
    let quarters: [F; 4] = std::array::from_fn(|i| halves[i] + halves[i + 4]);
    (quarters[0] + quarters[2]) + (quarters[1] + quarters[3])
}
