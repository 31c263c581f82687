//! What a device must have for the kernel, and the tile sizes: decided here and nowhere else.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind, features::TypeUsage};

use super::{few, table};
use crate::cube::{
    blocks::{BLOCK, Grid, Layout, Planes, UNITS},
    float_kind,
    tiles::TileShape,
};

/// Numbers that a cube contracts over between two synchronisations.
pub(super) const DEPTH: usize = 32;

/// Buffers of the kernel, and one of scalars and shapes.
const BINDINGS: u32 = 5;

/// Multiprocessors of a device that does not tell.
const PROCESSORS: usize = 64;

/// Units that a multiprocessor has at once, by their shared memory and registers.
const ROOM: usize = 512;

/// Units of a plane on a processor that runs the kernels in software: the numbers of its vector registers. On such a
/// device every cube is work and none waits for another.
const SOFTWARE: u32 = 8;

/// Rows of a group that are worth a cube of their own in the gradient of the weight.
const SLICE: usize = 256;

/// Which of the three products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Product {
    /// `y_e = x_e W_e^T`
    Result,
    /// `dx_e = dy_e W_e`
    InputGradient,
    /// `dW_e = dy_e^T x_e`
    WeightGradient,
}

/// A product as the kernel is compiled for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub product: Product,
    pub tiling: Tiling,
}

/// The tile of a result that a cube makes, and what makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Tiling {
    /// Units, each with its own rows and columns of the tile in registers.
    Units {
        /// Units along the rows and along the columns of the tile.
        units: [usize; 2],
        /// Rows and columns of a unit.
        own: [usize; 2],
    },
    /// Matrix units, and the blocks of the tile.
    Planes(Grid),
}

impl Tiling {
    /// Rows and columns of the tile.
    fn tile(self) -> [usize; 2] {
        match self {
            Self::Units { units, own } => [units[0] * own[0], units[1] * own[1]],
            Self::Planes(grid) => [grid.rows * BLOCK, grid.cols * BLOCK],
        }
    }

    /// Units of a cube.
    pub fn count(self) -> usize {
        match self {
            Self::Units { units, .. } => units[0] * units[1],
            Self::Planes(_) => UNITS,
        }
    }

    /// Time of a unit: numbers that it reads of both operands.
    fn reads(self) -> usize {
        match self {
            Self::Units { own, .. } => own[0] + own[1],
            Self::Planes(grid) => grid.rows + grid.cols,
        }
    }

    pub fn uses_planes(self) -> bool {
        matches!(self, Self::Planes(_))
    }

    /// Units along the rows and along the columns of the tile.
    pub fn units(self) -> [usize; 2] {
        match self {
            Self::Units { units, .. } => units,
            Self::Planes(_) => [1, 1],
        }
    }

    /// Rows and columns of a unit.
    pub fn own(self) -> [usize; 2] {
        match self {
            Self::Units { own, .. } => own,
            Self::Planes(_) => [1, 1],
        }
    }

    /// Sums that a unit has in registers.
    pub fn registers(self) -> usize {
        self.own()[0] * self.own()[1]
    }

    /// Blocks of the sums in matrix units.
    pub fn grid(self) -> Grid {
        match self {
            Self::Units { .. } => Grid::new(1, 1, None),
            Self::Planes(grid) => grid,
        }
    }
}

impl Plan {
    /// Rows of a tile.
    pub fn height(self) -> usize {
        self.tiling.tile()[0]
    }

    /// Columns of a tile.
    pub fn width(self) -> usize {
        self.tiling.tile()[1]
    }

    /// Tiles of both operands in shared memory.
    pub fn shapes(self) -> [TileShape; 2] {
        let along = |length: usize| TileShape::new(length, DEPTH, self.depth_stride());
        let across = |length: usize| TileShape::new(DEPTH, length, length + 8);
        let [height, width] = self.tiling.tile();
        match self.product {
            Product::Result => [along(height), along(width)],
            Product::InputGradient => [along(height), across(width)],
            Product::WeightGradient => [across(height), across(width)],
        }
    }

