//! The gates as CubeCL kernels: a unit computes one line of elements.

use burn::backend::{Backend, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{Activation, functions, portable};
use crate::cube::{address, allocate, element, grid, into_contiguous, is_fused, line};

/// `x * act(logits)`.
pub(super) fn product<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    x: CubeTensor,
    logits: CubeTensor,
    activation: Activation,
) -> CubeTensor {
    if ![&x, &logits].into_iter().all(is_fused) {
        return portable::product::<B>(x, logits, activation);
    }
    let [x, logits] = [x, logits].map(into_contiguous);
    let y = allocate(&x, x.shape(), x.dtype);
    let line = line(x.shape().num_elements(), &[&x, &logits]);
    let (count, cube) = grid(&x, x.shape().num_elements() / line);
    // SAFETY: a unit touches the line of its own position alone, where the tensors have one.
    unsafe {
        product_kernel::launch_unchecked(
            &y.client,
            count,
            cube,
            address(&[&x, &logits]),
            line,
            x.clone().into_buffer_arg(),
            logits.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            activation,
            [element(&x), element(&logits)],
        );
    }
    y
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn product_kernel<F: Float, G: Float, N: Size>(
    x: &[Vector<F, N>],
    logits: &[Vector<G, N>],
    y: &mut [Vector<F, N>],
    #[comptime] activation: Activation,
    #[define(F, G)] _elements: [ElemType; 2],
) {
    if ABSOLUTE_POS < y.len() {
        let z = Vector::<f32, N>::cast_from(logits[ABSOLUTE_POS]);
        let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
        y[ABSOLUTE_POS] = Vector::cast_from(x * functions::value::<N>(z, activation));
    }
}

/// Gradients of `x` and of the logits.
pub(super) fn product_backward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    x: CubeTensor,
    logits: CubeTensor,
    gradient: CubeTensor,
    activation: Activation,
) -> (CubeTensor, CubeTensor) {
    if ![&x, &logits, &gradient].into_iter().all(is_fused) {
        return portable::product_backward::<B>(x, logits, gradient, activation);
    }
    let [x, logits, gradient] = [x, logits, gradient].map(into_contiguous);
    let dx = allocate(&x, x.shape(), x.dtype);
    let dz = allocate(&x, x.shape(), logits.dtype);
    let line = line(x.shape().num_elements(), &[&x, &logits, &gradient]);
    let (count, cube) = grid(&x, x.shape().num_elements() / line);
    // SAFETY: a unit touches the line of its own position alone, where the tensors have one.
    unsafe {
        product_backward_kernel::launch_unchecked(
            &dx.client,
            count,
            cube,
            address(&[&x, &logits, &gradient]),
            line,
            x.clone().into_buffer_arg(),
            logits.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            dz.clone().into_buffer_arg(),
            activation,
            [element(&x), element(&logits), element(&gradient)],
        );
    }
    (dx, dz)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn product_backward_kernel<F: Float, G: Float, D: Float, N: Size>(
    x: &[Vector<F, N>],
    logits: &[Vector<G, N>],
    gradient: &[Vector<D, N>],
    dx: &mut [Vector<F, N>],
    dz: &mut [Vector<G, N>],
    #[comptime] activation: Activation,
    #[define(F, G, D)] _elements: [ElemType; 3],
) {
    if ABSOLUTE_POS < dx.len() {
        let z = Vector::<f32, N>::cast_from(logits[ABSOLUTE_POS]);
        let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
        let dy = Vector::<f32, N>::cast_from(gradient[ABSOLUTE_POS]);
        let (value, slope) = functions::value_and_slope::<N>(z, activation);
        dx[ABSOLUTE_POS] = Vector::cast_from(dy * value);
        dz[ABSOLUTE_POS] = Vector::cast_from(dy * x * slope);
    }
}

/// `max(logsigmoid(z) / normalizer, floor)`.
pub(super) fn log_sigmoid<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    logits: CubeTensor,
    normalizer: f64,
    floor: Option<f64>,
) -> CubeTensor {
    if !is_fused(&logits) {
        return portable::log_sigmoid::<B>(logits, normalizer, floor);
    }
    let logits = into_contiguous(logits);
    let y = allocate(&logits, logits.shape(), logits.dtype);
    let line = line(y.shape().num_elements(), &[&logits]);
    let (count, cube) = grid(&y, y.shape().num_elements() / line);
    // SAFETY: a unit touches the line of its own position alone, where the tensors have one.
    unsafe {
        log_sigmoid_kernel::launch_unchecked(
            &y.client,
            count,
            cube,
            address(&[&logits]),
            line,
            logits.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            normalizer as f32,
            floor.unwrap_or_default() as f32,
            floor.is_some(),
            element(&logits),
        );
    }
    y
}

