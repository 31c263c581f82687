//! The vectors of x86-64 processors.

use std::{arch::x86_64::*, marker::PhantomData};

use super::{Fused, Simd};

/// Vectors of 512 bits (AVX-512).
#[derive(Clone, Copy)]
pub(crate) struct Avx512<F>(PhantomData<F>);

/// Vectors of 256 bits (AVX2 with fused multiply-add).
#[derive(Clone, Copy)]
pub(crate) struct Avx2<F>(PhantomData<F>);

/// A vector type: its intrinsics, and further functions of its own.
macro_rules! vectors {
    (
        $name:ident, $float:ty, $vector:ty, $lanes:literal lanes, tiles of $tile:literal,
        $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $mul_add:ident, $neg_mul_add:ident,
        $($own:item)*
    ) => {
        impl Simd for $name<$float> {
            type Float = $float;
            type Vector = $vector;
            type Arithmetic = Fused;
            const LANES: usize = $lanes;
            const TILE_VECTORS: usize = $tile;

            #[inline(always)]
            unsafe fn prefetch(at: *const $float) {
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
            }
            #[inline(always)]
            unsafe fn splat(x: $float) -> $vector {
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load(from: *const $float) -> $vector {
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut $float, x: $vector) {
                unsafe { $store(to, x) }
            }
            #[inline(always)]
            unsafe fn add(a: $vector, b: $vector) -> $vector {
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: $vector, b: $vector) -> $vector {
                unsafe { $sub(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: $vector, b: $vector) -> $vector {
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            unsafe fn mul_add(a: $vector, b: $vector, c: $vector) -> $vector {
                unsafe { $mul_add(a, b, c) }
            }
            #[inline(always)]
            unsafe fn neg_mul_add(a: $vector, b: $vector, c: $vector) -> $vector {
                unsafe { $neg_mul_add(a, b, c) }
            }
            $($own)*
        }
    };
}

vectors! {
    Avx512, f32, __m512, 16 lanes, tiles of 4,
    _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_fmadd_ps,
    _mm512_fnmadd_ps,
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps((1 << count) - 1, from) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, x: __m512, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, (1 << count) - 1, x) }
    }
    #[inline(always)]
    unsafe fn shift_exponent(a: __m512, n: __m512) -> __m512 {
        unsafe {
            let shift = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), shift))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(bound: f32, x: __m512, a: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, Self::splat(bound)), a) }
    }
    #[inline(always)]
    unsafe fn transpose(line: impl Fn(usize) -> *const f32, to: *mut f32, stride: usize) {
        unsafe {
            // Within quarters of 128 bits first: quarter q of `fours[4 g + c]` is column 4 q + c of lines 4 g ..
            let mut fours = [_mm512_setzero_ps(); 16];
            for g in 0..4 {
                let (a, b) = (Self::load(line(4 * g)), Self::load(line(4 * g + 1)));
                let (c, d) = (Self::load(line(4 * g + 2)), Self::load(line(4 * g + 3)));
                let low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let low2 = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                let high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let high2 = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                fours[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2));
                fours[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2));
                fours[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2));
                fours[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2));
            }
            for c in 0..4 {
                let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
                // Quarters 0 and 2, and 1 and 3, of two at a time.
                let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(d, e)];
                let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(d, e)];
                let columns = [
                    _mm512_shuffle_f32x4::<0x88>(even[0], even[1]),
                    _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]),
                    _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]),
                    _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]),
                ];
                for (q, column) in columns.into_iter().enumerate() {
                    Self::store(to.add((4 * q + c) * stride), column);
                }
            }
        }
    }
}

vectors! {
    Avx512, f64, __m512d, 8 lanes, tiles of 4,
    _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd, _mm512_sub_pd, _mm512_mul_pd, _mm512_fmadd_pd,
    _mm512_fnmadd_pd,
    #[inline(always)]
    unsafe fn load_first(from: *const f64, count: usize) -> __m512d {
        unsafe { _mm512_maskz_loadu_pd((1 << count) - 1, from) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f64, x: __m512d, count: usize) {
        unsafe { _mm512_mask_storeu_pd(to, (1 << count) - 1, x) }
    }
    #[inline(always)]
    unsafe fn shift_exponent(a: __m512d, n: __m512d) -> __m512d {
        unsafe {
            let shift = _mm512_slli_epi64::<52>(_mm512_castpd_si512(n));
            _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(a), shift))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(bound: f64, x: __m512d, a: __m512d) -> __m512d {
        unsafe { _mm512_maskz_mov_pd(_mm512_cmp_pd_mask::<_CMP_NLT_UQ>(x, Self::splat(bound)), a) }
    }
}

vectors! {
    Avx2, f32, __m256, 8 lanes, tiles of 2,
    _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_fmadd_ps,
    _mm256_fnmadd_ps,
    #[inline(always)]
    unsafe fn shift_exponent(a: __m256, n: __m256) -> __m256 {
        unsafe {
            let shift = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shift))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(bound: f32, x: __m256, a: __m256) -> __m256 {
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x, Self::splat(bound)), a) }
    }
    #[inline(always)]
    unsafe fn transpose(line: impl Fn(usize) -> *const f32, to: *mut f32, stride: usize) {
        unsafe {
            // As the 512-bit form, with two halves in place of four quarters.
            let mut fours = [_mm256_setzero_ps(); 8];
            for g in 0..2 {
                let (a, b) = (Self::load(line(4 * g)), Self::load(line(4 * g + 1)));
                let (c, d) = (Self::load(line(4 * g + 2)), Self::load(line(4 * g + 3)));
                let low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
                let low2 = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
                let high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
                let high2 = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
                fours[4 * g] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, low2));
                fours[4 * g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, low2));
                fours[4 * g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high, high2));
                fours[4 * g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high, high2));
            }
            for c in 0..4 {
                let (first, second) = (fours[c], fours[4 + c]);
                Self::store(to.add(c * stride), _mm256_permute2f128_ps::<0x20>(first, second));
                Self::store(to.add((4 + c) * stride), _mm256_permute2f128_ps::<0x31>(first, second));
            }
        }
    }
}

vectors! {
    Avx2, f64, __m256d, 4 lanes, tiles of 2,
    _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd, _mm256_sub_pd, _mm256_mul_pd, _mm256_fmadd_pd,
    _mm256_fnmadd_pd,
    #[inline(always)]
    unsafe fn shift_exponent(a: __m256d, n: __m256d) -> __m256d {
        unsafe {
            let shift = _mm256_slli_epi64::<52>(_mm256_castpd_si256(n));
            _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(a), shift))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(bound: f64, x: __m256d, a: __m256d) -> __m256d {
        unsafe { _mm256_and_pd(_mm256_cmp_pd::<_CMP_NLT_UQ>(x, Self::splat(bound)), a) }
    }
}
