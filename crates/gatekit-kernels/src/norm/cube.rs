//! The norm as CubeCL kernels: the units of a row add up its squares and keep to their lines of it.

use burn::{
    backend::{Backend, TensorMetadata},
    tensor::DType,
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{
    calculate_cube_count_elemwise,
    ir::{ElemType, features::Plane},
    prelude::*,
};

use super::{NormArguments, NormSpec, portable};
use crate::{
    cube::{absent, address, allocate, element, into_contiguous, is_fused, line, sum_rows},
    gate::{Activation, functions},
};

/// Units of a cube.
const UNITS: usize = 128;
/// Lines that a unit keeps in registers.
const KEPT: usize = 8;

/// How the rows are spread over units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    gate: Option<Activation>,
    dim: usize,
    /// Lines of a row.
    lines: usize,
    /// Units of a row, a power of two.
    units: usize,
    /// Rows that a cube has at once.
    rows: usize,
    /// Whether the units of a row are a plane of the device.
    is_plane: bool,
}

impl Plan {
    fn new(x: &CubeTensor, dim: usize, line: usize, gate: Option<Activation>) -> Self {
        let lines = dim / line;
        let properties = x.client.properties();
        let hardware = &properties.hardware;
        let plane = hardware.plane_size_max as usize;
        let has_planes = properties.features.plane.contains(Plane::Ops)
            && hardware.plane_size_min == hardware.plane_size_max;
        let is_plane = has_planes && lines <= KEPT * plane;
        let most = hardware.max_units_per_cube as usize;
        let units = match is_plane {
            true => plane,
            false => lines.next_power_of_two().min(2 * UNITS).min(1 << most.ilog2()),
        };
        Self { gate, dim, lines, units, rows: (UNITS.min(most) / units).max(1), is_plane }
    }

    /// Lines of a unit.
    fn own(&self) -> usize {
        self.lines.div_ceil(self.units)
    }

    /// Cubes with `rows` rows at once.
    fn grid(&self, x: &CubeTensor, rows: usize) -> (CubeCount, CubeDim) {
        let cubes = rows.div_ceil(self.rows);
        let cube = CubeDim::new_2d(self.units as u32, self.rows as u32);
        (calculate_cube_count_elemwise(&x.client, cubes * self.units * self.rows, cube), cube)
    }
}

fn are_fused(arguments: &NormArguments<impl Backend<FloatTensorPrimitive = CubeTensor>>) -> bool {
    [&arguments.x, &arguments.weight, &arguments.logits].into_iter().all(is_fused)
}

/// The forward pass.
pub(super) fn forward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
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

/// The sum of a value over the units of a row, for each of them; every unit of the cube takes part.
#[cube]
fn row_sum(value: f32, sums: &mut Shared<[f32]>, #[comptime] plan: Plan) -> f32 {
    if comptime![plan.is_plane] {
        plane_sum(value)
    } else {
        let place = UNIT_POS as usize;
        sums[place] = value;
        sync_cube();
        let halvings = comptime![plan.units.ilog2() as usize];
        #[unroll]
        for halving in 0..halvings {
            let width = comptime![plan.units >> (halving + 1)];
            if (UNIT_POS_X as usize) < width {
                sums[place] += sums[place + width];
            }
            sync_cube();
        }
        let sum = sums[UNIT_POS_Y as usize * plan.units];
        // The next sum overwrites this one.
        sync_cube();
        sum
    }
}

