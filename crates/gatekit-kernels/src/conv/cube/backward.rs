//! The backward pass: the steps are walked back, so that the gradients of the later steps that see
//! an input are known when it is met.

use burn::{
    backend::{Backend, TensorMetadata},
    tensor::DType,
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{Plan, Problem, filters, input, preactivation};
use crate::{
    conv::{ConvolutionArguments, ConvolutionSpec, portable},
    cube::{
        Sequence, absent, address, allocate, boundaries_of, element, grid, into_contiguous, is_fused,
        sum_rows,
    },
    gate::{Activation, functions},
};

/// Gradients of all arguments, a single zero for what is absent.
pub(crate) fn backward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    arguments: ConvolutionArguments<B>,
    gradient: CubeTensor,
    spec: &ConvolutionSpec,
) -> ConvolutionArguments<B> {
    // Every unit leaves sums for the filters: it has some steps to make them worth it.
    let problem = is_fused(&gradient).then(|| Problem::new(&arguments, spec, 16)).flatten();
    let Some(problem) = problem else {
        return portable::backward(arguments, gradient, spec);
    };
    let gradient = into_contiguous(gradient);
    let boundaries = boundaries_of(&problem.x, spec.boundaries.as_deref());
    let (count, cube) = grid(&problem.x, problem.walks() * problem.plan.lines);
    let walks = problem.walks();
    let Problem { x, weight, bias, state, batch, time, channels, line, plan } = problem;

    let dx = allocate(&x, x.shape(), x.dtype);
    let dstate = match plan.has_state {
        true => allocate(&x, state.shape(), state.dtype),
        false => allocate(&x, [line], state.dtype),
    };
    let dweight = allocate(&x, [walks, channels * plan.taps], DType::F32);
    let dbias = allocate(&x, [walks, channels], DType::F32);
    // SAFETY: a unit has a row of the batch, steps of it and a line of its channels; what lies
    // before a sequence belongs to that sequence's state.
    unsafe {
        backward_kernel::launch_unchecked(
            &dx.client,
            count,
            cube,
            address(&[&x, &state, &dweight]),
            line,
            x.clone().into_buffer_arg(),
            weight.clone().into_buffer_arg(),
            bias.clone().into_buffer_arg(),
            state.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            boundaries,
            dx.clone().into_buffer_arg(),
            dweight.clone().into_buffer_arg(),
            dbias.clone().into_buffer_arg(),
            dstate.clone().into_buffer_arg(),
            batch,
            time,
            plan,
            [element(&x), element(&weight), element(&bias), element(&state), element(&gradient)],
        );
    }
    ConvolutionArguments {
        weight: sum_rows(dweight, weight.shape(), weight.dtype),
        bias: if plan.has_bias { sum_rows(dbias, bias.shape(), bias.dtype) } else { absent(&x) },
        state: if plan.has_state { dstate } else { absent(&x) },
        x: dx,
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<F: Float, W: Float, B: Float, H: Float, D: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[W],
    bias: &[Vector<B, N>],
    state: &[Vector<H, N>],
    gradient: &[Vector<D, N>],
    boundaries: &[u32],
    dx: &mut [Vector<F, N>],
    dweight: &mut [f32],
    dbias: &mut [Vector<f32, N>],
    dstate: &mut [Vector<H, N>],
    batch: usize,
    time: usize,
    #[comptime] plan: Plan,
    #[define(F, W, B, H, D)] _elements: [ElemType; 5],
) {
    let line = ABSOLUTE_POS % plan.lines;
    let walk = ABSOLUTE_POS / plan.lines;
    let walks = time.div_ceil(plan.steps);
    let row = walk / walks;
    if row < batch {
        let before = comptime![plan.taps - 1];
        let first = walk % walks * plan.steps;
        let last = min(time, first + plan.steps);
        let filters = filters::<W, N>(weight, line, plan);
        let mut bias_line = Vector::<f32, N>::new(0.0);
        if plan.has_bias {
            bias_line = Vector::cast_from(bias[line]);
        }
        let mut window = Array::<Vector<f32, N>>::new(plan.taps);
        // Gradients before the activation, of this step and of those that see its input.
        let mut later = Array::<Vector<f32, N>>::new(plan.taps);
        let mut filter_sums = Array::<Vector<f32, N>>::new(plan.taps);
        let mut bias_sum = Vector::<f32, N>::new(0.0);
        #[unroll]
        for tap in 0..plan.taps {
            later[tap] = Vector::new(0.0);
            filter_sums[tap] = Vector::new(0.0);
        }

        // The walk begins where the last step's input is seen last.
        let furthest = min(time, last + before);
        let mut sequence = Sequence::at(furthest - 1, row, time, boundaries, plan.is_packed);
        for back in 0..furthest - first {
            let step = furthest - 1 - back;
            sequence.follow_back(step, boundaries, plan.is_packed);
            if back == 0 || step + 1 == sequence.end {
                #[unroll]
                for tap in 0..plan.taps {
                    window[tap] = input::<F, H, N>(x, state, row * time, step, line, &sequence, tap, plan);
                    later[tap] = Vector::new(0.0);
                }
            } else {
                #[unroll]
                for tap in 0..before {
                    let to = comptime![plan.taps - 1 - tap];
                    window[to] = window[comptime![to - 1]];
                    later[to] = later[comptime![to - 1]];
                }
                window[0] = input::<F, H, N>(x, state, row * time, step, line, &sequence, 0usize, plan);
            }
            let place = (row * time + step) * plan.lines + line;
            let mut dz = Vector::<f32, N>::cast_from(gradient[place]);
            if plan.silu {
                let z = preactivation::<N>(&window, &filters, bias_line, plan);
                let (_, slope) = functions::value_and_slope::<N>(z, Activation::Swish);
                dz *= slope;
            }
            later[0] = dz;

            if step < last {
                let mut sum = Vector::<f32, N>::new(0.0);
                #[unroll]
                for tap in 0..plan.taps {
                    sum += filters[comptime![plan.taps - 1 - tap]] * later[tap];
                    filter_sums[tap] += dz * window[tap];
                }
                dx[place] = Vector::cast_from(sum);
                bias_sum += dz;
                if plan.has_state && step == sequence.start {
                    #[unroll]
                    for place in 0..before {
                        let mut sum = Vector::<f32, N>::new(0.0);
                        #[unroll]
                        for tap in 0..comptime![place + 1] {
                            sum += filters[comptime![place - tap]] * later[tap];
                        }
                        dstate[(sequence.index * before + place) * plan.lines + line] =
                            Vector::cast_from(sum);
                    }
                }
            }
        }

        dbias[walk * plan.lines + line] = bias_sum;
        #[unroll]
        for tap in 0..plan.taps {
            #[unroll]
            for lane in 0..N::value() {
                let channel = (walk * plan.lines + line) * N::value() + lane;
                dweight[channel * plan.taps + tap] = filter_sums[tap].extract(lane);
            }
        }
    }
}
