//! From tensors to kernel launches.

use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, ir::ElemType, prelude::*, server::Handle};

use super::super::{
    blocks::UNITS,
    blueprint::Blueprint,
    decay::CHUNK,
    launch::{Chunking, elem, empty, prepared},
};
use super::{
    apply::{Apply, apply_kernel},
    decays::decay_kernel,
    keys::{self, keys_kernel},
    output::output_kernel,
    place::{PAIRS, SizesLaunch},
    scores::{self, scores_kernel},
    solve::solve_kernel,
    states::{Pass, forward_kernel, reverse_kernel},
    weights::weights_kernel,
};
use crate::{
    cube::float_kind,
    scan::{DecayKind, ScanArguments, ScanSpec},
};

/// Buffers of the kernel that has most, and one of scalars.
const BINDINGS: u32 = 19;

/// Whether these kernels compute a scan that the device has kernels for.
pub(in super::super) fn computes(blueprint: &Blueprint, arguments: &ScanArguments<CubeBackend>) -> bool {
    let memory = blueprint.shared_memory();
    float_kind(arguments.beta.dtype).is_some()
        && arguments.q.client.properties().hardware.max_bindings >= BINDINGS
        && pass(blueprint, arguments.q.shape()[3], false).shared_bytes(blueprint.operand_bytes()) <= memory
        && keys::shared_bytes(blueprint.planes, blueprint.operand_bytes()) <= memory
        && scores::SHARED_BYTES <= memory
}

/// The tiling of the passes over the states: wider where the shared memory has room.
fn pass(blueprint: &Blueprint, key_dim: usize, initial: bool) -> Pass {
    let narrow =
        Pass { initial, key_blocks: key_dim.div_ceil(CHUNK), value_blocks: 1, planes: blueprint.planes };
    let wide = Pass { value_blocks: 2, ..narrow };
    match wide.shared_bytes(blueprint.operand_bytes()) <= blueprint.shared_memory() {
        true => wide,
        false => narrow,
    }
}

/// A scan's tensors, prepared for the kernels.
pub(super) struct DeltaScan {
    blueprint: Blueprint,
    chunking: Chunking,
    chunks: Handle,
    segments: Handle,
    decay: DecayKind,
    scale: f32,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    pub q: CubeTensor,
    pub k: CubeTensor,
    pub v: CubeTensor,
    pub log_decay: CubeTensor,
    pub beta: CubeTensor,
    initial_state: CubeTensor,
    has_initial_state: bool,
}

/// What the forward pass computes on its way to the output.
pub(super) struct Forward {
    from_start: CubeTensor,
    to_end: CubeTensor,
    keys_on_keys: CubeTensor,
    /// Without `scale`.
    pub attention: CubeTensor,
    pub inverse: CubeTensor,
    /// `w`: what the steps read of the state before their chunk.
    reads: CubeTensor,
    writes: CubeTensor,
    states: CubeTensor,
    pub last: CubeTensor,
}

/// Gradients, those of log decays per head and of `beta` in parts.
pub(super) struct Gradients {
    pub q: CubeTensor,
    pub k: CubeTensor,
    pub v: CubeTensor,
    pub decay: CubeTensor,
    pub beta: CubeTensor,
}

/// What a matrix over pairs of steps is applied to.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// `matrix (beta v)`.
    Values,
    /// `matrix (beta k)`, with the decay from the chunk's start.
    Keys(&'a CubeTensor),
    /// `scale matrix^T do`.
    Asked,
    /// `matrix^T x`.
    Written,
}

impl DeltaScan {
    pub fn new(blueprint: Blueprint, arguments: ScanArguments<CubeBackend>, spec: &ScanSpec) -> Self {
        let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments;
        let (shape, dtype) = (q.shape(), q.dtype);
        let chunking = Chunking::new(shape[0], shape[1], spec);
        let upload = |table: &[u32]| q.client.create_from_slice(u32::as_bytes(table));
        let (decay_dtype, beta_dtype) = (log_decay.dtype, beta.dtype);
        Self {
            chunks: upload(&chunking.chunks),
            segments: upload(&chunking.segments),
            chunking,
            decay: spec.decay,
            scale: spec.scale as f32,
            heads: shape[2],
            key_dim: shape[3],
            value_dim: v.shape()[3],
            q: prepared(q, dtype),
            k: prepared(k, dtype),
            v: prepared(v, dtype),
            log_decay: prepared(log_decay, decay_dtype),
            beta: prepared(beta, beta_dtype),
            initial_state: prepared(initial_state, DType::F32),
            has_initial_state: spec.has_initial_state,
            blueprint,
        }
    }

