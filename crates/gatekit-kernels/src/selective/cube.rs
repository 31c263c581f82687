//! The selective scan as CubeCL kernels, parallel over channels and over time.
//!
//! As in the elementwise recurrence, chunks of steps are first summed up, then told what they get from
//! the others, then walked over again with it. The states of one channel are the registers of a unit,
//! all of them in the forward pass; the backward pass, which sums over channels too, spreads them
//! over units.

mod backward;
mod chunks;
mod forward;
mod step;

use burn::{
    backend::{Backend, TensorMetadata},
    tensor::DType,
};
use burn_cubecl::{kernel::cast, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{SelectiveArguments, SelectiveSpec};
use crate::cube::{into_contiguous, is_fused};

pub(super) use backward::backward;
pub(super) use forward::forward;
pub(super) use step::step;

/// States that a unit keeps in registers with all that it needs for them.
const KEPT: usize = 16;

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    channels: usize,
    /// Numbers of a channel's state.
    size: usize,
    /// Steps of a chunk.
    steps: usize,
    has_initial_state: bool,
    is_packed: bool,
    /// Whether there is more than one chunk.
    has_carries: bool,
}

/// The contiguous arguments; `a` and the initial state, which are small, in float32.
struct Problem {
    x: CubeTensor,
    delta: CubeTensor,
    a: CubeTensor,
    b: CubeTensor,
    c: CubeTensor,
    /// `a` where there is none.
    initial_state: CubeTensor,
    batch: usize,
    time: usize,
    sequences: usize,
}

impl Problem {
    /// `None`: the kernels do not compute with these.
    fn new<B: Backend<FloatTensorPrimitive = CubeTensor>>(
        arguments: &SelectiveArguments<B>,
        spec: &SelectiveSpec,
    ) -> Option<Self> {
        let SelectiveArguments { x, delta, a, b, c, initial_state } = arguments;
        if !spec.fused || ![x, delta, a, b, c, initial_state].into_iter().all(is_fused) {
            return None;
        }
        let shape = x.shape();
        let [a, initial_state] =
            [a, initial_state].map(|tensor| into_contiguous(cast(tensor.clone(), DType::F32)));
        let [x, delta, b, c] = [x, delta, b, c].map(|tensor| into_contiguous(tensor.clone()));
        Some(Self {
            x,
            delta,
            initial_state: if spec.has_initial_state { initial_state } else { a.clone() },
            a,
            b,
            c,
            batch: shape[0],
            time: shape[1],
            sequences: spec.boundaries.as_ref().map_or(shape[0], |boundaries| boundaries.len() - 1),
        })
    }

    fn plan(&self, spec: &SelectiveSpec, steps: usize) -> Plan {
        let shape = self.a.shape();
        Plan {
            channels: shape[0],
            size: shape[1],
            steps,
            has_initial_state: spec.has_initial_state,
            is_packed: spec.boundaries.is_some(),
            has_carries: steps < self.time,
        }
    }
}

/// `exp(delta a)`: exactly 0 for an exponent of minus infinity, on every device.
#[cube]
fn decay(exponent: f32) -> f32 {
    select(exponent < -200.0f32, 0.0f32, exponent.exp())
}
