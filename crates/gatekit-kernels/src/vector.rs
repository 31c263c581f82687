//! Elementwise functions and reductions in float32 for the vector units a processor may have.
//!
//! A [`Kernel`] is a loop over slices, generic over [`Arithmetic`]. [`run`] enters it through a
//! function compiled for the instruction set that was found at run time; all below is
//! `#[inline(always)]`, so the compiler vectorises it for that instruction set.

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// Elements a job works on: few enough that what it reads and writes stays in the caches.
pub(crate) const JOB: usize = 1 << 13;

/// Elements below which waking other threads costs more than they save.
const SERIAL: usize = 1 << 15;

/// How `a * b + c` is computed.
pub(crate) trait Arithmetic {
    /// `a * b + c`.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// The fused multiply-add of the vector unit.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Fused;

/// What the compilation target guarantees.
pub(crate) struct Plain;

#[cfg(target_arch = "x86_64")]
impl Arithmetic for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Arithmetic for Plain {
    /// Rounds twice where a fused multiply-add would be a library call.
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
    }
}

/// A loop over slices.
pub(crate) trait Kernel: Sized {
    /// Runs it. Implementations are `#[inline(always)]`.
    fn run<A: Arithmetic>(self);
}

/// Runs a kernel with the widest vectors this processor has.
pub(crate) fn run(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has these instructions.
        return if is_x86_feature_detected!("avx512f") {
            unsafe { run_avx512(kernel) }
        } else {
            unsafe { run_avx2(kernel) }
        };
    }
    kernel.run::<Plain>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2(kernel: impl Kernel) {
    kernel.run::<Fused>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn run_avx512(kernel: impl Kernel) {
    kernel.run::<Fused>();
}

/// Runs the kernels of independent jobs over `elements` elements in all, on all threads if that pays.
pub(crate) fn run_all<K: Kernel + Send>(elements: usize, kernels: Vec<K>) {
    if elements < SERIAL || kernels.len() == 1 {
        kernels.into_iter().for_each(run);
    } else {
        kernels.into_par_iter().for_each(run);
    }
}

/// Vectors of these lengths made by `fill`, spared the pass that would set them to 0 first.
///
/// # Safety
///
/// `fill` must write every element.
pub(crate) unsafe fn filled<const N: usize>(
    lens: [usize; N],
    fill: impl FnOnce([&mut [MaybeUninit<f32>]; N]),
) -> [Vec<f32>; N] {
    let mut vectors = lens.map(Vec::with_capacity);
    let mut places = lens.iter();
    fill(vectors.each_mut().map(|vector| {
        let len = *places.next().expect("one length a vector");
        &mut vector.spare_capacity_mut()[..len]
    }));
    for (vector, len) in vectors.iter_mut().zip(lens) {
        // SAFETY: allocated above, written by `fill`.
        unsafe { vector.set_len(len) };
    }
    vectors
}

/// `exp(x)` for `x <= 0`, to about one unit in the last place; 0 below -87. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<A: Arithmetic>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; multiples of the first by a small integer are exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = A::mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = A::mul_add(n, -LN2_HIGH, x);
    let r = A::mul_add(n, -LN2_LOW, r);
    // Taylor series: |r| <= ln(2)/2, so the first term left out is below 6e-9.
    let mut p = 1.0 / 5040.0;
    p = A::mul_add(p, r, 1.0 / 720.0);
    p = A::mul_add(p, r, 1.0 / 120.0);
    p = A::mul_add(p, r, 1.0 / 24.0);
    p = A::mul_add(p, r, 1.0 / 6.0);
    p = A::mul_add(p, r, 0.5);
    p = A::mul_add(p, r, 1.0);
    p = A::mul_add(p, r, 1.0);
    let y = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 { 0.0 } else { y }
}

/// `sigmoid(z)` and `sigmoid(-z)`, both accurate relative to their own size, for every `z`.
#[inline(always)]
pub(crate) fn logistic<A: Arithmetic>(z: f32) -> (f32, f32) {
    let e = exp::<A>(-z.abs());
    let larger = 1.0 / (1.0 + e);
    let smaller = e * larger;
    if z >= 0.0 { (larger, smaller) } else { (smaller, larger) }
}

