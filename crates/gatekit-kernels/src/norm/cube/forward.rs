//! The forward pass.

use burn::backend::{Backend, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{Plan, are_fused, inverse, row_sum};
use crate::{
    cube::{address, allocate, element, into_contiguous, line},
    gate::functions,
    norm::{NormArguments, NormSpec, portable},
};

/// The forward pass.
pub(crate) fn forward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    arguments: NormArguments<B>,
    spec: NormSpec,
) -> CubeTensor {
    if !are_fused(&arguments) {
        return portable::forward(arguments, spec);
    }
    let [x, weight] = [arguments.x, arguments.weight].map(into_contiguous);
    // Without a gate the logits are never looked at.
    let z = if spec.gate.is_some() { into_contiguous(arguments.logits) } else { x.clone() };
    let dim = weight.shape().num_elements();
    let rows = x.shape().num_elements() / dim;
    let y = allocate(&x, x.shape(), x.dtype);
    let line = line(dim, &[&x, &weight, &z]);
    let plan = Plan::new(&x, dim, line, spec.gate);
    let (count, cube) = plan.grid(&x, rows);
    // SAFETY: a unit touches rows and lines that the plan, made of the tensors' shapes, has.
    unsafe {
        forward_kernel::launch_unchecked(
            &y.client,
            count,
            cube,
            address(&[&x, &z]),
            line,
            x.clone().into_buffer_arg(),
            weight.clone().into_buffer_arg(),
            z.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            rows,
            spec.eps as f32,
            plan,
            [element(&x), element(&weight), element(&z)],
        );
    }
    y
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, W: Float, G: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    logits: &[Vector<G, N>],
    y: &mut [Vector<F, N>],
    rows: usize,
    eps: f32,
    #[comptime] plan: Plan,
    #[define(F, W, G)] _elements: [ElemType; 3],
) {
    let mut sums = Shared::<[f32]>::new_slice(comptime![plan.units * plan.rows]);
    let unit = UNIT_POS_X as usize;
    let row = CUBE_POS * plan.rows + UNIT_POS_Y as usize;
    // Units without a row take part in the sums of another.
    let lines = if row < rows { plan.lines.runtime() } else { 0usize.runtime() };
    let start = row * plan.lines;

    let mut squares = 0.0f32;
    let mut place = unit;
    while place < lines {
        let x = Vector::<f32, N>::cast_from(x[start + place]);
        squares += (x * x).vector_sum();
        place += plan.units;
    }
    let squares = row_sum(squares, &mut sums, plan);
    let inverse = inverse(squares, eps, plan);

    let mut place = unit;
    while place < lines {
        let x = Vector::<f32, N>::cast_from(x[start + place]);
        let mut y_line = x * Vector::new(inverse) * Vector::cast_from(weight[place]);
        if comptime![plan.gate.is_some()] {
            let z = Vector::<f32, N>::cast_from(logits[start + place]);
            y_line *= functions::value::<N>(z, comptime![plan.gate.unwrap()]);
        }
        y[start + place] = Vector::cast_from(y_line);
        place += plan.units;
    }
}
