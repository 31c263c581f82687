//! Vectors in plain Rust.

use std::{array::from_fn, marker::PhantomData};

use super::{Simd, Single, Target};
use crate::float::Float;

/// Four floats a vector in plain Rust: every processor has a vector unit that the compiler maps this to.
#[derive(Clone, Copy)]
pub(crate) struct Plain<F>(PhantomData<F>);

impl<F: Float> Simd for Plain<F> {
    type Float = F;
    type Vector = [F; 4];
    type Arithmetic = Target;
    const LANES: usize = 4;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: F) -> [F; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const F) -> [F; 4] {
        unsafe { from.cast::<[F; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut F, x: [F; 4]) {
        unsafe { to.cast::<[F; 4]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: [F; 4], b: [F; 4]) -> [F; 4] {
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }
    #[inline(always)]
    unsafe fn sub(a: [F; 4], b: [F; 4]) -> [F; 4] {
        [a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]]
    }
    #[inline(always)]
    unsafe fn mul(a: [F; 4], b: [F; 4]) -> [F; 4] {
        [a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]]
    }
    #[inline(always)]
    unsafe fn mul_add(a: [F; 4], b: [F; 4], c: [F; 4]) -> [F; 4] {
        [
            a[0].multiply_add::<Target>(b[0], c[0]),
            a[1].multiply_add::<Target>(b[1], c[1]),
            a[2].multiply_add::<Target>(b[2], c[2]),
            a[3].multiply_add::<Target>(b[3], c[3]),
        ]
    }
    #[inline(always)]
    unsafe fn neg_mul_add(a: [F; 4], b: [F; 4], c: [F; 4]) -> [F; 4] {
        unsafe { Self::mul_add([-a[0], -a[1], -a[2], -a[3]], b, c) }
    }
    #[inline(always)]
    unsafe fn shift_exponent(a: [F; 4], n: [F; 4]) -> [F; 4] {
        from_fn(|i| a[i].shift_exponent(n[i]))
    }
    #[inline(always)]
    unsafe fn zero_below(bound: F, x: [F; 4], a: [F; 4]) -> [F; 4] {
        from_fn(|i| unsafe { Single::<Target, F>::zero_below(bound, x[i], a[i]) })
    }
}
