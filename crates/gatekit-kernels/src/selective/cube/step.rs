//! One step of every channel: its state is read and written once, in place where nothing else holds
//! its memory.

use burn::{
    backend::{Backend, TensorMetadata},
    tensor::DType,
};
use burn_cubecl::{kernel::cast, tensor::CubeTensor};
use cubecl::{ir::ElemType, prelude::*};

use crate::{
    cube::{address, allocate, decay, element, grid, into_contiguous, is_fused, line},
    selective::{SelectiveStep, portable},
};

/// `y` `[batch, channels]` and the state `[batch, channels, N]`.
pub(crate) fn step<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    arguments: SelectiveStep<B>,
    fused: bool,
) -> (CubeTensor, CubeTensor) {
    let SelectiveStep { x, delta, a, b, c, state } = arguments;
    if !fused || ![&x, &delta, &a, &b, &c, &state].into_iter().all(is_fused) {
        return portable::step::<B>(SelectiveStep { x, delta, a, b, c, state });
    }
    let [x, delta, b, c] = [x, delta, b, c].map(into_contiguous);
    let [a, state] = [a, state].map(|tensor| into_contiguous(cast(tensor, DType::F32)));
    let shape = state.shape();
    let (batch, channels, size) = (shape[0], shape[1], shape[2]);
    let line = line(size, &[&state, &b, &c]);
    let (count, cube) = grid(&x, batch * channels);
    let y = allocate(&x, x.shape(), x.dtype);
    let elements = [element(&x), element(&delta), element(&b), element(&c)];
    let widths = address(&[&state]);
    let (next, next_argument) = if state.can_mut() {
        (state.clone(), state.as_tensor_alias(5).into_buffer_arg())
    } else {
        let next = allocate(&state, state.shape(), DType::F32);
        (next.clone(), next.into_buffer_arg())
    };
    // SAFETY: a unit has a channel of a row of the batch; no other touches its state.
    unsafe {
        step_kernel::launch_unchecked(
            &y.client,
            count,
            cube,
            widths,
            line,
            x.into_buffer_arg(),
            delta.into_buffer_arg(),
            a.into_buffer_arg(),
            b.into_buffer_arg(),
            c.into_buffer_arg(),
            state.into_buffer_arg(),
            next_argument,
            y.clone().into_buffer_arg(),
            channels,
            size / line,
            elements,
        );
    }
    (y, next)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn step_kernel<X: Float, D: Float, B: Float, C: Float, N: Size>(
    x: &[X],
    delta: &[D],
    a: &[Vector<f32, N>],
    b: &[Vector<B, N>],
    c: &[Vector<C, N>],
    state: &[Vector<f32, N>],
    next: &mut [Vector<f32, N>],
    y: &mut [X],
    channels: usize,
    lines: usize,
    #[define(X, D, B, C)] _elements: [ElemType; 4],
) {
    if ABSOLUTE_POS < y.len() {
        let channel = ABSOLUTE_POS % channels;
        let row = ABSOLUTE_POS / channels;
        let x = Vector::<f32, N>::new(f32::cast_from(x[ABSOLUTE_POS]));
        let delta = Vector::<f32, N>::new(f32::cast_from(delta[ABSOLUTE_POS]));
        let mut sum = Vector::<f32, N>::new(0.0);
        for line in 0..lines {
            let kept = decay::<N>(delta * a[channel * lines + line]);
            let added = x * Vector::cast_from(b[row * lines + line]);
            let new = kept * state[ABSOLUTE_POS * lines + line] + added;
            next[ABSOLUTE_POS * lines + line] = new;
            sum += new * Vector::cast_from(c[row * lines + line]);
        }
        y[ABSOLUTE_POS] = X::cast_from(sum.vector_sum());
    }
}
