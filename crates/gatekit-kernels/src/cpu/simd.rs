//! Vector arithmetic at the widths a processor may have, chosen at run time.
//!
//! A kernel is written once, generic over [`Simd`]. [`Level::run`] enters it through a function compiled for the
//! instruction set that was found; everything below such an entry point is `#[inline(always)]`, so it is compiled for
//! that instruction set too.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::memory::Arena;

/// One vector width and its arithmetic.
///
/// # Safety
/// The operations may only be executed on a processor that has the instructions of the implementing type, and from
/// code inlined into an entry point of [`Level::run`]. Loads and stores need `LANES` valid floats at the pointer.
pub(super) trait Simd: Copy {
    /// A vector of [`Self::LANES`] floats.
    type Vector: Copy;
    /// Floats in a vector.
    const LANES: usize;
    /// Most vectors a register tile may be wide.
    const TILE_VECTORS: usize;

    unsafe fn splat(x: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, x: Self::Vector);
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn sub(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn mul(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `c - a * b`
    unsafe fn neg_mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a * b + c` on single floats, in a form that the compiler vectorises.
    fn scalar_mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// Sixteen floats a vector (AVX-512).
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;
    const TILE_VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn neg_mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn scalar_mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Eight floats a vector (AVX2 with fused multiply-add).
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn neg_mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn scalar_mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Four floats a vector in plain Rust: every processor has a vector unit that the compiler maps this to.
#[derive(Clone, Copy)]
pub(super) struct Plain;

/// Rounds twice unless the target always has a fused multiply-add (which elsewhere would be a library call).
#[inline(always)]
fn plain_mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

impl Simd for Plain {
    type Vector = [f32; 4];
    const LANES: usize = 4;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: [f32; 4]) {
        unsafe { to.cast::<[f32; 4]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]]
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]]
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        [
            plain_mul_add(a[0], b[0], c[0]),
            plain_mul_add(a[1], b[1], c[1]),
            plain_mul_add(a[2], b[2], c[2]),
            plain_mul_add(a[3], b[3], c[3]),
        ]
    }
    #[inline(always)]
    unsafe fn neg_mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        unsafe { Self::mul_add([-a[0], -a[1], -a[2], -a[3]], b, c) }
    }
    #[inline(always)]
    fn scalar_mul_add(a: f32, b: f32, c: f32) -> f32 {
        plain_mul_add(a, b, c)
    }
}

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// What the compilation target guarantees.
    Plain,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 (its foundation, F).
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A numbered set of independent jobs, generic over the vector width.
pub(super) trait Task: Sync {
    /// Lengths of the pieces of scratch memory that the largest job takes.
    fn scratch(&self) -> Vec<usize>;

    /// Does job `index`.
    ///
    /// # Safety
    /// To be called through [`Level::run`] only, each index once.
    unsafe fn run<S: Simd>(&self, index: usize, arena: Arena);
}

impl Level {
    /// All levels that this processor can execute, the fastest last.
    pub(super) fn available() -> Vec<Self> {
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
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return if is_x86_feature_detected!("avx512f") { Self::Avx512 } else { Self::Avx2 };
        }
        Self::Plain
    }

    /// Does job `index` of `task` with this level's instructions.
    ///
    /// # Safety
    /// `self` must be one of [`Self::available`]; each index may run once.
    pub(super) unsafe fn run<T: Task>(self, task: &T, index: usize, arena: Arena) {
        match self {
            Self::Plain => unsafe { task.run::<Plain>(index, arena) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { run_avx2(task, index, arena) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { run_avx512(task, index, arena) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<T: Task>(task: &T, index: usize, arena: Arena) {
    unsafe { task.run::<Avx2>(index, arena) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn run_avx512<T: Task>(task: &T, index: usize, arena: Arena) {
    unsafe { task.run::<Avx512>(index, arena) }
}

/// `exp(x)` for `x <= 88`, to about one unit in the last place; results below the smallest normal float (x < -87) are
/// 0. NaN stays NaN. Branch-free, so that a loop over it is vectorised.
#[inline(always)]
pub(super) fn exp<S: Simd>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; multiples of the first by a small integer are exact.
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = S::scalar_mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = S::scalar_mul_add(n, -LN2_HIGH, x);
    let r = S::scalar_mul_add(n, -LN2_LOW, r);
    // Taylor series: |r| <= ln(2)/2, so the first term left out is below 6e-9.
    let mut p = 1.0 / 5040.0;
    p = S::scalar_mul_add(p, r, 1.0 / 720.0);
    p = S::scalar_mul_add(p, r, 1.0 / 120.0);
    p = S::scalar_mul_add(p, r, 1.0 / 24.0);
    p = S::scalar_mul_add(p, r, 1.0 / 6.0);
    p = S::scalar_mul_add(p, r, 0.5);
    p = S::scalar_mul_add(p, r, 1.0);
    p = S::scalar_mul_add(p, r, 1.0);
    let y = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 { 0.0 } else { y }
}

/// Replaces every element by its exponential.
#[inline(always)]
pub(super) fn exp_in_place<S: Simd>(values: &mut [f32]) {
    for x in values {
        *x = exp::<S>(*x);
    }
}

/// Dot product in a fixed order: eight running sums, then their sum. The lengths must be equal and a multiple of 8.
#[inline(always)]
pub(super) fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    debug_assert!(a.len() == b.len() && a.len().is_multiple_of(8));
    let mut sums = [0.0f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for i in 0..8 {
            sums[i] = S::scalar_mul_add(a[i], b[i], sums[i]);
        }
    }
    sum8(sums)
}

/// The sum of sixteen floats in a fixed tree order.
#[inline(always)]
pub(super) fn sum16(x: &[f32; 16]) -> f32 {
    let mut half = [0.0f32; 8];
    for i in 0..8 {
        half[i] = x[i] + x[i + 8];
    }
    sum8(half)
}

#[inline(always)]
fn sum8(half: [f32; 8]) -> f32 {
    let quarter = [half[0] + half[4], half[1] + half[5], half[2] + half[6], half[3] + half[7]];
    (quarter[0] + quarter[2]) + (quarter[1] + quarter[3])
}

#[cfg(test)]
mod tests {
    use super::super::memory::with_scratch;
    use super::*;

    struct Exponentials {
        input: Vec<f32>,
        output: std::sync::Mutex<Vec<f32>>,
    }
    impl Task for Exponentials {
        fn scratch(&self) -> Vec<usize> {
            Vec::new()
        }
        #[inline(always)]
        unsafe fn run<S: Simd>(&self, _: usize, _: Arena) {
            let mut values = self.input.clone();
            exp_in_place::<S>(&mut values);
            *self.output.lock().unwrap() = values;
        }
    }

    fn exponentials(level: Level, input: &[f32]) -> Vec<f32> {
        let task = Exponentials { input: input.to_vec(), output: Default::default() };
        with_scratch(&[], |arena| unsafe { level.run(&task, 0, arena) });
        task.output.into_inner().unwrap()
    }

    #[test]
    fn exponential_is_accurate_to_two_units_in_the_last_place() {
        let input: Vec<f32> = (0..=870_000).map(|i| -1e-4 * i as f32).collect();
        for level in Level::available() {
            for (x, y) in input.iter().zip(exponentials(level, &input)) {
                let exact = f64::from(*x).exp();
                let unit = f64::from(f32::EPSILON) * 2f64.powf(exact.log2().floor());
                assert!((f64::from(y) - exact).abs() < 2.0 * unit, "{level:?}: exp({x}) = {y}, not {exact}");
            }
        }
    }

    #[test]
    fn exponential_of_special_values() {
        for level in Level::available() {
            let y =
                exponentials(level, &[0.0, -0.0, -87.5, -1000.0, -1e30, f32::NEG_INFINITY, f32::NAN, -1e-30]);
            assert_eq!(y[..6], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], "{level:?}");
            assert!(y[6].is_nan(), "{level:?}");
            assert_eq!(y[7], 1.0, "{level:?}");
        }
    }
}
