//! Fused scans with a matrix state in CubeCL: wgpu (WGSL), Vulkan (SPIR-V), Metal, CUDA, ROCm.
//!
//! A sequence is cut into chunks of 64 steps, a chunk into sub-chunks of 16. Two kernels make the forward pass:
//! [`state`] goes through the chunks of a sequence and stores the state before each, [`output`] makes all outputs of
//! all chunks at once. The backward pass runs [`state`] again, then in reverse for the gradients of the states, then
//! [`output`] in reverse for the values and [`keys`] for queries, keys and log decays.
//!
//! * [`blocks`]: products of small matrices by a cube, by its units or by matrix units; all kernels use it.
//! * [`decay`], [`columns`]: decay factors, never from differences of sums, in shared memory or in registers.
//! * [`tiles`]: from global to shared memory.
//! * [`blueprint`]: what a device can do, and the tile sizes.
//! * [`launch`]: from tensors to kernel launches.
//! * [`delta`]: the delta rule, kernels of its own.
//! * [`step`]: one step of any of these scans.

mod blueprint;
mod columns;
mod decay;
mod delta;
mod keys;
mod launch;
mod output;
mod state;
mod step;

use burn::{backend::TensorMetadata, backend::tensor::FloatTensor, tensor::DType};
use burn_cubecl::{CubeBackend, kernel::cast, tensor::CubeTensor};

use super::{DecayKind, GradientOf, ScanArguments, ScanGradients, ScanSpec, WriteKind, portable};
use crate::cube::{blocks, float_kind, tiles};
use blueprint::Blueprint;
use launch::{Problem, prepared, zeros_like};
pub(crate) use step::step;

/// The tiling of the fused kernels for this scan; the others are left to the portable form.
fn fused(arguments: &ScanArguments<CubeBackend>, spec: &ScanSpec) -> Option<Blueprint> {
    let half_or_single = |tensor: &CubeTensor| float_kind(tensor.dtype).is_some();
    let readable = [&arguments.log_decay, &arguments.initial_state].into_iter().all(half_or_single);
    (spec.fused && readable).then(|| Blueprint::new(&arguments.q)).flatten()
}

/// The forward pass.
pub(crate) fn forward(
    arguments: ScanArguments<CubeBackend>,
    spec: &ScanSpec,
) -> (FloatTensor<CubeBackend>, FloatTensor<CubeBackend>) {
    let Some(blueprint) = fused(&arguments, spec) else {
        return portable::forward(arguments, spec);
    };
    match spec.write {
        WriteKind::Delta if delta::computes(&blueprint, &arguments) => {
            delta::forward(blueprint, arguments, spec)
        }
        WriteKind::Delta => portable::forward(arguments, spec),
        WriteKind::Additive => {
            let ScanArguments { q, k, v, log_decay, initial_state, .. } = arguments;
            let problem = Problem::new(blueprint, [q, k, v, log_decay], spec);
            let (states, last) = problem.states(spec.has_initial_state.then_some(initial_state), None);
            (problem.outputs(&states, None), last)
        }
    }
}

/// The backward pass.
pub(crate) fn backward(
    arguments: ScanArguments<CubeBackend>,
    gradient: FloatTensor<CubeBackend>,
    of: GradientOf,
    spec: &ScanSpec,
) -> ScanGradients<CubeBackend> {
    let Some(blueprint) = fused(&arguments, spec) else {
        return portable::backward(arguments, gradient, of, spec);
    };
    match spec.write {
        WriteKind::Delta if delta::computes(&blueprint, &arguments) => {
            delta::backward(blueprint, arguments, gradient, of, spec)
        }
        WriteKind::Delta => portable::backward(arguments, gradient, of, spec),
        WriteKind::Additive => additive_backward(blueprint, arguments, gradient, of, spec),
    }
}

fn additive_backward(
    blueprint: Blueprint,
    arguments: ScanArguments<CubeBackend>,
    gradient: CubeTensor,
    of: GradientOf,
    spec: &ScanSpec,
) -> ScanGradients<CubeBackend> {
    let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments;
    let (k_dtype, v_dtype) = (k.dtype, v.dtype);
    let problem = Problem::new(blueprint, [q, k, v, log_decay], spec);
    let (output_gradient, state_gradient) = match of {
        GradientOf::Output => (prepared(gradient, problem.q.dtype), None),
        GradientOf::FinalState => {
            (zeros_like(&problem.q, problem.v.shape(), problem.q.dtype), Some(gradient))
        }
    };
    let initial_dtype = initial_state.dtype;
    let (states, _) = problem.states(spec.has_initial_state.then_some(initial_state), None);
    let (state_gradients, initial) = problem.states(state_gradient, Some(&output_gradient));
    let dv = problem.outputs(&state_gradients, Some(&output_gradient));
    let [dq, dk, dg] = problem.keys(&output_gradient, &states, &state_gradients);
    let absent = |dtype: DType| zeros_like(&problem.q, [1], dtype);
    let dtype = problem.log_decay.dtype;
    ScanGradients {
        q: dq,
        k: prepared(dk, k_dtype),
        v: prepared(dv, v_dtype),
        log_decay: match spec.decay {
            DecayKind::None => absent(dtype),
            DecayKind::PerKey => dg,
            DecayKind::PerHead => prepared(sum_blocks(dg), dtype),
        },
        beta: absent(beta.dtype),
        initial_state: match spec.has_initial_state {
            true => cast(initial, initial_dtype),
            false => absent(initial_dtype),
        },
    }
}

/// The sum over the first axis of five.
fn sum_blocks(parts: CubeTensor) -> CubeTensor {
    use burn::backend::ops::FloatTensorOps;
    let dims = parts.shape();
    let sum = match dims[0] {
        1 => parts,
        _ => CubeBackend::float_sum_dim(parts, 0),
    };
    CubeBackend::float_reshape(sum, [dims[1], dims[2], dims[3], dims[4]].into())
}

#[cfg(all(test, feature = "wgpu"))]
mod tests;
