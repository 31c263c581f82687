//! Backends whose tensors are slices of host memory.

use std::borrow::Cow;

use burn::{
    backend::{Backend, tensor::FloatTensor},
    tensor::{Shape, TensorData},
};

/// A backend on host memory.
pub(crate) trait HostBackend: Backend {
    /// The values of a float32 tensor in row-major order, copied only where its layout is another.
    fn read(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]>;

    /// The values of a float32 tensor that is given up: without a copy where nothing else holds them.
    fn take(tensor: FloatTensor<Self>) -> Vec<f32>;

    /// A tensor of these values.
    fn write(values: Vec<f32>, shape: Shape) -> FloatTensor<Self>;
}

#[cfg(feature = "ndarray")]
impl HostBackend for burn_ndarray::NdArray {
    fn read(tensor: &burn_ndarray::NdArrayTensor) -> Cow<'_, [f32]> {
        let burn_ndarray::NdArrayTensor::F32(storage) = tensor else {
            unreachable!("fused kernels are called with float32 tensors")
        };
        match storage.view().to_slice() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(storage.view().iter().copied().collect()),
        }
    }

    fn take(tensor: burn_ndarray::NdArrayTensor) -> Vec<f32> {
        let burn_ndarray::NdArrayTensor::F32(storage) = tensor else {
            unreachable!("fused kernels are called with float32 tensors")
        };
        let array = storage.into_shared();
        match array.is_standard_layout() {
            true => {
                let length = array.len();
                let (mut values, offset) = array.into_owned().into_raw_vec_and_offset();
                let start = offset.unwrap_or(0);
                values.truncate(start + length);
                values.drain(..start);
                values
            }
            false => array.iter().copied().collect(),
        }
    }

    fn write(values: Vec<f32>, shape: Shape) -> burn_ndarray::NdArrayTensor {
        burn_ndarray::NdArrayTensor::from_data(TensorData::new(values, shape))
    }
}

#[cfg(feature = "flex")]
impl HostBackend for burn_flex::Flex {
    fn read(tensor: &burn_flex::FlexTensor) -> Cow<'_, [f32]> {
        match tensor.as_slice::<f32>() {
            Some(values) => Cow::Borrowed(values),
            None => {
                let contiguous = tensor.to_contiguous().into_data();
                Cow::Owned(contiguous.try_into_vec().expect("a contiguous float32 tensor"))
            }
        }
    }

    fn take(tensor: burn_flex::FlexTensor) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("a float32 tensor")
    }

    fn write(values: Vec<f32>, shape: Shape) -> burn_flex::FlexTensor {
        burn_flex::FlexTensor::from_data(TensorData::new(values, shape))
    }
}
