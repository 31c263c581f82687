//! Result vectors that are filled by jobs, without being set to 0 first.

use std::{marker::PhantomData, mem::MaybeUninit};

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

/// A result array that jobs fill together, each its own elements.
pub(crate) struct Filling<'a> {
    start: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: all access is through unsafe methods whose callers touch disjoint elements.
unsafe impl Send for Filling<'_> {}
unsafe impl Sync for Filling<'_> {}

impl<'a> Filling<'a> {
    /// Shares memory that nothing has been written to.
    pub(crate) fn unwritten(place: &'a mut [MaybeUninit<f32>]) -> Self {
        Self { start: place.as_mut_ptr().cast(), len: place.len(), owner: PhantomData }
    }

    /// Shares an initialised slice.
    pub(crate) fn of(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// The first element, for jobs that do their own writing.
    #[inline(always)]
    pub(crate) fn start(&self) -> *mut f32 {
        self.start
    }

    /// Writes `values` from element `offset` on.
    ///
    /// # Safety
    /// No other job may access these elements meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, offset: usize, values: &[f32]) {
        debug_assert!(offset + values.len() <= self.len);
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(offset), values.len()) }
    }

    /// The `len` elements from `offset` on.
    ///
    /// # Safety
    /// They must have been written, and no other job may access them meanwhile.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn written(&self, offset: usize, len: usize) -> &mut [f32] {
        debug_assert!(offset + len <= self.len);
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}
