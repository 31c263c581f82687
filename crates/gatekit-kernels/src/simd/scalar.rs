//! Single floats: for what is left of a row, and for loops that the compiler vectorises.

use std::marker::PhantomData;

use super::Simd;

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
pub(crate) struct Single<A = Target>(PhantomData<A>);

impl<A: Arithmetic> Simd for Single<A> {
    type Vector = f32;
    type Arithmetic = A;
    const LANES: usize = 1;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> f32 {
        unsafe { *from }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: f32) {
        unsafe { to.write(x) }
    }
    #[inline(always)]
    unsafe fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    unsafe fn sub(a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    unsafe fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    unsafe fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        A::mul_add(a, b, c)
    }
    #[inline(always)]
    unsafe fn neg_mul_add(a: f32, b: f32, c: f32) -> f32 {
        A::mul_add(-a, b, c)
    }
    #[inline(always)]
    unsafe fn shift_exponent(a: f32, n: f32) -> f32 {
        f32::from_bits(a.to_bits().wrapping_add(n.to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn zero_below(bound: f32, x: f32, a: f32) -> f32 {
        if x < bound { 0.0 } else { a }
    }
}
