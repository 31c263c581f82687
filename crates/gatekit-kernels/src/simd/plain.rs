//! Vectors in plain Rust.

use super::{Arithmetic, Simd, Single, Target};

/// Four floats a vector in plain Rust: every processor has a vector unit that the compiler maps this to.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Simd for Plain {
    type Vector = [f32; 4];
    type Arithmetic = Target;
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
            Target::mul_add(a[0], b[0], c[0]),
            Target::mul_add(a[1], b[1], c[1]),
            Target::mul_add(a[2], b[2], c[2]),
            Target::mul_add(a[3], b[3], c[3]),
        ]
    }
    #[inline(always)]
    unsafe fn neg_mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        unsafe { Self::mul_add([-a[0], -a[1], -a[2], -a[3]], b, c) }
    }
    #[inline(always)]
    unsafe fn shift_exponent(a: [f32; 4], n: [f32; 4]) -> [f32; 4] {
        unsafe {
            [
                Single::<Target>::shift_exponent(a[0], n[0]),
                Single::<Target>::shift_exponent(a[1], n[1]),
                Single::<Target>::shift_exponent(a[2], n[2]),
                Single::<Target>::shift_exponent(a[3], n[3]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn zero_below(bound: f32, x: [f32; 4], a: [f32; 4]) -> [f32; 4] {
        unsafe {
            [
                Single::<Target>::zero_below(bound, x[0], a[0]),
                Single::<Target>::zero_below(bound, x[1], a[1]),
                Single::<Target>::zero_below(bound, x[2], a[2]),
                Single::<Target>::zero_below(bound, x[3], a[3]),
            ]
        }
    }
}
