//! The delta rule in chunks: the WY form of the gated delta rule (Yang et al. 2024, "Gated Delta
//! Networks", eq. 10 on) and, with decays per key, of Kimi delta attention (Kimi Team 2025, eq. 4 on).
//!
//! Within a chunk of 64 steps, with `E_ij = k_i . k_j` decayed from `j` to `i`, strictly lower, and
//! `S` the state before the chunk:
//!
//! ```text
//! T = (I + diag(beta) E)^-1     u = T (beta v)     w = T (beta k from_start)
//! x = u - w S                                      what the steps write
//! o = scale (q from_start) S + A x                 A_ij = scale q_i . k_j decayed, lower
//! S' = whole S + (k to_end)^T x
//! ```
//!
//! Everything but the pass over the states is computed for all chunks at once. Decays are made of
//! sums or products over the steps between two positions and never of differences, so that a reset
//! costs no later step its precision. The backward pass recomputes all of it, and runs a pass in
//! reverse over the gradients of the states.

mod apply;
mod decays;
mod keys;
mod layout;
mod output;
mod scores;
mod solve;
mod states;
mod tiles;
mod weights;

use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeBackend,
    cubecl::{calculate_cube_count_elemwise, prelude::*, server::Handle},
    kernel::cast,
    ops::numeric::zeros,
    tensor::CubeTensor,
};

use crate::{
    cube::{absent, allocate, element, into_contiguous, is_fused},
    primitive::Primitive,
    scan::{DecayKind, GradientOf, ScanArguments, ScanGradients, ScanSpec},
};
use apply::{Apply, apply_kernel};
use layout::{CHUNK, Layout, PAIRS, Sizes, cubes, table};
use states::{MAX_KEY_DIM, Pass};

/// Whether these kernels compute the scan.
pub(super) fn computes(arguments: &ScanArguments<CubeBackend>) -> bool {
    let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments;
    [q, k, v, log_decay, beta, initial_state].into_iter().all(is_fused) && q.shape()[3] <= MAX_KEY_DIM
}

/// Output `[batch, time, heads, value_dim]` and final state.
pub(super) fn forward(arguments: ScanArguments<CubeBackend>, spec: &ScanSpec) -> (CubeTensor, CubeTensor) {
    let problem = Problem::new(arguments, spec);
    let forward = problem.forward();
    let output = allocate(&problem.v, problem.v.shape(), problem.v.dtype);
    let blocks = problem.sizes.value_dim.div_ceil(CHUNK);
    let (grid, units, count) = problem.grid(problem.chunk_heads() * blocks);
    // SAFETY: here and below, the kernels index within the tensors' shapes.
    unsafe {
        output::output_kernel::launch_unchecked(
            &problem.client,
            grid,
            units,
            problem.address,
            problem.chunks(),
            problem.q.clone().into_buffer_arg(),
            forward.from_start.into_buffer_arg(),
            forward.states.into_buffer_arg(),
            forward.attention.into_buffer_arg(),
            forward.writes.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            count,
            problem.scale,
            problem.sizes,
            element(&problem.q),
        );
    }
    (output, forward.last)
}

/// Gradients of the arguments, given the gradient of the output or of the final state.
pub(super) fn backward(
    arguments: ScanArguments<CubeBackend>,
    gradient: CubeTensor,
    of: GradientOf,
    spec: &ScanSpec,
) -> ScanGradients<CubeBackend> {
    let dtypes = [&arguments.log_decay, &arguments.beta, &arguments.initial_state].map(|x| x.dtype);
    let problem = Problem::new(arguments, spec);
    let forward = problem.forward();
    let (output_gradient, last_gradient) = match of {
        GradientOf::Output => (into_contiguous(cast(gradient, problem.v.dtype)), None),
        GradientOf::FinalState => {
            let none = zeros(problem.v.device.clone(), problem.v.shape(), problem.v.dtype);
            (none, Some(into_contiguous(cast(gradient, DType::F32))))
        }
    };
    let write_gradients = problem.apply(&forward.attention, &output_gradient, Rows::Values, true);
    let (state_gradients, initial_gradient) =
        problem.reverse(&forward, &output_gradient, last_gradient, &write_gradients);
    let errors = problem.apply(&forward.inverse, &write_gradients, Rows::Values, true);
    let gradients = problem.gradients(&forward, &output_gradient, &state_gradients, &errors);

    let summed = |parts: CubeTensor, dtype, shape: Shape| {
        into_contiguous(cast(Primitive::<CubeBackend>(parts).sum(3).reshape(shape).0, dtype))
    };
    let [decay_dtype, beta_dtype, state_dtype] = dtypes;
    let decay_shape = problem.log_decay.shape();
    ScanGradients {
        q: gradients.q,
        k: gradients.k,
        v: gradients.v,
        log_decay: match problem.sizes.decay {
            DecayKind::None => absent(&problem.q),
            DecayKind::PerHead => summed(gradients.decay, decay_dtype, decay_shape),
            DecayKind::PerKey => cast(gradients.decay, decay_dtype),
        },
        beta: summed(gradients.beta, beta_dtype, problem.beta.shape()),
        initial_state: if spec.has_initial_state {
            cast(initial_gradient, state_dtype)
        } else {
            absent(&problem.q)
        },
    }
}

