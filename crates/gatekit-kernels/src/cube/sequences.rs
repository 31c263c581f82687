//! Packed sequences in a kernel: where the sequence of a step begins and ends.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The boundaries `[0, .., time]` of packed sequences on the device of `x`; any buffer where there
/// are none, which a kernel for rows of one sequence each does not read.
pub(crate) fn boundaries_of(x: &CubeTensor, boundaries: Option<&[usize]>) -> BufferArg {
    match boundaries {
        Some(boundaries) => {
            let steps: Vec<u32> = boundaries.iter().map(|step| *step as u32).collect();
            let handle = x.client.create_from_slice(u32::as_bytes(&steps));
            // SAFETY: the buffer was made of as many numbers.
            unsafe { BufferArg::from_raw_parts(handle, steps.len()) }
        }
        // SAFETY: every tensor has an element, and none is read.
        None => unsafe { BufferArg::from_raw_parts(x.handle.clone(), 1) },
    }
}

/// A sequence of a row: the row's only one, or a packed one.
#[derive(CubeType)]
pub(crate) struct Sequence {
    /// Its place among all sequences of the batch.
    pub index: usize,
    /// Its first step in the row.
    pub start: usize,
    /// The step after its last.
    pub end: usize,
}

#[cube]
impl Sequence {
    /// The sequence of a step of a row.
    pub fn at(
        step: usize,
        row: usize,
        time: usize,
        boundaries: &[u32],
        #[comptime] is_packed: bool,
    ) -> Sequence {
        if is_packed {
            // The last boundary that is not after the step.
            let mut low = 0usize;
            let mut high = boundaries.len() - 1;
            while low + 1 < high {
                let middle = (low + high) / 2;
                if boundaries[middle] as usize <= step {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            Sequence { index: low, start: boundaries[low] as usize, end: boundaries[low + 1] as usize }
        } else {
            Sequence { index: row, start: 0usize.runtime(), end: time }
        }
    }
    /// On to the next sequence where the step is past this one.
    pub fn follow(&mut self, step: usize, boundaries: &[u32], #[comptime] is_packed: bool) {
        if is_packed && step == self.end {
            self.index += 1;
            self.start = self.end;
            self.end = boundaries[self.index + 1] as usize;
        }
    }

    /// Back to the sequence before where the step is in it.
    pub fn follow_back(&mut self, step: usize, boundaries: &[u32], #[comptime] is_packed: bool) {
        if is_packed && step < self.start {
            self.index -= 1;
            self.end = self.start;
            self.start = boundaries[self.index] as usize;
        }
    }
}