    /// How these lie.
    pub fn layouts(self) -> [Layout; 2] {
        let [left, right] = self.shapes();
        match self.product {
            Product::Result => [Layout::AxisMajor(left.stride), Layout::AxisMajor(right.stride)],
            Product::InputGradient => [Layout::AxisMajor(left.stride), Layout::DepthMajor(right.stride)],
            Product::WeightGradient => [Layout::DepthMajor(left.stride), Layout::DepthMajor(right.stride)],
        }
    }

    /// Distance between rows that the product contracts along: odd for units, which meet no bank twice, whole 16-byte
    /// words of half-precision numbers for matrix units.
    fn depth_stride(self) -> usize {
        if self.tiling.uses_planes() { DEPTH + 8 } else { DEPTH + 1 }
    }

    /// Numbers of shared memory for each operand.
    pub fn lengths(self) -> [usize; 2] {
        let [left, right] = self.shapes();
        [left.rows * left.stride, right.rows * right.stride]
    }

    /// Bytes of shared memory, with operands of `operand_bytes` each.
    fn shared_bytes(self, operand_bytes: usize) -> usize {
        let [left, right] = self.lengths();
        let stages = if self.tiling.uses_planes() { 2 * self.tiling.grid().stage_len(1) } else { 0 };
        (left + right) * operand_bytes + stages * 4
    }
}

/// What a device has for inputs of a type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blueprint {
    /// Type of the inputs.
    input: FloatKind,
    planes: Option<Planes>,
    /// Units that it has at once.
    room: usize,
}

impl Blueprint {
    /// For inputs like `input` and rows of at most `widest` numbers, if the device can run the kernel for them.
    pub fn new(input: &CubeTensor, offsets: &[usize], widest: usize) -> Option<Self> {
        let kind = float_kind(input.dtype)?;
        let properties = input.client.properties();
        let hardware = &properties.hardware;
        let usage = properties.type_usage(ElemType::Float(kind));
        // A table names less than twice as many tiles as the rows of all groups are tiles of 64.
        let [x, y, z] = <[u32; 3]>::from(hardware.max_cube_count).map(|cubes| cubes as usize);
        let tiles = 2 * (offsets.len() + offsets[offsets.len() - 1].div_ceil(4 * BLOCK));
        let able = tiles <= x
            && widest.div_ceil(few::WIDTH) <= y
            && widest.div_ceil(BLOCK) <= z
            && usage.contains(TypeUsage::Buffer)
            && usage.contains(TypeUsage::Conversion)
            && hardware.max_bindings >= BINDINGS
            && hardware.max_units_per_cube as usize >= UNITS
            && hardware.max_cube_dim.0 as usize >= UNITS;
        let blueprint = Self {
            input: kind,
            planes: Planes::of(&input.client, kind),
            room: match hardware.num_streaming_multiprocessors {
                Some(count) => ROOM * count as usize,
                None if hardware.plane_size_max <= SOFTWARE => ROOM,
                None => ROOM * PROCESSORS,
            },
        };
        let bytes = if blueprint.operand() == FloatKind::F32 { 4 } else { 2 };
        let products = [Product::Result, Product::InputGradient, Product::WeightGradient];
        let plans = products.into_iter().flat_map(|product| blueprint.plans(product));
        let need = plans.map(|plan| plan.shared_bytes(bytes)).fold(few::shared_bytes(few::ROWS), usize::max);
        (able && need <= hardware.max_shared_memory_size).then_some(blueprint)
    }

    /// Type of the operands of products in shared memory: the inputs' where matrix units take it, else float32.
    pub fn operand(&self) -> FloatKind {
        if self.planes.is_some() { self.input } else { FloatKind::F32 }
    }

    /// Tiles to choose from, the preferred first.
    fn plans(&self, product: Product) -> impl Iterator<Item = Plan> {
        let tilings = match self.planes {
            Some(_) => {
                let grids = [(4, 8), (4, 4), (1, 8), (1, 4)];
                grids.map(|(rows, cols)| Tiling::Planes(Grid::new(rows, cols, self.planes)))
            }
            None => {
                let sizes = [([8, 16], [8, 8]), ([8, 8], [8, 8]), ([4, 16], [4, 8]), ([4, 16], [4, 4])];
                sizes.map(|(units, own)| Tiling::Units { units, own })
            }
        };
        tilings.into_iter().map(move |tiling| Plan { product, tiling })
    }

