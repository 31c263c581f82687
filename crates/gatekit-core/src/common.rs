//! What all mechanisms share: the float type they compute in, index tensors and checks of shapes.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Half-precision tensors as float32, all others unchanged: sums, norms and softmax need it.
pub fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}

/// The values of a float tensor, read back from the device.
///
/// Some backends read a tensor that is held elsewhere too number by number, and a fresh one as it is: a product by 1 is
/// far less than that.
pub fn host_values<const D: usize>(x: Tensor<D>) -> TensorData {
    x.detach().mul_scalar(1.0).into_data()
}

/// An index tensor `[count]` for `select`.
pub(crate) fn indices(indices: Vec<usize>, device: &Device) -> Tensor<1, Int> {
    let count = indices.len();
    let indices: Vec<i64> = indices.into_iter().map(|index| index as i64).collect();
    Tensor::from_data(TensorData::new(indices, [count]), device)
}

/// Panics unless `small` broadcasts onto `large`: every axis is equal or 1.
pub(crate) fn assert_broadcasts<const D: usize>(
    function: &str,
    small: (&str, [usize; D]),
    large: (&str, [usize; D]),
) {
    let fits = small.1.iter().zip(&large.1).all(|(small, large)| small == large || *small == 1);
    assert!(
        fits,
        "{function}: `{}` {:?} does not broadcast onto `{}` {:?}",
        small.0, small.1, large.0, large.1
    );
}

/// Panics unless the last axis of `x` has `size` channels.
pub(crate) fn assert_last_axis<const D: usize>(function: &str, dims: [usize; D], size: usize) {
    assert!(
        dims[D - 1] == size,
        "{function}: `x` {dims:?} has {} channels in its last axis, the module {size}",
        dims[D - 1]
    );
}