/// A scan, ready for the kernels: contiguous tensors, tables on the device.
struct Problem {
    client: Client,
    address: AddressType,
    layout: Layout,
    chunks: Handle,
    sequences: Handle,
    sizes: Sizes,
    scale: f32,
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    log_decay: CubeTensor,
    beta: CubeTensor,
    initial_state: CubeTensor,
    has_initial_state: bool,
}

/// What the forward pass computes on its way to the output.
struct Forward {
    from_start: CubeTensor,
    to_end: CubeTensor,
    keys_on_keys: CubeTensor,
    attention: CubeTensor,
    inverse: CubeTensor,
    reads: CubeTensor,
    writes: CubeTensor,
    states: CubeTensor,
    last: CubeTensor,
}

/// Gradients, those of log decays per head and of `beta` in parts.
struct Gradients {
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    decay: CubeTensor,
    beta: CubeTensor,
}

/// Which rows of the chunks a matrix is applied to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// Anything as wide as a value.
    Values,
    /// The same, times `beta`.
    ScaledValues,
    /// Keys times `beta` and the decay from the chunk's start, given here.
    ScaledKeys,
}

impl Problem {
    fn new(arguments: ScanArguments<CubeBackend>, spec: &ScanSpec) -> Self {
        let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments;
        let dtype = q.dtype;
        let [q, k, v] = [q, k, v].map(|x| into_contiguous(cast(x, dtype)));
        let layout = Layout::new(&q, spec);
        let shape = q.shape();
        let sizes =
            Sizes { heads: shape[2], key_dim: shape[3], value_dim: v.shape()[3], decay: spec.decay };
        let states = layout.state_count() * sizes.heads * sizes.key_dim * sizes.value_dim;
        let pairs = layout.chunk_count() * sizes.heads * PAIRS;
        let rows = shape[0] * shape[1] * shape[2] * sizes.key_dim.max(sizes.value_dim);
        Self {
            client: q.client.clone(),
            address: AddressType::from_len(states.max(pairs).max(rows)),
            chunks: layout.upload(&layout.chunks),
            sequences: layout.upload(&layout.sequences),
            sizes,
            scale: spec.scale as f32,
            q,
            k,
            v,
            log_decay: into_contiguous(log_decay),
            beta: into_contiguous(beta),
            initial_state: into_contiguous(cast(initial_state, DType::F32)),
            has_initial_state: spec.has_initial_state,
            layout,
        }
    }

    fn chunks(&self) -> BufferArg {
        table(&self.chunks, self.layout.chunks.len())
    }

    fn sequences(&self) -> BufferArg {
        table(&self.sequences, self.layout.sequences.len())
    }

    fn chunk_heads(&self) -> usize {
        self.layout.chunk_count() * self.sizes.heads
    }

    /// At least `count` cubes.
    fn grid(&self, count: usize) -> (CubeCount, CubeDim, usize) {
        let (grid, units) = cubes(&self.client, count);
        (grid, units, count)
    }

    fn scratch(&self, shape: impl Into<Shape>) -> CubeTensor {
        allocate(&self.q, shape, DType::F32)
    }

    /// As `x`, in float32.
    fn scratch_like(&self, x: &CubeTensor) -> CubeTensor {
        self.scratch(x.shape())
    }

    fn pairs(&self) -> CubeTensor {
        self.scratch([self.chunk_heads(), PAIRS])
    }

    fn states(&self, count: usize) -> CubeTensor {
        self.scratch([count, self.sizes.heads, self.sizes.key_dim, self.sizes.value_dim])
    }