/// `log(sigmoid(z)) = min(z, 0) - log1p(exp(-|z|))`, for every `z`.
#[inline(always)]
pub(crate) fn log_sigmoid<A: Arithmetic>(z: f32) -> f32 {
    let e = exp::<A>(-z.abs());
    // log1p(e) = 2 atanh(s) with s = e / (2 + e) <= 1/3: the first term left out is below 2e-9.
    let s = e / (2.0 + e);
    let q = s * s;
    let mut p = 1.0 / 15.0;
    p = A::mul_add(p, q, 1.0 / 13.0);
    p = A::mul_add(p, q, 1.0 / 11.0);
    p = A::mul_add(p, q, 1.0 / 9.0);
    p = A::mul_add(p, q, 1.0 / 7.0);
    p = A::mul_add(p, q, 1.0 / 5.0);
    p = A::mul_add(p, q, 1.0 / 3.0);
    p = A::mul_add(p, q, 1.0);
    let least = if z > 0.0 { 0.0 } else { z };
    A::mul_add(-2.0 * s, p, least)
}

/// Dot product of two slices of one length, in an order that depends on nothing but the length.
#[inline(always)]
pub(crate) fn dot<A: Arithmetic>(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] = A::mul_add(a[i], b[i], sums[i]);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = A::mul_add(*a, *b, *sum);
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0]
}

/// `sum += a * b`, element by element.
#[inline(always)]
pub(crate) fn accumulate<A: Arithmetic>(sum: &mut [f32], a: &[f32], b: &[f32]) {
    for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
        *sum = A::mul_add(*a, *b, *sum);
    }
}

/// The sum of the rows of `rows` `[count, dim]`, in their order.
pub(crate) fn sum_rows(rows: &[f32], dim: usize) -> Vec<f32> {
    let mut sum = vec![0.0; dim];
    for row in rows.chunks_exact(dim.max(1)) {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Functions<'a> {
        input: &'a [f32],
        output: &'a mut [[f32; 4]],
    }

    impl Kernel for Functions<'_> {
        #[inline(always)]
        fn run<A: Arithmetic>(self) {
            for (z, out) in self.input.iter().zip(self.output) {
                let (open, closed) = logistic::<A>(*z);
                *out = [exp::<A>(-z.abs()), open, closed, log_sigmoid::<A>(*z)];
            }
        }
    }

    /// Results at the widest level and at that of the compilation target.
    fn evaluate(input: &[f32]) -> [Vec<[f32; 4]>; 2] {
        let mut results = [vec![[0.0; 4]; input.len()], vec![[0.0; 4]; input.len()]];
        let [best, plain] = &mut results;
        run(Functions { input, output: best });
        Functions { input, output: plain }.run::<Plain>();
        results
    }

    #[test]
    fn functions_are_accurate_on_both_sides() {
        let input: Vec<f32> = (0..=400_000).map(|i| (i as f32 - 200_000.0) * 4.3e-4).collect();
        for results in evaluate(&input) {
            for (z, got) in input.iter().zip(results) {
                let exact = f64::from(*z);
                let e = (-exact.abs()).exp();
                let (larger, smaller) = (1.0 / (1.0 + e), e / (1.0 + e));
                let (open, closed) = if *z >= 0.0 { (larger, smaller) } else { (smaller, larger) };
                let want = [e, open, closed, exact.min(0.0) - e.ln_1p()];
                for (name, (got, want)) in ["exp", "open", "closed", "log"].iter().zip(got.iter().zip(want)) {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= 4e-7 * want.abs() + 1e-37, "{name}({z}) = {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn functions_of_special_values() {
        let input = [0.0, -0.0, 1e4, -1e4, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        for results in evaluate(&input) {
            let [zero, minus_zero, up, down, far_up, far_down, infinity, minus_infinity, nan] =
                results.try_into().unwrap();
            for got in [zero, minus_zero] {
                assert_eq!(got[..3], [1.0, 0.5, 0.5]);
                assert!((got[3] + std::f32::consts::LN_2).abs() < 1e-7);
            }
            for got in [up, far_up, infinity] {
                assert_eq!(got, [0.0, 1.0, 0.0, 0.0]);
            }
            assert_eq!(down, [0.0, 0.0, 1.0, -1e4]);
            assert_eq!(far_down, [0.0, 0.0, 1.0, -1e30]);
            assert_eq!(minus_infinity, [0.0, 0.0, 1.0, f32::NEG_INFINITY]);
            assert!(nan.iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn dot_products_of_every_length() {
        struct Dot<'a>(&'a [f32], &'a [f32], &'a mut f32);
        impl Kernel for Dot<'_> {
            #[inline(always)]
            fn run<A: Arithmetic>(self) {
                *self.2 = dot::<A>(self.0, self.1);
            }
        }
        for len in 0..70 {
            // Small whole numbers: exact in any order.
            let a: Vec<f32> = (0..len).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..len).map(|i| (i % 5) as f32 + 1.0).collect();
            let mut got = f32::NAN;
            run(Dot(&a, &b, &mut got));
            assert_eq!(got, a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>());
        }
    }
}