    /// The plan that takes least time.
    ///
    /// A unit reads its numbers from shared memory whether or not the result has its rows and columns; a device that the
    /// units do not fill is not done sooner with fewer of them.
    fn choose(&self, product: Product, cubes: impl Fn(Plan) -> usize) -> Plan {
        let cost = |plan: &Plan| {
            let tiling = plan.tiling;
            (cubes(*plan) * tiling.count()).max(self.room) * tiling.reads()
        };
        self.plans(product).min_by_key(cost).expect("there are plans")
    }

    /// For a product with a row of the result for every row of the operand.
    pub fn of_rows(&self, product: Product, offsets: &[usize], width: usize) -> Plan {
        self.choose(product, |plan| table::tile_count(offsets, plan.height()) * width.div_ceil(plan.width()))
    }

    /// The rows that [`few::few_rows_kernel`] is compiled for, where it makes the result.
    pub fn of_few_rows(&self, offsets: &[usize]) -> Option<usize> {
        let most = table::longest(offsets).next_power_of_two();
        (most <= few::ROWS).then_some(most)
    }

    /// For the gradient of a weight of `height` rows and `width` columns a group, and the number of slices that the
    /// rows of each group are summed in: more than one where the groups would not fill the device.
    pub fn of_weights(&self, offsets: &[usize], height: usize, width: usize) -> (Plan, usize) {
        let groups = offsets.len() - 1;
        let (rows, longest) = (offsets[groups], table::longest(offsets));
        let tiles = |plan: Plan| height.div_ceil(plan.height()) * width.div_ceil(plan.width());
        // Where some groups have most of the rows, their cubes are the ones that work.
        let busy = |plan: Plan| rows.div_ceil(longest) * tiles(plan);
        let most = (longest / SLICE).max(1);
        let plan = self.choose(Product::WeightGradient, |plan| most * busy(plan));
        let room = self.room / plan.tiling.count();
        // The sums of all slices are stored: not many times the device's room.
        let most = most.min(4 * room / (groups * tiles(plan)));
        (plan, (room / busy(plan)).min(most).max(1))
    }
}

#[cfg(test)]
mod tests {
    use cubecl::ir::FloatKind;

    use super::{Blueprint, PROCESSORS, Product, ROOM};

    const DEVICE: Blueprint = Blueprint { input: FloatKind::F32, planes: None, room: ROOM * PROCESSORS };

    /// Groups of these many rows.
    fn offsets(rows: &[usize]) -> Vec<usize> {
        let ends = rows.iter().scan(0, |end, rows| {
            *end += rows;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    fn tile(rows: &[usize], width: usize) -> [usize; 2] {
        let plan = DEVICE.of_rows(Product::Result, &offsets(rows), width);
        [plan.height(), plan.width()]
    }

    #[test]
    fn tiles_follow_the_rows_of_a_group() {
        assert_eq!(tile(&[512; 8], 4096), [64, 128]);
        assert_eq!(tile(&[8; 64], 4096), [16, 128], "most of a high tile would be empty");
        assert_eq!(tile(&[0, 0, 0, 512], 4096), [64, 128], "groups without rows cost nothing");
        assert_eq!(tile(&[4096; 8], 64), [64, 64], "half of a wide tile would be empty");
        assert_eq!(tile(&[10; 2], 1024), [16, 64], "wide tiles would not fill the device");
    }

    #[test]
    fn few_rows_are_those_of_every_group() {
        assert_eq!(DEVICE.of_few_rows(&offsets(&[1, 0, 1])), Some(1));
        assert_eq!(DEVICE.of_few_rows(&offsets(&[1, 0, 3])), Some(4));
        assert_eq!(DEVICE.of_few_rows(&offsets(&[1, 0, 5])), None);
    }

    #[test]
    fn rows_are_sliced_where_groups_do_not_fill_the_device() {
        let slices = |rows: &[usize], height, width| DEVICE.of_weights(&offsets(rows), height, width).1;
        assert_eq!(slices(&[512; 8], 2048, 2048), 1);
        assert_eq!(slices(&[100; 8], 16, 16), 1, "too few rows");
        assert_eq!(slices(&[65536], 64, 64), 256);
        assert_eq!(slices(&[0, 0, 2048, 0], 64, 64), 8, "the rows of one group");
    }
}