/// The gate before its floor.
#[cube]
fn scaled<N: Size>(z: Vector<f32, N>, normalizer: f32) -> Vector<f32, N> {
    functions::log_sigmoid::<N>(z) / Vector::new(normalizer)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn log_sigmoid_kernel<F: Float, N: Size>(
    logits: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    normalizer: f32,
    floor: f32,
    #[comptime] has_floor: bool,
    #[define(F)] _element: ElemType,
) {
    if ABSOLUTE_POS < y.len() {
        let mut gate = scaled::<N>(Vector::cast_from(logits[ABSOLUTE_POS]), normalizer);
        if has_floor {
            let floor = Vector::<f32, N>::new(floor);
            gate = select_many(gate.less_than(&floor), floor, gate);
        }
        y[ABSOLUTE_POS] = Vector::cast_from(gate);
    }
}

/// Gradient of the logits.
pub(super) fn log_sigmoid_backward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    logits: CubeTensor,
    gradient: CubeTensor,
    normalizer: f64,
    floor: Option<f64>,
) -> CubeTensor {
    if ![&logits, &gradient].into_iter().all(is_fused) {
        return portable::log_sigmoid_backward::<B>(logits, gradient, normalizer, floor);
    }
    let [logits, gradient] = [logits, gradient].map(into_contiguous);
    let dz = allocate(&logits, logits.shape(), logits.dtype);
    let line = line(dz.shape().num_elements(), &[&logits, &gradient]);
    let (count, cube) = grid(&dz, dz.shape().num_elements() / line);
    // SAFETY: a unit touches the line of its own position alone, where the tensors have one.
    unsafe {
        log_sigmoid_backward_kernel::launch_unchecked(
            &dz.client,
            count,
            cube,
            address(&[&logits, &gradient]),
            line,
            logits.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            dz.clone().into_buffer_arg(),
            normalizer as f32,
            floor.unwrap_or_default() as f32,
            floor.is_some(),
            [element(&logits), element(&gradient)],
        );
    }
    dz
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn log_sigmoid_backward_kernel<F: Float, D: Float, N: Size>(
    logits: &[Vector<F, N>],
    gradient: &[Vector<D, N>],
    dz: &mut [Vector<F, N>],
    normalizer: f32,
    floor: f32,
    #[comptime] has_floor: bool,
    #[define(F, D)] _elements: [ElemType; 2],
) {
    if ABSOLUTE_POS < dz.len() {
        let z = Vector::<f32, N>::cast_from(logits[ABSOLUTE_POS]);
        let (_, closed) = functions::logistic::<N>(z);
        let mut slope = closed / Vector::new(normalizer);
        if has_floor {
            let is_below = scaled::<N>(z, normalizer).less_than(&Vector::new(floor));
            slope = select_many(is_below, Vector::new(0.0), slope);
        }
        dz[ABSOLUTE_POS] = Vector::cast_from(Vector::<f32, N>::cast_from(gradient[ABSOLUTE_POS]) * slope);
    }
}
