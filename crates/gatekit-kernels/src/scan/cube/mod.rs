//! The scans as CubeCL kernels.

mod delta;
mod step;

use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::{GradientOf, ScanArguments, ScanGradients, ScanSpec, WriteKind, portable};

pub(crate) use step::step;

/// Output `[batch, time, heads, value_dim]` and final state.
pub(crate) fn forward(arguments: ScanArguments<CubeBackend>, spec: &ScanSpec) -> (CubeTensor, CubeTensor) {
    match spec.write {
        WriteKind::Delta if spec.fused && delta::computes(&arguments) => delta::forward(arguments, spec),
        _ => portable::forward(arguments, spec),
    }
}

/// Gradients of the arguments, given the gradient of the output or of the final state.
pub(crate) fn backward(
    arguments: ScanArguments<CubeBackend>,
    gradient: CubeTensor,
    of: GradientOf,
    spec: &ScanSpec,
) -> ScanGradients<CubeBackend> {
    match spec.write {
        WriteKind::Delta if spec.fused && delta::computes(&arguments) => {
            delta::backward(arguments, gradient, of, spec)
        }
        _ => portable::backward(arguments, gradient, of, spec),
    }
}
