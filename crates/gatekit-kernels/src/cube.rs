//! What the CubeCL kernels share: how their tensors are laid out and spread over units.

pub(crate) mod blocks;
mod carries;
mod planes;
mod sequences;
mod sums;
pub(crate) mod tiles;

use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{kernel::cast, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::{
    calculate_cube_count_elemwise,
    ir::{ElemType, FloatKind},
    prelude::*,
};

pub(crate) use burn_cubecl::kernel::into_contiguous;
pub(crate) use carries::Chunks;
pub(crate) use sequences::{Boundaries, Sequence};
pub(crate) use sums::sum_rows;

/// Whether the kernels compute with these elements: they read and write the type they are stored
/// in, and compute in float32. The rest, and tensors without elements, is left to the portable forms.
pub(crate) fn is_fused(tensor: &CubeTensor) -> bool {
    float_kind(tensor.dtype).is_some() && tensor.shape().num_elements() > 0
}

/// The CubeCL type of the float types that the kernels read.
pub(crate) fn float_kind(dtype: DType) -> Option<FloatKind> {
    match dtype {
        DType::F32 => Some(FloatKind::F32),
        DType::F16 => Some(FloatKind::F16),
        DType::BF16 => Some(FloatKind::BF16),
        _ => None,
    }
}

/// The type a tensor's elements are stored in.
pub(crate) fn element(tensor: &CubeTensor) -> ElemType {
    let kind = float_kind(tensor.dtype);
    ElemType::Float(kind.unwrap_or_else(|| unreachable!("no kernel computes with {:?}", tensor.dtype)))
}

/// A tensor on the same device, in row-major order, its values whatever the memory held.
pub(crate) fn allocate(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// The single zero that stands for the gradient of what is absent.
pub(crate) fn absent(like: &CubeTensor) -> CubeTensor {
    burn_cubecl::ops::numeric::zeros(like.device.clone(), Shape::new([1]), like.dtype)
}

/// Elements that one unit reads and writes at once, where `length` of them stand in a row: the most
/// that the device moves in one instruction for every one of these tensors.
pub(crate) fn line(length: usize, tensors: &[&CubeTensor]) -> usize {
    let widest = tensors.iter().map(|tensor| tensor.dtype.size()).max().expect("a kernel has tensors");
    let mut sizes = tensors[0].client.io_optimized_vector_sizes(widest);
    sizes.find(|size| length.is_multiple_of(*size)).unwrap_or(1)
}

/// A tensor in row-major order and of a type.
pub(crate) fn prepared(tensor: CubeTensor, dtype: DType) -> CubeTensor {
    let tensor = if tensor.dtype == dtype { tensor } else { cast(tensor, dtype) };
    into_contiguous(tensor)
}

/// Numbers for a kernel.
pub(crate) fn upload(like: &CubeTensor, values: &[u32]) -> BufferArg {
    let handle = like.client.create_from_slice(u32::as_bytes(values));
    // SAFETY: the handle holds that many numbers.
    unsafe { BufferArg::from_raw_parts(handle, values.len()) }
}

/// Neighbouring elements read at once from rows of `dim` elements: 16 bytes where the rows allow it, 4 elements at most.
pub(crate) fn vector_size(tensor: &CubeTensor, dim: usize) -> usize {
    tensor
        .client
        .io_optimized_vector_sizes(tensor.dtype.size())
        .filter(|size| *size <= 4 && dim.is_multiple_of(*size))
        .max()
        .unwrap_or(1)
}

/// The integers that reach every element of these tensors.
pub(crate) fn address(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}

/// Cubes with at least `units` units in all, and the units of a cube.
pub(crate) fn grid(tensor: &CubeTensor, units: usize) -> (CubeCount, CubeDim) {
    let cube = CubeDim::new(&tensor.client, units);
    (calculate_cube_count_elemwise(&tensor.client, units, cube), cube)
}

/// `exp` of a log decay: exactly 0 for minus infinity, on every device.
#[cube]
pub(crate) fn decay<N: Size>(log_decay: Vector<f32, N>) -> Vector<f32, N> {
    let is_zero = log_decay.less_than(&Vector::new(-200.0));
    select_many(is_zero, Vector::new(0.0), log_decay.exp())
}
