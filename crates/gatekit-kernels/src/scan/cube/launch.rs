//! From tensors to kernel launches.

use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{ops::numeric::zeros, tensor::CubeTensor};
use cubecl::{
    ir::{ElemType, FloatKind},
    prelude::*,
};

use super::{
    blocks::{BLOCK, UNITS},
    blueprint::Blueprint,
    columns::CHANNELS,
    decay::CHUNK,
    keys::keys_kernel,
    output::output_kernel,
    state::state_kernel,
};

pub(crate) use crate::cube::{address as address_type, allocate as empty, prepared, upload, vector_size};
use crate::scan::{DecayKind, ScanSpec};

/// The burn type of a kind that [`Blueprint`] chooses.
fn dtype_of(kind: FloatKind) -> DType {
    match kind {
        FloatKind::F16 => DType::F16,
        FloatKind::BF16 => DType::BF16,
        _ => DType::F32,
    }
}

/// The type that a kernel reads this tensor as.
pub(crate) fn elem(tensor: &CubeTensor) -> ElemType {
    burn::backend::cubecl::dtype_to_storage_type(tensor.dtype)
}

/// A new tensor of zeros on the device of `like`.
pub(crate) fn zeros_like(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    zeros(like.device.clone(), shape.into(), dtype)
}

/// A scan cut into chunks of 64 steps that cross no boundary of a sequence.
///
/// Every sequence has a slot for the state before each of its chunks and one for the state after the last.
pub(crate) struct Chunking {
    /// First token, one past the last, slot before the first chunk.
    pub segments: Vec<u32>,
    /// First token, length, slot before it.
    pub chunks: Vec<u32>,
    pub slots: usize,
}

impl Chunking {
    pub fn new(batch: usize, time: usize, spec: &ScanSpec) -> Self {
        let sequences: Vec<(usize, usize)> = match &spec.boundaries {
            Some(boundaries) => boundaries.windows(2).map(|pair| (pair[0], pair[1])).collect(),
            None => (0..batch).map(|row| (row * time, (row + 1) * time)).collect(),
        };
        let (mut segments, mut chunks, mut slots) = (vec![], vec![], 0);
        for (start, end) in sequences {
            segments.extend([start as u32, end as u32, slots as u32]);
            for token in (start..end).step_by(CHUNK) {
                chunks.extend([token as u32, CHUNK.min(end - token) as u32, slots as u32]);
                slots += 1;
            }
            slots += 1;
        }
        Self { segments, chunks, slots }
    }

    pub fn segment_count(&self) -> usize {
        self.segments.len() / 3
    }

    fn chunk_count(&self) -> usize {
        self.chunks.len() / 3
    }
}

/// A scan's tensors, prepared for the kernels.
pub(crate) struct Problem {
    pub blueprint: Blueprint,
    pub chunking: Chunking,
    pub decay: DecayKind,
    pub scale: f32,
    pub tokens: usize,
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub q: CubeTensor,
    pub k: CubeTensor,
    pub v: CubeTensor,
    pub log_decay: CubeTensor,
}

impl Problem {
    pub fn new(blueprint: Blueprint, [q, k, v, log_decay]: [CubeTensor; 4], spec: &ScanSpec) -> Self {
        let (shape, dtype, decay_dtype) = (q.shape(), q.dtype, log_decay.dtype);
        Self {
            chunking: Chunking::new(shape[0], shape[1], spec),
            decay: spec.decay,
            scale: spec.scale as f32,
            tokens: shape[0] * shape[1],
            heads: shape[2],
            key_dim: shape[3],
            value_dim: v.shape()[3],
            q: prepared(q, dtype),
            k: prepared(k, dtype),
            v: prepared(v, dtype),
            log_decay: prepared(log_decay, decay_dtype),
            blueprint,
        }
    }

    fn state_dtype(&self) -> DType {
        dtype_of(self.blueprint.state)
    }

    fn state_elem(&self) -> ElemType {
        ElemType::Float(self.blueprint.state)
    }

    fn operand_elem(&self) -> ElemType {
        ElemType::Float(self.blueprint.operand)
    }

    /// States of all slots, and the last of each segment: with `gradient` absent, the states before the chunks from the
    /// initial ones on; else the gradients of the states after the chunks from those of the final states on, given the
    /// gradient of the output.
    pub fn states(
        &self,
        initial: Option<CubeTensor>,
        gradient: Option<&CubeTensor>,
    ) -> (CubeTensor, CubeTensor) {
        let reverse = gradient.is_some();
        let plan = self.blueprint.state(self.decay, reverse, initial.is_some());
        let (keys, values) = match gradient {
            Some(gradient) => (&self.q, gradient),
            None => (&self.k, &self.v),
        };
        let shape = |states: usize| [states, self.heads, self.key_dim, self.value_dim];
        let states = empty(&self.q, shape(self.chunking.slots), self.state_dtype());
        let last = empty(&self.q, shape(self.chunking.segment_count()), DType::F32);
        let initial = match initial {
            Some(initial) => prepared(initial, DType::F32),
            None => zeros_like(&self.q, [1], DType::F32),
        };
        let blocks = self.key_dim.div_ceil(CHANNELS) * self.value_dim.div_ceil(plan.value_blocks * BLOCK);
        // SAFETY: the kernel stays within the shapes it is given.
        unsafe {
            state_kernel::launch_unchecked(
                &self.q.client,
                CubeCount::Static(self.chunking.segment_count() as u32, self.heads as u32, blocks as u32),
                CubeDim::new_1d(UNITS as u32),
                address_type(&[keys, values, &self.log_decay, &states]),
                vector_size(values, self.value_dim),
                keys.clone().into_buffer_arg(),
                values.clone().into_buffer_arg(),
                self.log_decay.clone().into_buffer_arg(),
                initial.into_buffer_arg(),
                upload(&self.q, &self.chunking.segments),
                states.clone().into_buffer_arg(),
                last.clone().into_buffer_arg(),
                self.scale,
                self.heads,
                self.key_dim,
                self.value_dim,
                plan,
                elem(keys),
                elem(&self.log_decay),
                self.state_elem(),
                self.operand_elem(),
            );
        }
        (states, last)
    }

