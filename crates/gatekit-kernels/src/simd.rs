//! Vector arithmetic at the widths a processor may have, chosen at run time.
//!
//! A [`Kernel`] is written once, generic over [`Simd`]. [`Level::run`] enters it through a function compiled for the
//! instruction set that was found; everything below such an entry point is `#[inline(always)]`, so it is compiled for
//! that instruction set too.

mod plain;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use plain::Plain;
#[cfg(target_arch = "x86_64")]
use scalar::Fused;
pub(crate) use scalar::{Arithmetic, Single, Target};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

use crate::float::{Float, sum16};

/// One vector width and its arithmetic.
///
/// # Safety
/// The operations may only be executed on a processor that has the instructions of the implementing type, and from
/// code inlined into an entry point of [`Level::run`]. Loads and stores need `LANES` valid floats at the pointer.
pub(crate) trait Simd: Copy {
    /// What a vector holds.
    type Float: Float;
    /// A vector of [`Self::LANES`] floats.
    type Vector: Copy;
    /// Single floats with the same instructions.
    type Arithmetic: Arithmetic;
    /// Floats in a vector.
    const LANES: usize;
    /// Most vectors a register tile may be wide.
    const TILE_VECTORS: usize;

    /// Asks for the cache line at `at`, which need not be valid, to be in the second-level cache soon.
    #[inline(always)]
    unsafe fn prefetch(_at: *const Self::Float) {}
    unsafe fn splat(x: Self::Float) -> Self::Vector;
    unsafe fn load(from: *const Self::Float) -> Self::Vector;
    unsafe fn store(to: *mut Self::Float, x: Self::Vector);
    /// The first `count < LANES` floats; 0 in the other lanes.
    #[inline(always)]
    unsafe fn load_first(from: *const Self::Float, count: usize) -> Self::Vector {
        let mut lanes = [Self::Float::default(); 16];
        unsafe {
            for (i, lane) in lanes.iter_mut().enumerate().take(count) {
                *lane = *from.add(i);
            }
            Self::load(lanes.as_ptr())
        }
    }
    /// Writes the first `count < LANES` floats.
    #[inline(always)]
    unsafe fn store_first(to: *mut Self::Float, x: Self::Vector, count: usize) {
        let mut lanes = [Self::Float::default(); 16];
        unsafe {
            Self::store(lanes.as_mut_ptr(), x);
            for (i, lane) in lanes.iter().enumerate().take(count) {
                to.add(i).write(*lane);
            }
        }
    }
    /// Writes `LANES` lines of `LANES` floats as columns, with `stride` floats from one row to the next.
    #[inline(always)]
    unsafe fn transpose(line: impl Fn(usize) -> *const Self::Float, to: *mut Self::Float, stride: usize) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                unsafe { to.add(j * stride + i).write(*line(i).add(j)) };
            }
        }
    }
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn sub(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn mul(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `c - a * b`
    unsafe fn neg_mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a * 2^n` with n in the low bits of `n`'s representation.
    unsafe fn shift_exponent(a: Self::Vector, n: Self::Vector) -> Self::Vector;
    /// `a` where `x >= bound` or x is NaN, else 0.
    unsafe fn zero_below(bound: Self::Float, x: Self::Vector, a: Self::Vector) -> Self::Vector;
}

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What the compilation target guarantees.
    Plain,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 (its foundation, F).
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Work that is written for every vector width.
pub(crate) trait Kernel {
    /// What it computes in.
    type Float: Float;

    /// Does it. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// See [`Simd`]; an implementation may ask for more.
    unsafe fn run<S: Simd<Float = Self::Float>>(self);
}

impl Level {
    /// All levels that this processor can execute, the fastest last.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f") {
                    levels.push(Self::Avx512);
                }
            }
        }
        levels
    }

    /// The fastest level that this processor can execute.
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return if is_x86_feature_detected!("avx512f") { Self::Avx512 } else { Self::Avx2 };
        }
        Self::Plain
    }

    /// Runs a kernel with this level's instructions.
    ///
    /// # Safety
    /// The processor must have the instructions of `self`, and what the kernel asks for must hold.
    pub(crate) unsafe fn run(self, kernel: impl Kernel) {
        match self {
            Self::Plain => unsafe { kernel.run::<Plain<_>>() },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    unsafe { kernel.run::<<K::Float as Float>::Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    unsafe { kernel.run::<<K::Float as Float>::Avx512>() }
}

/// `exp(x)` for `x <= 88`, to about one unit in the last place; results below the smallest normal float are 0. NaN
/// stays NaN.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::Vector) -> S::Vector {
    unsafe {
        let round = S::splat(S::Float::ROUND);
        let shifted = S::mul_add(x, S::splat(S::Float::LOG2_E), round);
        let n = S::sub(shifted, round);
        let [high, low] = S::Float::LN2;
        let r = S::neg_mul_add(n, S::splat(high), x);
        let r = S::neg_mul_add(n, S::splat(low), r);
        let mut p = S::splat(S::Float::SERIES[0]);
        for c in &S::Float::SERIES[1..] {
            p = S::mul_add(p, r, S::splat(*c));
        }
        S::zero_below(S::Float::LOWEST, x, S::shift_exponent(p, shifted))
    }
}

/// Dot product in a fixed order. The lengths must be equal and a multiple of 16.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd>(a: &[S::Float], b: &[S::Float]) -> S::Float {
    debug_assert!(a.len() == b.len() && a.len().is_multiple_of(16));
    let mut lanes = [S::Float::default(); 16];
    unsafe {
        let mut sum = S::splat(S::Float::default());
        for i in (0..a.len()).step_by(S::LANES) {
            sum = S::mul_add(S::load(a.as_ptr().add(i)), S::load(b.as_ptr().add(i)), sum);
        }
        S::store(lanes.as_mut_ptr(), sum);
    }
    sum16(&lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exponentials in whole vectors, and float by float as in a loop that the compiler vectorises.
    struct Exponentials<'a> {
        input: &'a [[f32; 16]],
        vectors: &'a mut [[f32; 16]],
        singles: &'a mut [[f32; 16]],
    }

    impl Kernel for Exponentials<'_> {
        type Float = f32;

        #[inline(always)]
        unsafe fn run<S: Simd<Float = f32>>(self) {
            for ((x, y), single) in self.input.iter().zip(self.vectors).zip(self.singles) {
                for at in (0..16).step_by(S::LANES) {
                    unsafe { S::store(y.as_mut_ptr().add(at), exp::<S>(S::load(x.as_ptr().add(at)))) };
                }
                for (x, y) in x.iter().zip(single) {
                    *y = unsafe { exp::<Single<S::Arithmetic>>(*x) };
                }
            }
        }
    }

    /// The exponentials of `input` at a level, which must not depend on the form.
    fn exponentials(level: Level, input: &[f32]) -> Vec<f32> {
        let mut padded = vec![[0.0; 16]; input.len().div_ceil(16)];
        padded.as_flattened_mut()[..input.len()].copy_from_slice(input);
        let (mut vectors, mut singles) = (padded.clone(), padded.clone());
        let kernel = Exponentials { input: &padded, vectors: &mut vectors, singles: &mut singles };
        // SAFETY: the level is one of those available.
        unsafe { level.run(kernel) };
        let (vectors, singles) = (vectors.as_flattened(), singles.as_flattened());
        for ((x, vector), single) in input.iter().zip(vectors).zip(singles) {
            let same = vector.to_bits() == single.to_bits() || vector.is_nan() && single.is_nan();
            assert!(same, "{level:?}: exp({x}) = {vector} in a vector, {single} alone");
        }
        vectors[..input.len()].to_vec()
    }

    #[test]
    fn exponential_is_accurate_to_two_units_in_the_last_place() {
        let input: Vec<f32> = (-1_030_000..=880_000).map(|i| 1e-4 * i as f32).collect();
        for level in Level::available() {
            for (x, y) in input.iter().zip(exponentials(level, &input)) {
                let exact = f64::from(*x).exp();
                if *x < -87.0 {
                    assert_eq!(y, 0.0, "{level:?}: exp({x})");
                    continue;
                }
                let unit = f64::from(f32::EPSILON) * 2f64.powf(exact.log2().floor());
                assert!((f64::from(y) - exact).abs() <= 2.0 * unit, "{level:?}: exp({x}) = {y}, not {exact}");
            }
        }
    }

    /// Exponentials in float64, in whole vectors.
    struct WideExponentials<'a>(&'a [[f64; 16]], &'a mut [[f64; 16]]);

    impl Kernel for WideExponentials<'_> {
        type Float = f64;

        #[inline(always)]
        unsafe fn run<S: Simd<Float = f64>>(self) {
            for (x, y) in self.0.iter().zip(self.1) {
                for at in (0..16).step_by(S::LANES) {
                    unsafe { S::store(y.as_mut_ptr().add(at), exp::<S>(S::load(x.as_ptr().add(at)))) };
                }
            }
        }
    }

    #[test]
    fn wide_exponential_is_accurate_to_two_units_in_the_last_place() {
        let input: Vec<[f64; 16]> = (-8840..=1090)
            .map(|i| std::array::from_fn(|j| 0.08 * (f64::from(i) + j as f64 / 16.0)))
            .collect();
        for level in Level::available() {
            let mut output = vec![[0.0; 16]; input.len()];
            // SAFETY: the level is one of those available.
            unsafe { level.run(WideExponentials(&input, &mut output)) };
            for (x, y) in input.as_flattened().iter().zip(output.as_flattened()) {
                // Held beside the standard library's, which is accurate to one.
                let unit = f64::EPSILON * 2f64.powf(x.exp().log2().floor());
                assert!((y - x.exp()).abs() <= 2.0 * unit, "{level:?}: exp({x}) = {y}, not {}", x.exp());
            }
            let special = [[
                -709.0,
                -1e30,
                f64::NEG_INFINITY,
                -0.0,
                f64::NAN,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
            ]];
            let mut got = [[0.5; 16]];
            // SAFETY: as above.
            unsafe { level.run(WideExponentials(&special, &mut got)) };
            assert_eq!(got[0][..4], [0.0, 0.0, 0.0, 1.0], "{level:?}");
            assert!(got[0][4].is_nan(), "{level:?}");
        }
    }

    #[test]
    fn exponential_of_special_values() {
        let input = [0.0, -0.0, -87.5, -1000.0, -1e30, f32::NEG_INFINITY, f32::NAN, -1e-30];
        for level in Level::available() {
            let y = exponentials(level, &input);
            assert_eq!(y[..6], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], "{level:?}");
            assert!(y[6].is_nan(), "{level:?}");
            assert_eq!(y[7], 1.0, "{level:?}");
        }
    }
}
