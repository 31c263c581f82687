//! From tensors to kernel launches.

use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{
    few::{self, few_rows_kernel},
    kernel::product_kernel,
    plan::{Blueprint, DEPTH, Plan, Product},
    table,
};
use crate::cube::{
    address, allocate, blocks::UNITS, element, is_fused, prepared, sum_rows, upload, vector_size,
};

/// A grouped product that the device has the kernel for.
pub(super) struct Problem<'a> {
    blueprint: Blueprint,
    offsets: &'a [usize],
    groups: usize,
    /// Width of the rows of `x`.
    width: usize,
    /// Width of the rows of the result.
    out: usize,
    dtype: DType,
}

impl<'a> Problem<'a> {
    pub fn new(x: &CubeTensor, weight: &CubeTensor, offsets: &'a [usize]) -> Option<Self> {
        if ![x, weight].into_iter().all(is_fused) {
            return None;
        }
        let [groups, out, width] = weight.shape().dims();
        let blueprint = Blueprint::new(x, offsets, width.max(out))?;
        Some(Self { blueprint, offsets, groups, width, out, dtype: x.dtype })
    }

    fn rows(&self) -> usize {
        self.offsets[self.groups]
    }

    pub fn result(&self, x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let [x, weight] = [x, weight].map(|tensor| prepared(tensor, self.dtype));
        match self.blueprint.of_few_rows(self.offsets) {
            Some(most) => self.product_of_few_rows(most, &x, &weight),
            None => self.product_of_rows(Product::Result, &x, &weight),
        }
    }

    fn product_of_few_rows(&self, most: usize, x: &CubeTensor, weight: &CubeTensor) -> CubeTensor {
        let tiles = table::tiles(self.offsets, most);
        let result = allocate(x, [self.rows(), self.out], self.dtype);
        let vector = vector_size(x, self.width);
        let cubes = (tiles.len() / 3, self.out.div_ceil(few::WIDTH));
        // SAFETY: as in `launch`.
        unsafe {
            few_rows_kernel::launch_unchecked(
                &result.client,
                CubeCount::Static(cubes.0 as u32, cubes.1 as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                address(&[x, weight, &result]),
                vector,
                x.clone().into_buffer_arg(),
                weight.clone().into_buffer_arg(),
                upload(x, &tiles),
                result.clone().into_buffer_arg(),
                self.out,
                self.width / vector,
                most,
                element(x),
            );
        }
        result
    }

    /// Of `x` and the weight.
    pub fn gradients(
        &self,
        x: CubeTensor,
        weight: CubeTensor,
        gradient: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let [x, weight, gradient] = [x, weight, gradient].map(|tensor| prepared(tensor, self.dtype));
        (
            self.product_of_rows(Product::InputGradient, &gradient, &weight),
            self.weight_gradient(&gradient, &x),
        )
    }

    /// Rows times the matrix of their group, or its transpose.
    fn product_of_rows(&self, product: Product, rows: &CubeTensor, weight: &CubeTensor) -> CubeTensor {
        let (depth, width) = match product {
            Product::Result => (self.width, self.out),
            _ => (self.out, self.width),
        };
        let plan = self.blueprint.of_rows(product, self.offsets, width);
        let tiles = table::tiles(self.offsets, plan.height());
        let result = allocate(rows, [self.rows(), width], self.dtype);
        let sizes = Sizes { height: 0, width, depth, left: depth, right: weight.shape()[2] };
        self.launch(plan, &tiles, 1, sizes, [rows, weight], &result);
        result
    }

    fn weight_gradient(&self, gradient: &CubeTensor, x: &CubeTensor) -> CubeTensor {
        let (height, width) = (self.out, self.width);
        let (plan, slices) = self.blueprint.of_weights(self.offsets, height, width);
        let tiles = table::slices(self.offsets, slices, DEPTH);
        let dtype = if slices == 1 { self.dtype } else { DType::F32 };
        let result = allocate(x, [slices * self.groups, height, width], dtype);
        let sizes = Sizes { height, width, depth: 0, left: height, right: width };
        self.launch(plan, &tiles, height.div_ceil(plan.height()), sizes, [gradient, x], &result);
        let shape = Shape::from([self.groups, height, width]);
        if slices == 1 { result } else { sum_rows(result, shape, self.dtype) }
    }

    fn launch(
        &self,
        plan: Plan,
        tiles: &[u32],
        cubes_along_rows: usize,
        sizes: Sizes,
        [left, right]: [&CubeTensor; 2],
        result: &CubeTensor,
    ) {
        let cubes = [tiles.len() / 3, sizes.width.div_ceil(plan.width()), cubes_along_rows];
        let [x, y, z] = cubes.map(|count| count as u32);
        // SAFETY: the kernel stays within the shapes it is given, and the table within the rows.
        unsafe {
            product_kernel::launch_unchecked(
                &result.client,
                CubeCount::Static(x, y, z),
                CubeDim::new_1d(plan.tiling.count() as u32),
                address(&[left, right, result]),
                vector_size(left, sizes.left),
                vector_size(right, sizes.right),
                left.clone().into_buffer_arg(),
                right.clone().into_buffer_arg(),
                upload(left, tiles),
                result.clone().into_buffer_arg(),
                sizes.height,
                sizes.width,
                sizes.depth,
                plan,
                element(left),
                element(result),
                ElemType::Float(self.blueprint.operand()),
            );
        }
    }
}

/// Sizes as the kernel has them, and the lengths of the rows of both operands.
struct Sizes {
    height: usize,
    width: usize,
    depth: usize,
    left: usize,
    right: usize,
}
