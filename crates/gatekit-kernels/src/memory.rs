//! Result vectors that are filled by jobs, without being set to 0 first.

use std::{marker::PhantomData, mem::MaybeUninit};

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