    fn chunks(&self) -> BufferArg {
        // SAFETY: the handle was made from that many numbers.
        unsafe { BufferArg::from_raw_parts(self.chunks.clone(), self.chunking.chunks.len()) }
    }

    fn segments(&self) -> BufferArg {
        // SAFETY: the handle was made from that many numbers.
        unsafe { BufferArg::from_raw_parts(self.segments.clone(), self.chunking.segments.len()) }
    }

    fn chunk_heads(&self) -> usize {
        self.chunking.chunks.len() / 3 * self.heads
    }

    fn sizes(&self) -> SizesLaunch {
        SizesLaunch::new(self.heads, self.key_dim, self.value_dim, self.decay, self.blueprint.planes)
    }

    /// The integers that reach every element of every tensor.
    fn address(&self) -> AddressType {
        let shape = self.q.shape();
        let rows = shape[0] * shape[1] * self.heads * self.key_dim.max(self.value_dim);
        let states = self.chunking.slots * self.heads * self.key_dim * self.value_dim;
        AddressType::from_len(rows.max(states).max(self.chunk_heads() * PAIRS))
    }

    /// At least `count` cubes of [`UNITS`].
    fn grid(&self, count: usize) -> (CubeCount, CubeDim) {
        let units = CubeDim::new_1d(UNITS as u32);
        (calculate_cube_count_elemwise(&self.q.client, count * UNITS, units), units)
    }

    fn operand(&self) -> ElemType {
        ElemType::Float(self.blueprint.operand)
    }

    fn scratch(&self, shape: impl Into<Shape>) -> CubeTensor {
        empty(&self.q, shape, DType::F32)
    }

    fn pairs(&self) -> CubeTensor {
        self.scratch([self.chunk_heads(), PAIRS])
    }

    fn states(&self, count: usize) -> CubeTensor {
        self.scratch([count, self.heads, self.key_dim, self.value_dim])
    }

    /// Everything but the output.
    pub fn forward(&self) -> Forward {
        let (from_start, to_end) = self.decays();
        let (keys_on_keys, attention) = self.scores();
        let inverse = self.solve(&keys_on_keys);
        let writes = self.apply(&inverse, &self.v, Rows::Values);
        let reads = self.apply(&inverse, &self.k, Rows::Keys(&from_start));
        let (states, last) = self.pass(&from_start, &to_end, &reads, &writes);
        Forward { from_start, to_end, keys_on_keys, attention, inverse, reads, writes, states, last }
    }

    fn decays(&self) -> (CubeTensor, CubeTensor) {
        let factors = || self.scratch(self.log_decay.shape());
        let (from_start, to_end) = (factors(), factors());
        if self.decay != DecayKind::None {
            let columns = self.chunk_heads() * if self.decay == DecayKind::PerKey { self.key_dim } else { 1 };
            let units = CubeDim::new(&self.q.client, columns);
            // SAFETY: here and below, the kernels stay within the shapes that the sizes and tables describe.
            unsafe {
                decay_kernel::launch_unchecked(
                    &self.q.client,
                    calculate_cube_count_elemwise(&self.q.client, columns, units),
                    units,
                    self.address(),
                    self.log_decay.clone().into_buffer_arg(),
                    self.chunks(),
                    from_start.clone().into_buffer_arg(),
                    to_end.clone().into_buffer_arg(),
                    columns,
                    self.sizes(),
                    elem(&self.log_decay),
                );
            }
        }
        (from_start, to_end)
    }

    fn scores(&self) -> (CubeTensor, CubeTensor) {
        let (keys_on_keys, attention) = (self.pairs(), self.pairs());
        let count = self.chunk_heads();
        let (cubes, units) = self.grid(count);
        unsafe {
            scores_kernel::launch_unchecked(
                &self.q.client,
                cubes,
                units,
                self.address(),
                self.q.clone().into_buffer_arg(),
                self.k.clone().into_buffer_arg(),
                self.log_decay.clone().into_buffer_arg(),
                self.chunks(),
                keys_on_keys.clone().into_buffer_arg(),
                attention.clone().into_buffer_arg(),
                count,
                self.sizes(),
                elem(&self.q),
                elem(&self.log_decay),
            );
        }
        (keys_on_keys, attention)
    }

