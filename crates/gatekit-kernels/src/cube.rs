//! What the CubeCL kernels share: how their tensors are laid out and spread over units.

use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{
    cubecl::{
        calculate_cube_count_elemwise,
        ir::{ElemType, FloatKind},
        prelude::*,
    },
    ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};

pub(crate) use burn_cubecl::kernel::into_contiguous;

/// Whether the kernels compute with these elements: they read and write the type they are stored
/// in, and compute in float32. The rest, and tensors without elements, is left to the portable forms.
pub(crate) fn is_fused(tensor: &CubeTensor) -> bool {
    matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16) && tensor.shape().num_elements() > 0
}

/// The type a tensor's elements are stored in.
pub(crate) fn element(tensor: &CubeTensor) -> ElemType {
    ElemType::Float(match tensor.dtype {
        DType::F32 => FloatKind::F32,
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        dtype => unreachable!("no kernel computes with {dtype:?}"),
    })
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

/// The integers that reach every element of these tensors.
pub(crate) fn address(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}

/// Cubes with at least `units` units in all, and the units of a cube.
pub(crate) fn grid(tensor: &CubeTensor, units: usize) -> (CubeCount, CubeDim) {
    let cube = CubeDim::new(&tensor.client, units);
    (calculate_cube_count_elemwise(&tensor.client, units, cube), cube)
}