    fn forward(&self) -> Forward {
        let (from_start, to_end) = self.decays();
        let (keys_on_keys, attention) = self.scores();
        let inverse = self.solve(&keys_on_keys);
        let writes = self.apply(&inverse, &self.v, Rows::ScaledValues, false);
        let reads = self.apply_to(&inverse, &self.k, &from_start, Rows::ScaledKeys, false);
        let (states, last) = self.pass(&from_start, &to_end, &reads, &writes);
        Forward { from_start, to_end, keys_on_keys, attention, inverse, reads, writes, states, last }
    }

    fn decays(&self) -> (CubeTensor, CubeTensor) {
        let (from_start, to_end) = (self.scratch_like(&self.log_decay), self.scratch_like(&self.log_decay));
        if self.sizes.decay != DecayKind::None {
            let columns = self.chunk_heads() * self.sizes.decays();
            let units = CubeDim::new(&self.client, columns);
            unsafe {
                decays::decay_kernel::launch_unchecked(
                    &self.client,
                    calculate_cube_count_elemwise(&self.client, columns, units),
                    units,
                    self.address,
                    self.chunks(),
                    self.log_decay.clone().into_buffer_arg(),
                    from_start.clone().into_buffer_arg(),
                    to_end.clone().into_buffer_arg(),
                    columns,
                    self.sizes,
                    element(&self.log_decay),
                );
            }
        }
        (from_start, to_end)
    }

    fn scores(&self) -> (CubeTensor, CubeTensor) {
        let (keys_on_keys, attention) = (self.pairs(), self.pairs());
        let (grid, units, count) = self.grid(self.chunk_heads());
        unsafe {
            scores::scores_kernel::launch_unchecked(
                &self.client,
                grid,
                units,
                self.address,
                self.chunks(),
                self.q.clone().into_buffer_arg(),
                self.k.clone().into_buffer_arg(),
                self.log_decay.clone().into_buffer_arg(),
                keys_on_keys.clone().into_buffer_arg(),
                attention.clone().into_buffer_arg(),
                count,
                self.scale,
                self.sizes,
                [element(&self.q), element(&self.log_decay)],
            );
        }
        (keys_on_keys, attention)
    }

    fn solve(&self, keys_on_keys: &CubeTensor) -> CubeTensor {
        let inverse = self.pairs();
        let units = CubeDim::new_1d(CHUNK as u32);
        unsafe {
            solve::solve_kernel::launch_unchecked(
                &self.client,
                calculate_cube_count_elemwise(&self.client, self.chunk_heads() * CHUNK, units),
                units,
                self.address,
                self.chunks(),
                keys_on_keys.clone().into_buffer_arg(),
                self.beta.clone().into_buffer_arg(),
                inverse.clone().into_buffer_arg(),
                self.chunk_heads(),
                self.sizes,
                element(&self.beta),
            );
        }
        inverse
    }

    /// A matrix over pairs of steps times rows that need no decay.
    fn apply(&self, matrix: &CubeTensor, x: &CubeTensor, rows: Rows, transposed: bool) -> CubeTensor {
        self.apply_to(matrix, x, matrix, rows, transposed)
    }

    fn apply_to(
        &self,
        matrix: &CubeTensor,
        x: &CubeTensor,
        from_start: &CubeTensor,
        rows: Rows,
        transposed: bool,
    ) -> CubeTensor {
        let apply = Apply {
            sizes: self.sizes,
            width: x.shape()[3],
            transposed,
            beta: rows != Rows::Values,
            decayed: rows == Rows::ScaledKeys && self.sizes.decay != DecayKind::None,
        };
        let output = self.scratch_like(x);
        let (grid, units, count) = self.grid(self.chunk_heads() * apply.blocks());
        unsafe {
            apply_kernel::launch_unchecked(
                &self.client,
                grid,
                units,
                self.address,
                self.chunks(),
                matrix.clone().into_buffer_arg(),
                x.clone().into_buffer_arg(),
                self.beta.clone().into_buffer_arg(),
                from_start.clone().into_buffer_arg(),
                output.clone().into_buffer_arg(),
                count,
                apply,
                [element(x), element(&self.beta)],
            );
        }
        output
    }

