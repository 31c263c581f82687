//! Result vectors that are filled by jobs, without being set to 0 first.

use std::{marker::PhantomData, mem::MaybeUninit};

use crate::float::Float;

/// Vectors of these lengths made by `fill`, spared the pass that would set them to 0 first.
///
/// # Safety
///
/// `fill` must write every element.
pub(crate) unsafe fn filled<F, const N: usize>(
    lens: [usize; N],
    fill: impl FnOnce([&mut [MaybeUninit<F>]; N]),
) -> [Vec<F>; N] {
    let mut vectors = lens.map(Vec::with_capacity);
    vectors.iter_mut().for_each(|vector| prefer_large_pages(vector.spare_capacity_mut()));
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

/// A vector of zeros.
pub(crate) fn zeroed<F: Float>(len: usize) -> Vec<F> {
    // Of untouched pages, which the system sets to 0.
    let mut zeros = vec![F::default(); len];
    prefer_large_pages(&mut zeros);
    zeros
}

/// Asks the system for large pages: first writes to small ones cost more than the writing itself.
fn prefer_large_pages<T>(place: &mut [T]) {
    #[cfg(target_os = "linux")]
    if size_of_val(place) >= WORTH_LARGE_PAGES {
        const MADV_HUGEPAGE: i32 = 14;
        unsafe extern "C" {
            fn madvise(start: *mut std::ffi::c_void, len: usize, advice: i32) -> i32;
        }
        let pages = place.as_mut_ptr_range();
        let start = pages.start.addr().next_multiple_of(PAGE);
        let end = pages.end.addr() / PAGE * PAGE;
        // SAFETY: advice about whole pages of memory that is ours; it changes no value, and may fail.
        unsafe { madvise(pages.start.with_addr(start).cast(), end - start, MADV_HUGEPAGE) };
    }
    let _ = place;
}

/// Bytes from which large pages are asked for: some of their usual size.
#[cfg(target_os = "linux")]
const WORTH_LARGE_PAGES: usize = 8 << 20;

/// A multiple of every usual page size of the system, which advice is given for.
#[cfg(target_os = "linux")]
const PAGE: usize = 1 << 16;

/// A result array that jobs fill together, each its own elements.
pub(crate) struct Filling<'a, F = f32> {
    start: *mut F,
    len: usize,
    owner: PhantomData<&'a mut [F]>,
}

// SAFETY: all access is through unsafe methods whose callers touch disjoint elements.
unsafe impl<F: Send> Send for Filling<'_, F> {}
unsafe impl<F: Send> Sync for Filling<'_, F> {}

impl<'a, F> Filling<'a, F> {
    /// Shares memory that nothing has been written to.
    pub(crate) fn unwritten(place: &'a mut [MaybeUninit<F>]) -> Self {
        Self { start: place.as_mut_ptr().cast(), len: place.len(), owner: PhantomData }
    }

    /// Shares an initialised slice.
    pub(crate) fn of(slice: &'a mut [F]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// The first element, for jobs that do their own writing.
    #[inline(always)]
    pub(crate) fn start(&self) -> *mut F {
        self.start
    }

    /// Writes `values` from element `offset` on.
    ///
    /// # Safety
    /// No other job may access these elements meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, offset: usize, values: &[F]) {
        debug_assert!(offset + values.len() <= self.len);
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(offset), values.len()) }
    }

    /// The `len` elements from `offset` on, to be written.
    ///
    /// # Safety
    /// No other job may access these elements meanwhile.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn uninitialised(&self, offset: usize, len: usize) -> &mut [MaybeUninit<F>] {
        debug_assert!(offset + len <= self.len);
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset).cast(), len) }
    }

    /// The `len` elements from `offset` on.
    ///
    /// # Safety
    /// They must have been written, and no other job may access them meanwhile.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn written(&self, offset: usize, len: usize) -> &mut [F] {
        debug_assert!(offset + len <= self.len);
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}
