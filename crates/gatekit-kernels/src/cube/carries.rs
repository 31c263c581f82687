//! What each chunk of an elementwise recurrence gets from those before it, or after it.

use burn::{backend::TensorMetadata, tensor::DType};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{address, allocate, grid, line};

/// What a chunk makes of what it gets: `decays * carry + ends`, each `[batch, chunks, dim]` in float32.
pub(crate) struct Chunks {
    pub decays: CubeTensor,
    pub ends: CubeTensor,
}

impl Chunks {
    /// To be written.
    pub fn new(like: &CubeTensor, shape: [usize; 3]) -> Self {
        Self { decays: allocate(like, shape, DType::F32), ends: allocate(like, shape, DType::F32) }
    }

    /// What every chunk gets, the first zero, from first to last or the other way.
    pub fn into_carries(self, is_reverse: bool) -> CubeTensor {
        let Self { decays, ends } = self;
        let shape = ends.shape();
        let (batch, chunks, dim) = (shape[0], shape[1], shape[2]);
        let line = line(dim, &[&ends]);
        let (count, cube) = grid(&ends, batch * dim / line);
        // SAFETY: a unit has a row of the batch and a line of its elements, and all of its chunks.
        unsafe {
            carries_kernel::launch_unchecked(
                &ends.client,
                count,
                cube,
                address(&[&ends]),
                line,
                decays.into_buffer_arg(),
                ends.clone().into_buffer_arg(),
                batch,
                chunks,
                dim / line,
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