/// `1 / sqrt(mean(x^2) + eps)` for the sum of a row's squares.
#[cube]
fn inverse(squares: f32, eps: f32, #[comptime] plan: Plan) -> f32 {
    1.0 / (squares / comptime![plan.dim as f32] + eps).sqrt()
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

/// Rows that leave one row of the sum for the weight: the more there are, the fewer rows are summed
/// at once; the sums depend on nothing but the shape and the device.
fn workers(rows: usize) -> usize {
    (rows / 8).clamp(rows.min(64), 2048)
}

/// Gradients of `x`, the weight and the logits: the equations of the portable form.
pub(super) fn backward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    arguments: NormArguments<B>,
    gradient: CubeTensor,
    spec: NormSpec,
) -> NormArguments<B> {
    if !are_fused(&arguments) || !is_fused(&gradient) {
        return portable::backward(arguments, gradient, spec);
    }
    let [x, weight, gradient] = [arguments.x, arguments.weight, gradient].map(into_contiguous);
    let z = if spec.gate.is_some() { into_contiguous(arguments.logits) } else { x.clone() };
    let dim = weight.shape().num_elements();
    let rows = x.shape().num_elements() / dim;
    let line = line(dim, &[&x, &weight, &z, &gradient]);
    let plan = Plan::new(&x, dim, line, spec.gate);
    let workers = workers(rows).next_multiple_of(plan.rows);
    let (count, cube) = plan.grid(&x, workers);

    let dx = allocate(&x, x.shape(), x.dtype);
    let dz = match spec.gate {
        Some(_) => allocate(&z, z.shape(), z.dtype),
        None => allocate(&z, [line], z.dtype),
    };
    let parts = allocate(&x, [workers, dim], DType::F32);
    // SAFETY: a unit touches rows and lines that the plan, made of the tensors' shapes, has.
    unsafe {
        backward_kernel::launch_unchecked(
            &dx.client,
            count,
            cube,
            address(&[&x, &z, &gradient, &parts]),
            line,
            x.clone().into_buffer_arg(),
            weight.clone().into_buffer_arg(),
            z.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            dz.clone().into_buffer_arg(),
            parts.clone().into_buffer_arg(),
            rows,
            workers,
            spec.eps as f32,
            plan,
            [element(&x), element(&weight), element(&z), element(&gradient)],
        );
    }
    let logits = if spec.gate.is_some() { dz } else { absent(&dx) };
    NormArguments { x: dx, weight: sum_rows(parts, weight.shape(), weight.dtype), logits }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<F: Float, W: Float, G: Float, D: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    logits: &[Vector<G, N>],
    gradient: &[Vector<D, N>],
    dx: &mut [Vector<F, N>],
    dz: &mut [Vector<G, N>],
    parts: &mut [Vector<f32, N>],
    rows: usize,
    workers: usize,
    eps: f32,
    #[comptime] plan: Plan,
    #[define(F, W, G, D)] _elements: [ElemType; 4],
) {
    let own = comptime![plan.own()];
    let in_registers = comptime![own <= KEPT];
    let mut sums = Shared::<[f32]>::new_slice(comptime![plan.units * plan.rows]);
    let worker = CUBE_POS * plan.rows + UNIT_POS_Y as usize;
    // Of the gradient of the weight.
    let mut dweight = Array::<Vector<f32, N>>::new(own);
    #[unroll(in_registers)]
    for index in 0..own {
        dweight[index] = Vector::new(0.0);
    }

    // All units go round as often as the first, for the sake of the sums of a row.
    for round in 0..rows.div_ceil(workers) {
        let row = round * workers + worker;
        let lines = if row < rows && worker < workers { plan.lines.runtime() } else { 0usize.runtime() };
        let start = row * plan.lines;

        let mut squares = 0.0f32;
        // The sum of `u w x`, with `u` the gradient of the row before its gate.
        let mut along = 0.0f32;
        let mut place = UNIT_POS_X as usize;
        while place < lines {
            let x = Vector::<f32, N>::cast_from(x[start + place]);
            let mut u = Vector::<f32, N>::cast_from(gradient[start + place]);
            if comptime![plan.gate.is_some()] {
                let z = Vector::<f32, N>::cast_from(logits[start + place]);
                u *= functions::value::<N>(z, comptime![plan.gate.unwrap()]);
            }
            squares += (x * x).vector_sum();
            along += (u * Vector::cast_from(weight[place]) * x).vector_sum();
            place += plan.units;
        }
        let squares = row_sum(squares, &mut sums, plan);
        let along = row_sum(along, &mut sums, plan);
        let inverse = inverse(squares, eps, plan);
        let along = Vector::<f32, N>::new(along * inverse / comptime![plan.dim as f32]);
        let inverse = Vector::<f32, N>::new(inverse);

        #[unroll(in_registers)]
        for index in 0..own {
            let place = UNIT_POS_X as usize + index * plan.units;
            if place < lines {
                let n = Vector::<f32, N>::cast_from(x[start + place]) * inverse;
                let weight = Vector::<f32, N>::cast_from(weight[place]);
                let mut u = Vector::<f32, N>::cast_from(gradient[start + place]);
                if comptime![plan.gate.is_some()] {
                    let z = Vector::<f32, N>::cast_from(logits[start + place]);
                    let (value, slope) = functions::value_and_slope::<N>(z, comptime![plan.gate.unwrap()]);
                    dz[start + place] = Vector::cast_from(u * n * weight * slope);
                    u *= value;
                }
                dweight[index] += u * n;
                dx[start + place] = Vector::cast_from((u * weight - n * along) * inverse);
            }
        }
    }

    if worker < workers {
        #[unroll(in_registers)]
        for index in 0..own {
            let place = UNIT_POS_X as usize + index * plan.units;
            if place < plan.lines {
                parts[worker * plan.lines + place] = dweight[index];
            }
        }
    }
}
