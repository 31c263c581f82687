//! Single floats: for what is left of a row, and for loops that the compiler vectorises.

use std::marker::PhantomData;

use super::Simd;
use crate::float::Float;

/// How `a * b + c` is computed.
pub(crate) trait Arithmetic: Copy {
    /// Whether it is rounded once, by an instruction of its own.
    const FUSED: bool;

    /// `a * b + c`.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// The fused multiply-add of the vector unit.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Fused;

#[cfg(target_arch = "x86_64")]
impl Arithmetic for Fused {
    const FUSED: bool = true;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// What the compilation target guarantees.
#[derive(Clone, Copy)]
pub(crate) struct Target;

impl Arithmetic for Target {
    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

    /// Rounds twice unless the target always has a fused multiply-add, which elsewhere would be a library call.
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        if Self::FUSED { a.mul_add(b, c) } else { a * b + c }
    }
}

/// One float as a vector. Its operations are sound on every processor.
#[derive(Clone, Copy)]
pub(crate) struct Single<A = Target, F = f32>(PhantomData<(A, F)>);

impl<A: Arithmetic, F: Float> Simd for Single<A, F> {
    type Float = F;
    type Vector = F;
    type Arithmetic = A;
    const LANES: usize = 1;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: F) -> F {
        x
    }
    #[inline(always)]
    unsafe fn load(from: *const F) -> F {
        unsafe { *from }
    }
    #[inline(always)]
    unsafe fn store(to: *mut F, x: F) {
        unsafe { to.write(x) }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        a + b
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        a - b
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        a * b
    }
    #[inline(always)]
    unsafe fn mul_add(a: F, b: F, c: F) -> F {
        a.multiply_add::<A>(b, c)
    }
    #[inline(always)]
    unsafe fn neg_mul_add(a: F, b: F, c: F) -> F {
        (-a).multiply_add::<A>(b, c)
    }
    #[inline(always)]
    unsafe fn shift_exponent(a: F, n: F) -> F {
        a.shift_exponent(n)
    }
    #[inline(always)]
    unsafe fn zero_below(bound: F, x: F, a: F) -> F {
        if x < bound { F::default() } else { a }
    }
}