    /// The outputs from the states before the chunks, or with `gradient`, of the output, the gradients of the values
    /// from the gradients of the states after the chunks.
    pub fn outputs(&self, states: &CubeTensor, gradient: Option<&CubeTensor>) -> CubeTensor {
        let reverse = gradient.is_some();
        let plan = self.blueprint.output(self.decay, reverse, self.value_dim);
        let (rows, cols, values) = match gradient {
            Some(gradient) => (&self.k, &self.q, gradient),
            None => (&self.q, &self.k, &self.v),
        };
        let (weight_scale, output_scale) = if reverse { (self.scale, 1.0) } else { (1.0, self.scale) };
        let output = empty(&self.v, self.v.shape(), self.v.dtype);
        let decay_dim = if self.decay == DecayKind::PerKey { self.key_dim } else { 1 };
        // SAFETY: the kernel stays within the shapes it is given.
        unsafe {
            output_kernel::launch_unchecked(
                &self.q.client,
                CubeCount::Static(
                    self.chunking.chunk_count() as u32,
                    self.heads as u32,
                    self.value_dim.div_ceil(plan.value_blocks * BLOCK) as u32,
                ),
                CubeDim::new_1d(UNITS as u32),
                address_type(&[rows, values, &self.log_decay, states]),
                vector_size(rows, self.key_dim),
                vector_size(values, self.value_dim),
                vector_size(&self.log_decay, decay_dim),
                vector_size(states, self.value_dim),
                rows.clone().into_buffer_arg(),
                cols.clone().into_buffer_arg(),
                values.clone().into_buffer_arg(),
                self.log_decay.clone().into_buffer_arg(),
                states.clone().into_buffer_arg(),
                upload(&self.q, &self.chunking.chunks),
                output.clone().into_buffer_arg(),
                weight_scale,
                output_scale,
                self.heads,
                self.key_dim,
                self.value_dim,
                plan,
                elem(rows),
                elem(&self.log_decay),
                self.state_elem(),
                self.operand_elem(),
            );
        }
        output
    }

    /// Gradients of queries, keys and log decays, the last a sum over blocks of 64 key channels
    /// `[blocks, batch, time, heads, 1]` for decays per head.
    pub fn keys(
        &self,
        gradient: &CubeTensor,
        states: &CubeTensor,
        state_gradients: &CubeTensor,
    ) -> [CubeTensor; 3] {
        let plan = self.blueprint.keys(self.decay);
        let blocks = self.key_dim.div_ceil(CHANNELS);
        let dq = empty(&self.q, self.q.shape(), self.q.dtype);
        let dk = empty(&self.k, self.k.shape(), self.k.dtype);
        let dg = match self.decay {
            DecayKind::None => empty(&self.q, [1], DType::F32),
            DecayKind::PerKey => empty(&self.q, self.log_decay.shape(), self.log_decay.dtype),
            DecayKind::PerHead => {
                let shape = self.log_decay.shape();
                empty(&self.q, [blocks, shape[0], shape[1], shape[2], 1], DType::F32)
            }
        };
        // SAFETY: the kernel stays within the shapes it is given.
        unsafe {
            keys_kernel::launch_unchecked(
                &self.q.client,
                CubeCount::Static(self.chunking.chunk_count() as u32, self.heads as u32, blocks as u32),
                CubeDim::new_1d(UNITS as u32),
                address_type(&[&self.q, &self.v, &self.log_decay, states]),
                vector_size(&self.v, self.value_dim),
                vector_size(states, self.value_dim),
                self.q.clone().into_buffer_arg(),
                self.k.clone().into_buffer_arg(),
                self.v.clone().into_buffer_arg(),
                gradient.clone().into_buffer_arg(),
                self.log_decay.clone().into_buffer_arg(),
                states.clone().into_buffer_arg(),
                state_gradients.clone().into_buffer_arg(),
                upload(&self.q, &self.chunking.chunks),
                dq.clone().into_buffer_arg(),
                dk.clone().into_buffer_arg(),
                dg.clone().into_buffer_arg(),
                self.scale,
                self.tokens,
                self.heads,
                self.key_dim,
                self.value_dim,
                plan,
                elem(&self.q),
                elem(&self.log_decay),
                elem(&dg),
                self.state_elem(),
                self.operand_elem(),
            );
        }
        [dq, dk, dg]
    }
}
