//! What each chunk gets from those before it, or after it.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Problem;
use crate::cube::{address, allocate, grid};

/// What a chunk makes of what it gets: `decays * carry + ends`, each `[batch, chunks, dim]`.
pub(super) struct Chunks {
    pub decays: CubeTensor,
    pub ends: CubeTensor,
}

impl Chunks {
    /// To be written.
    pub fn new(problem: &Problem, like: &CubeTensor) -> Self {
        let shape = [problem.batch, problem.chunks(), problem.dim];
        Self { decays: allocate(like, shape, DType::F32), ends: allocate(like, shape, DType::F32) }
    }

    /// What every chunk gets, the first zero, from first to last or the other way.
    pub fn into_carries(self, problem: &Problem, is_reverse: bool) -> CubeTensor {
        let Self { decays, ends } = self;
        let (count, cube) = grid(&ends, problem.batch * problem.lines());
        // SAFETY: a unit has a row of the batch and a line of its channels, and all of its chunks.
        unsafe {
            carries_kernel::launch_unchecked(
                &ends.client,
                count,
                cube,
                address(&[&ends]),
                problem.line,
                decays.clone().into_buffer_arg(),
                ends.clone().into_buffer_arg(),
                problem.batch,
                problem.chunks(),
                problem.lines(),
                is_reverse,
            );
        }
        ends
    }
}

/// Replaces what each chunk ends with by what it gets.
#[cube(launch_unchecked, address_type = "dynamic")]
fn carries_kernel<N: Size>(
    decays: &[Vector<f32, N>],
    ends: &mut [Vector<f32, N>],
    batch: usize,
    chunks: usize,
    lines: usize,
    #[comptime] is_reverse: bool,
) {
    let line = ABSOLUTE_POS % lines;
    let row = ABSOLUTE_POS / lines;
    if row < batch {
        let mut carry = Vector::<f32, N>::new(0.0);
        for index in 0..chunks {
            let chunk = if is_reverse { chunks - 1 - index } else { index };
            let place = (row * chunks + chunk) * lines + line;
            let end = ends[place];
            ends[place] = carry;
            carry = decays[place] * carry + end;
        }
    }
}