    /// The pass over the states; `writes` holds `u` before it.
    fn pass(
        &self,
        from_start: &CubeTensor,
        to_end: &CubeTensor,
        reads: &CubeTensor,
        writes: &CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let pass = Pass { sizes: self.sizes, initial: self.has_initial_state };
        let sequences = self.layout.sequence_count();
        let (states, last) = (self.states(self.layout.state_count()), self.states(sequences));
        let (grid, units, count) = self.grid(sequences * self.sizes.heads * pass.blocks());
        unsafe {
            states::forward_kernel::launch_unchecked(
                &self.client,
                grid,
                units,
                self.address,
                self.chunks(),
                self.sequences(),
                self.k.clone().into_buffer_arg(),
                reads.clone().into_buffer_arg(),
                from_start.clone().into_buffer_arg(),
                to_end.clone().into_buffer_arg(),
                self.initial_state.clone().into_buffer_arg(),
                writes.clone().into_buffer_arg(),
                states.clone().into_buffer_arg(),
                last.clone().into_buffer_arg(),
                count,
                pass,
                element(&self.k),
            );
        }
        (states, last)
    }

    /// The pass in reverse: gradients of all states, and of the initial ones; completes
    /// `write_gradients`.
    fn reverse(
        &self,
        forward: &Forward,
        output_gradient: &CubeTensor,
        last_gradient: Option<CubeTensor>,
        write_gradients: &CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let pass = Pass { sizes: self.sizes, initial: last_gradient.is_some() };
        let sequences = self.layout.sequence_count();
        let (states, initial) = (self.states(self.layout.state_count()), self.states(sequences));
        let (grid, units, count) = self.grid(sequences * self.sizes.heads * pass.blocks());
        unsafe {
            states::reverse_kernel::launch_unchecked(
                &self.client,
                grid,
                units,
                self.address,
                self.chunks(),
                self.sequences(),
                self.q.clone().into_buffer_arg(),
                self.k.clone().into_buffer_arg(),
                forward.reads.clone().into_buffer_arg(),
                forward.from_start.clone().into_buffer_arg(),
                forward.to_end.clone().into_buffer_arg(),
                output_gradient.clone().into_buffer_arg(),
                last_gradient.unwrap_or_else(|| forward.last.clone()).into_buffer_arg(),
                write_gradients.clone().into_buffer_arg(),
                states.clone().into_buffer_arg(),
                initial.clone().into_buffer_arg(),
                count,
                self.scale,
                pass,
                element(&self.q),
            );
        }
        (states, initial)
    }

    fn gradients(
        &self,
        forward: &Forward,
        output_gradient: &CubeTensor,
        state_gradients: &CubeTensor,
        errors: &CubeTensor,
    ) -> Gradients {
        let like = |x: &CubeTensor| allocate(x, x.shape(), x.dtype);
        let shape = self.q.shape();
        let key_blocks = self.sizes.key_dim.div_ceil(keys::KEYS);
        let parts = |count: usize| self.scratch([shape[0], shape[1], shape[2], count]);
        let (attention_gradient, keys_gradient) = (self.pairs(), self.pairs());
        let gradients = Gradients {
            q: like(&self.q),
            k: like(&self.k),
            v: like(&self.v),
            decay: match self.sizes.decay {
                DecayKind::None => self.scratch([1]),
                DecayKind::PerHead => parts(key_blocks),
                DecayKind::PerKey => parts(self.sizes.key_dim),
            },
            // The last part is that of the values.
            beta: parts(key_blocks + 1),
        };
        let (grid, units, count) = self.grid(self.chunk_heads());
        unsafe {
            weights::weights_kernel::launch_unchecked(
                &self.client,
                grid,
                units,
                self.address,
                self.chunks(),
                self.v.clone().into_buffer_arg(),
                self.beta.clone().into_buffer_arg(),
                output_gradient.clone().into_buffer_arg(),
                forward.writes.clone().into_buffer_arg(),
                errors.clone().into_buffer_arg(),
                forward.keys_on_keys.clone().into_buffer_arg(),
                attention_gradient.clone().into_buffer_arg(),
                keys_gradient.clone().into_buffer_arg(),
                gradients.v.clone().into_buffer_arg(),
                gradients.beta.clone().into_buffer_arg(),
                count,
                key_blocks + 1,
                self.sizes,
                [element(&self.v), element(&self.beta)],
            );
        }
        let (grid, units, count) = self.grid(self.chunk_heads() * key_blocks);
        unsafe {
            keys::keys_kernel::launch_unchecked(
                &self.client,
                grid,
                units,
                self.address,
                self.chunks(),
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
                gradients.q.clone().into_buffer_arg(),
                gradients.k.clone().into_buffer_arg(),
                gradients.decay.clone().into_buffer_arg(),
                gradients.beta.clone().into_buffer_arg(),
                count,
                self.scale,
                key_blocks + 1,
                self.sizes,
                [element(&self.q), element(&self.log_decay), element(&self.beta)],
            );
        }
        gradients
    }
}