    fn solve(&self, keys_on_keys: &CubeTensor) -> CubeTensor {
        let inverse = self.pairs();
        let count = self.chunk_heads();
        let units = CubeDim::new_1d(CHUNK as u32);
        unsafe {
            solve_kernel::launch_unchecked(
                &self.q.client,
                calculate_cube_count_elemwise(&self.q.client, count * CHUNK, units),
                units,
                self.address(),
                keys_on_keys.clone().into_buffer_arg(),
                self.beta.clone().into_buffer_arg(),
                self.chunks(),
                inverse.clone().into_buffer_arg(),
                count,
                self.sizes(),
                elem(&self.beta),
            );
        }
        inverse
    }

    /// A matrix over pairs of steps times `x`, as `rows` says, in float32.
    pub fn apply(&self, matrix: &CubeTensor, x: &CubeTensor, rows: Rows) -> CubeTensor {
        let (beta, keys) = match rows {
            Rows::Values => (true, None),
            Rows::Keys(from_start) => (true, Some(from_start)),
            Rows::Asked | Rows::Written => (false, None),
        };
        let scale = if matches!(rows, Rows::Asked) { self.scale } else { 1.0 };
        let output = self.scratch(x.shape());
        let count = self.chunk_heads() * x.shape()[3].div_ceil(CHUNK);
        let (cubes, units) = self.grid(count);
        unsafe {
            apply_kernel::launch_unchecked(
                &self.q.client,
                cubes,
                units,
                self.address(),
                matrix.clone().into_buffer_arg(),
                x.clone().into_buffer_arg(),
                self.beta.clone().into_buffer_arg(),
                keys.unwrap_or(matrix).clone().into_buffer_arg(),
                self.chunks(),
                output.clone().into_buffer_arg(),
                count,
                scale,
                self.sizes(),
                Apply { transposed: !beta, beta, keys: keys.is_some() },
                elem(x),
                elem(&self.beta),
                self.operand(),
            );
        }
        output
    }

    /// The pass over the states, which completes `writes`: all states, and the last of each sequence.
    fn pass(
        &self,
        from_start: &CubeTensor,
        to_end: &CubeTensor,
        reads: &CubeTensor,
        writes: &CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let pass = pass(&self.blueprint, self.key_dim, self.has_initial_state);
        let (states, last) = (self.states(self.chunking.slots), self.states(self.chunking.segment_count()));
        let count = self.chunking.segment_count() * self.heads * self.value_dim.div_ceil(pass.columns());
        let (cubes, units) = self.grid(count);
        unsafe {
            forward_kernel::launch_unchecked(
                &self.q.client,
                cubes,
                units,
                self.address(),
                self.k.clone().into_buffer_arg(),
                reads.clone().into_buffer_arg(),
                from_start.clone().into_buffer_arg(),
                to_end.clone().into_buffer_arg(),
                self.initial_state.clone().into_buffer_arg(),
                self.segments(),
                writes.clone().into_buffer_arg(),
                states.clone().into_buffer_arg(),
                last.clone().into_buffer_arg(),
                count,
                self.sizes(),
                pass,
                elem(&self.k),
                self.operand(),
            );
        }
        (states, last)
    }

    /// The outputs.
    pub fn output(&self, forward: &Forward) -> CubeTensor {
        let output = empty(&self.v, self.v.shape(), self.v.dtype);
        let count = self.chunk_heads() * self.value_dim.div_ceil(CHUNK);
        let (cubes, units) = self.grid(count);
        unsafe {
            output_kernel::launch_unchecked(
                &self.q.client,
                cubes,
                units,
                self.address(),
                self.q.clone().into_buffer_arg(),
                forward.from_start.clone().into_buffer_arg(),
                forward.states.clone().into_buffer_arg(),
                forward.attention.clone().into_buffer_arg(),
                forward.writes.clone().into_buffer_arg(),
                self.chunks(),
                output.clone().into_buffer_arg(),
                count,
                self.scale,
                self.sizes(),
                elem(&self.q),
                self.operand(),
            );
        }
        output
    }

