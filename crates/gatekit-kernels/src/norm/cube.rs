//! The norm as CubeCL kernels: the units of a row add up its squares and keep to their lines of it.

mod backward;
mod forward;

use burn::backend::Backend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::{calculate_cube_count_elemwise, ir::features::Plane, prelude::*};

use super::NormArguments;
use crate::{cube::is_fused, gate::Activation};

pub(super) use backward::backward;
pub(super) use forward::forward;

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
