//! Loops over slices of floats, and the functions of float32 they are made of.
//!
//! A [`Loop`] is written float by float, generic over [`Arithmetic`], and all below is `#[inline(always)]`: the compiler
//! vectorises it for the instruction set that was found at run time.

use rayon::prelude::*;

use crate::simd::{self, Arithmetic, Kernel, Level, Simd, Single};

/// Elements a job works on: few enough that what it reads and writes stays in the caches.
pub(crate) const JOB: usize = 1 << 13;

/// Elements below which waking other threads costs more than they save.
const SERIAL: usize = 1 << 15;

/// A loop over slices.
pub(crate) trait Loop: Sized {
    /// Runs it. Implementations are `#[inline(always)]`.
    fn run<A: Arithmetic>(self);
}

/// A loop as a kernel: it is written float by float.
struct ByFloat<L>(L);

impl<L: Loop> Kernel for ByFloat<L> {
    type Float = f32;

    #[inline(always)]
    unsafe fn run<S: Simd<Float = f32>>(self) {
        self.0.run::<S::Arithmetic>();
    }
}

/// Runs independent loops over `elements` elements in all, on all threads if that pays.
pub(crate) fn run_all<L: Loop + Send>(elements: usize, loops: Vec<L>) {
    // SAFETY: a loop asks for nothing more than a kernel's caller has to see to.
    unsafe { run_kernels(elements, loops.into_iter().map(ByFloat).collect()) }
}

/// [`run_all`] of kernels, with the widest vectors this processor has.
///
/// # Safety
/// What the kernels ask for, beyond the instructions of their vectors, must hold.
pub(crate) unsafe fn run_kernels<K: Kernel + Send>(elements: usize, kernels: Vec<K>) {
    // SAFETY: the level was found on this processor; the rest is the caller's promise.
    let run = |kernel| unsafe { Level::best().run(kernel) };
    if elements < SERIAL || kernels.len() == 1 {
        kernels.into_iter().for_each(run);
    } else {
        kernels.into_par_iter().for_each(run);
    }
}

/// Runs one loop.
pub(crate) fn run_one(only: impl Loop) {
    // SAFETY: the level was found on this processor.
    unsafe { Level::best().run(ByFloat(only)) }
}

/// [`simd::exp`] of one float.
#[inline(always)]
fn exp<A: Arithmetic>(x: f32) -> f32 {
    // SAFETY: single floats need no instructions that a processor may lack.
    unsafe { simd::exp::<Single<A>>(x) }
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

    impl Loop for Functions<'_> {
        #[inline(always)]
        fn run<A: Arithmetic>(self) {
            for (z, out) in self.input.iter().zip(self.output) {
                let (open, closed) = logistic::<A>(*z);
                *out = [exp::<A>(-z.abs()), open, closed, log_sigmoid::<A>(*z)];
            }
        }
    }

    /// Results at every level of this processor.
    fn evaluate(input: &[f32]) -> Vec<Vec<[f32; 4]>> {
        let at = |level: Level| {
            let mut output = vec![[0.0; 4]; input.len()];
            // SAFETY: the level is one of those available.
            unsafe { level.run(ByFloat(Functions { input, output: &mut output })) };
            output
        };
        Level::available().into_iter().map(at).collect()
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
        impl Loop for Dot<'_> {
            #[inline(always)]
            fn run<A: Arithmetic>(self) {
                *self.2 = crate::float::dot::<f32, A>(self.0, self.1);
            }
        }
        for len in 0..70 {
            // Small whole numbers: exact in any order.
            let a: Vec<f32> = (0..len).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..len).map(|i| (i % 5) as f32 + 1.0).collect();
            let mut got = f32::NAN;
            run_all(len, vec![Dot(&a, &b, &mut got)]);
            assert_eq!(got, a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>());
        }
    }
}
