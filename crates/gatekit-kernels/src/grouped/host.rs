//! The kernels for the backends whose tensors are slices of host memory.

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};

use super::{
    ExpertArguments, ExpertSpec, GroupedBackend,
    cpu::{self, Experts, Sizes},
    portable_experts,
};
use crate::{
    host::{HostBackend, HostFloat},
    precision::{cast, narrow, widen},
};

fn sizes<B: HostBackend>(weight: &FloatTensor<B>) -> Sizes {
    let shape = weight.shape();
    Sizes { out: shape[1], width: shape[2] }
}

/// The forward pass.
pub(super) fn matmul<B: HostBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    offsets: &[usize],
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let [x, weight] = widen::<B, 2>([x, weight]);
    let y = match dtype {
        DType::F64 => matmul_in::<B, f64>(&x, &weight, offsets),
        _ => matmul_in::<B, f32>(&x, &weight, offsets),
    };
    cast::<B>(y, dtype)
}

fn matmul_in<B: HostBackend, F: HostFloat>(
    x: &FloatTensor<B>,
    weight: &FloatTensor<B>,
    offsets: &[usize],
) -> FloatTensor<B> {
    let sizes = sizes::<B>(weight);
    let y = cpu::matmul::<F>(&B::read(x), &B::read(weight), offsets, sizes);
    B::write(y, Shape::new([x.shape()[0], sizes.out]))
}

/// Gradients of `x` and the weight.
pub(super) fn matmul_backward<B: HostBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    offsets: &[usize],
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = x.dtype();
    let [x, weight, gradient] = widen::<B, 3>([x, weight, gradient]);
    let gradients = match dtype {
        DType::F64 => matmul_backward_in::<B, f64>(&x, &weight, &gradient, offsets),
        _ => matmul_backward_in::<B, f32>(&x, &weight, &gradient, offsets),
    };
    narrow::<B, 2>(gradients, [dtype; 2]).into()
}

fn matmul_backward_in<B: HostBackend, F: HostFloat>(
    x: &FloatTensor<B>,
    weight: &FloatTensor<B>,
    gradient: &FloatTensor<B>,
    offsets: &[usize],
) -> [FloatTensor<B>; 2] {
    let [dx, dweight] = cpu::matmul_backward::<F>(
        &B::read(x),
        &B::read(weight),
        &B::read(gradient),
        offsets,
        sizes::<B>(weight),
    );
    [B::write(dx, x.shape()), B::write(dweight, weight.shape())]
}

/// Calls `run` with the arguments as slices.
fn with_slices<B: HostBackend, T>(
    ExpertArguments { x, weights, gate_up, down }: &ExpertArguments<B>,
    spec: &ExpertSpec,
    run: impl FnOnce(Experts) -> T,
) -> T {
    let [rows, width] = [gate_up.shape()[1], gate_up.shape()[2]];
    run(Experts {
        x: &B::read(x),
        weights: &B::read(weights),
        slots: &spec.slots,
        gate_up: &B::read(gate_up),
        down: &B::read(down),
        activation: spec.activation,
        width,
        inner: rows / 2,
    })
}

/// Half-precision arguments in float32.
fn widened<B: HostBackend>(arguments: ExpertArguments<B>) -> ExpertArguments<B> {
    let ExpertArguments { x, weights, gate_up, down } = arguments;
    let [x, weights, gate_up, down] = widen::<B, 4>([x, weights, gate_up, down]);
    ExpertArguments { x, weights, gate_up, down }
}

/// The outputs, and with `keep` the inner rows, which have no elements without.
pub(super) fn experts<B: HostBackend + GroupedBackend>(
    arguments: ExpertArguments<B>,
    spec: &ExpertSpec,
    keep: bool,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = arguments.x.dtype();
    if dtype == DType::F64 {
        return portable_experts::forward(arguments, spec);
    }
    let arguments = widened(arguments);
    let (y, kept) = with_slices(&arguments, spec, |experts| experts.forward(keep));
    let rows = arguments.gate_up.shape()[1];
    let kept_shape = Shape::new([kept.len() / rows, rows]);
    let y = B::write(y, arguments.x.shape());
    narrow::<B, 2>([y, B::write(kept, kept_shape)], [dtype; 2]).into()
}

/// Gradients of all arguments.
pub(super) fn experts_backward<B: HostBackend + GroupedBackend>(
    arguments: ExpertArguments<B>,
    kept: FloatTensor<B>,
    gradient: FloatTensor<B>,
    spec: &ExpertSpec,
) -> ExpertArguments<B> {
    let ExpertArguments { x, weights, gate_up, down } = &arguments;
    let dtypes = [x.dtype(), weights.dtype(), gate_up.dtype(), down.dtype()];
    if dtypes[0] == DType::F64 {
        return portable_experts::backward(arguments, kept, gradient, spec);
    }
    let arguments = widened(arguments);
    let [kept, gradient] = widen::<B, 2>([kept, gradient]);
    let kept = B::take::<f32>(kept);
    let gradients =
        with_slices(&arguments, spec, |experts| experts.backward(kept, &B::read::<f32>(&gradient)));
    let ExpertArguments { x, weights, gate_up, down } = arguments;
    let gradients = [
        B::write(gradients.x, x.shape()),
        B::write(gradients.weights, weights.shape()),
        B::write(gradients.gate_up, gate_up.shape()),
        B::write(gradients.down, down.shape()),
    ];
    let [x, weights, gate_up, down] = narrow::<B, 4>(gradients, dtypes);
    ExpertArguments { x, weights, gate_up, down }
}