    /// The pass in reverse, which completes `write_gradients`: gradients of all states, and of the initial ones.
    pub fn reverse(
        &self,
        forward: &Forward,
        output_gradient: &CubeTensor,
        last_gradient: Option<CubeTensor>,
        write_gradients: &CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let pass = pass(&self.blueprint, self.key_dim, last_gradient.is_some());
        let (states, initial) =
            (self.states(self.chunking.slots), self.states(self.chunking.segment_count()));
        let count = self.chunking.segment_count() * self.heads * self.value_dim.div_ceil(pass.columns());
        let (cubes, units) = self.grid(count);
        unsafe {
            reverse_kernel::launch_unchecked(
                &self.q.client,
                cubes,
                units,
                self.address(),
                self.q.clone().into_buffer_arg(),
                self.k.clone().into_buffer_arg(),
                forward.reads.clone().into_buffer_arg(),
                forward.from_start.clone().into_buffer_arg(),
                forward.to_end.clone().into_buffer_arg(),
                output_gradient.clone().into_buffer_arg(),
                last_gradient.unwrap_or_else(|| forward.last.clone()).into_buffer_arg(),
                self.segments(),
                write_gradients.clone().into_buffer_arg(),
                states.clone().into_buffer_arg(),
                initial.clone().into_buffer_arg(),
                count,
                self.scale,
                self.sizes(),
                pass,
                elem(&self.q),
                self.operand(),
            );
        }
        (states, initial)
    }

    /// Gradients of everything but the initial states.
    pub fn gradients(
        &self,
        forward: &Forward,
        output_gradient: &CubeTensor,
        state_gradients: &CubeTensor,
        errors: &CubeTensor,
    ) -> Gradients {
        let like = |x: &CubeTensor| empty(x, x.shape(), x.dtype);
        let shape = self.q.shape();
        let key_blocks = self.key_dim.div_ceil(keys::KEYS);
        let parts = |count: usize| self.scratch([shape[0], shape[1], shape[2], count]);
        let (attention_gradient, keys_gradient) = (self.pairs(), self.pairs());
        let gradients = Gradients {
            q: like(&self.q),
            k: like(&self.k),
            v: like(&self.v),
            decay: match self.decay {
                DecayKind::None => self.scratch([1]),
                DecayKind::PerHead => parts(key_blocks),
                DecayKind::PerKey => parts(self.key_dim),
            },
            // The last part is that of the values.
            beta: parts(key_blocks + 1),
        };
        let count = self.chunk_heads();
        let (cubes, units) = self.grid(count);
        unsafe {
            weights_kernel::launch_unchecked(
                &self.q.client,
                cubes,
                units,
                self.address(),
                self.v.clone().into_buffer_arg(),
                self.beta.clone().into_buffer_arg(),
                output_gradient.clone().into_buffer_arg(),
                forward.writes.clone().into_buffer_arg(),
                errors.clone().into_buffer_arg(),
                forward.keys_on_keys.clone().into_buffer_arg(),
                self.chunks(),
                attention_gradient.clone().into_buffer_arg(),
                keys_gradient.clone().into_buffer_arg(),
                gradients.v.clone().into_buffer_arg(),
                gradients.beta.clone().into_buffer_arg(),
                count,
                key_blocks + 1,
                self.sizes(),
                elem(&self.v),
                elem(&self.beta),
                self.operand(),
            );
        }
        let count = self.chunk_heads() * key_blocks;
        let (cubes, units) = self.grid(count);
        unsafe {
            keys_kernel::launch_unchecked(
                &self.q.client,
                cubes,
                units,
                self.address(),
                self.q.clone().into_buffer_arg(),
                self.k.clone().into_buffer_arg(),
                self.log_decay.clone().into_buffer_arg(),
                self.beta.clone().into_buffer_arg(),
                forward.from_start.clone().into_buffer_arg(),
                forward.to_end.clone().into_buffer_arg(),
                output_gradient.clone().into_buffer_arg(),
                forward.writes.clone().into_buffer_arg(),
                errors.clone().into_buffer_arg(),
                forward.states.clone().into_buffer_arg(),
                state_gradients.clone().into_buffer_arg(),
                attention_gradient.into_buffer_arg(),
                keys_gradient.into_buffer_arg(),
                self.chunks(),
                gradients.q.clone().into_buffer_arg(),
                gradients.k.clone().into_buffer_arg(),
                gradients.decay.clone().into_buffer_arg(),
                gradients.beta.clone().into_buffer_arg(),
                count,
                self.scale,
                key_blocks + 1,
                self.sizes(),
                elem(&self.q),
                elem(&self.log_decay),
                elem(&self.beta),
                self.operand(),
            );
        }
        gradients
    }
}
