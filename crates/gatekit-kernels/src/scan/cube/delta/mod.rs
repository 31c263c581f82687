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
mod launch;
mod output;
mod place;
mod scores;
mod solve;
mod states;
mod tiles;
mod weights;

use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::{
    blueprint::Blueprint,
    launch::{prepared, zeros_like},
};
use crate::{
    primitive::Primitive,
    scan::{DecayKind, GradientOf, ScanArguments, ScanGradients, ScanSpec},
};
pub(super) use launch::computes;
use launch::{DeltaScan, Rows};

/// Output `[batch, time, heads, value_dim]` and final state.
pub(super) fn forward(
    blueprint: Blueprint,
    arguments: ScanArguments<CubeBackend>,
    spec: &ScanSpec,
) -> (CubeTensor, CubeTensor) {
    let scan = DeltaScan::new(blueprint, arguments, spec);
    let forward = scan.forward();
    (scan.output(&forward), forward.last)
}

/// Gradients of the arguments, given the gradient of the output or of the final state.
pub(super) fn backward(
    blueprint: Blueprint,
    arguments: ScanArguments<CubeBackend>,
    gradient: CubeTensor,
    of: GradientOf,
    spec: &ScanSpec,
) -> ScanGradients<CubeBackend> {
    let [k_dtype, v_dtype, decay_dtype, beta_dtype, state_dtype] =
        [&arguments.k, &arguments.v, &arguments.log_decay, &arguments.beta, &arguments.initial_state]
            .map(|tensor| tensor.dtype);
    let scan = DeltaScan::new(blueprint, arguments, spec);
    let forward = scan.forward();
    let (output_gradient, last_gradient) = match of {
        GradientOf::Output => (prepared(gradient, scan.v.dtype), None),
        GradientOf::FinalState => {
            (zeros_like(&scan.v, scan.v.shape(), scan.v.dtype), Some(prepared(gradient, DType::F32)))
        }
    };
    let write_gradients = scan.apply(&forward.attention, &output_gradient, Rows::Asked);
    let (state_gradients, initial_gradient) =
        scan.reverse(&forward, &output_gradient, last_gradient, &write_gradients);
    let errors = scan.apply(&forward.inverse, &write_gradients, Rows::Written);
    let gradients = scan.gradients(&forward, &output_gradient, &state_gradients, &errors);

    let absent = |dtype| zeros_like(&scan.q, [1], dtype);
    let summed = |parts: CubeTensor, dtype, shape: Shape| {
        prepared(Primitive::<CubeBackend>(parts).sum(3).reshape(shape).0, dtype)
    };
    ScanGradients {
        log_decay: match spec.decay {
            DecayKind::None => absent(decay_dtype),
            DecayKind::PerHead => summed(gradients.decay, decay_dtype, scan.log_decay.shape()),
            DecayKind::PerKey => prepared(gradients.decay, decay_dtype),
        },
        beta: summed(gradients.beta, beta_dtype, scan.beta.shape()),
        initial_state: match spec.has_initial_state {
            true => prepared(initial_gradient, state_dtype),
            false => absent(state_dtype),
        },
        q: gradients.q,
        k: prepared(gradients.k, k_dtype),
        v: prepared(gradients.v, v_dtype),
    }
}
