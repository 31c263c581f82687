//! Backends whose tensors are slices of host memory.

use std::borrow::Cow;

use burn::{
    backend::{Backend, tensor::FloatTensor},
    tensor::{Element, Shape, TensorData},
};

use crate::float::Float;

/// A backend on host memory.
pub(crate) trait HostBackend: Backend {
    /// The values of a tensor of type `F` in row-major order, copied only where its layout is another.
    fn read<F: HostFloat>(tensor: &FloatTensor<Self>) -> Cow<'_, [F]>;

    /// The values of a tensor of type `F` that is given up: without a copy where nothing else holds them.
    fn take<F: HostFloat>(tensor: FloatTensor<Self>) -> Vec<F>;

    /// A tensor of these values.
    fn write<F: HostFloat>(values: Vec<F>, shape: Shape) -> FloatTensor<Self>;
}

/// A float type that fused kernels compute in, and how each backend's tensors hold it.
pub(crate) trait HostFloat: Float + Element {
    #[cfg(feature = "ndarray")]
    fn read_ndarray(tensor: &burn_ndarray::NdArrayTensor) -> Cow<'_, [Self]>;

    #[cfg(feature = "ndarray")]
    fn take_ndarray(tensor: burn_ndarray::NdArrayTensor) -> Vec<Self>;

    #[cfg(feature = "flex")]
    fn read_flex(tensor: &burn_flex::FlexTensor) -> Cow<'_, [Self]>;
}

macro_rules! host_float {
    ($float:ty, $variant:ident) => {
        impl HostFloat for $float {
            #[cfg(feature = "ndarray")]
            fn read_ndarray(tensor: &burn_ndarray::NdArrayTensor) -> Cow<'_, [Self]> {
                let burn_ndarray::NdArrayTensor::$variant(storage) = tensor else {
                    unreachable!("fused kernels are called with tensors of their type")
                };
                match storage.view().to_slice() {
                    Some(values) => Cow::Borrowed(values),
                    None => Cow::Owned(storage.view().iter().copied().collect()),
                }
            }

            #[cfg(feature = "ndarray")]
            fn take_ndarray(tensor: burn_ndarray::NdArrayTensor) -> Vec<Self> {
                let burn_ndarray::NdArrayTensor::$variant(storage) = tensor else {
                    unreachable!("fused kernels are called with tensors of their type")
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

            #[cfg(feature = "flex")]
            fn read_flex(tensor: &burn_flex::FlexTensor) -> Cow<'_, [Self]> {
                match tensor.as_slice::<Self>() {
                    Some(values) => Cow::Borrowed(values),
                    None => {
                        let contiguous = tensor.to_contiguous().into_data();
                        Cow::Owned(contiguous.try_into_vec().expect("a contiguous tensor of this type"))
                    }
                }
            }
        }
    };
}

host_float!(f32, F32);
host_float!(f64, F64);

#[cfg(feature = "ndarray")]
impl HostBackend for burn_ndarray::NdArray {
    fn read<F: HostFloat>(tensor: &burn_ndarray::NdArrayTensor) -> Cow<'_, [F]> {
        F::read_ndarray(tensor)
    }

    fn take<F: HostFloat>(tensor: burn_ndarray::NdArrayTensor) -> Vec<F> {
        F::take_ndarray(tensor)
    }

    fn write<F: HostFloat>(values: Vec<F>, shape: Shape) -> burn_ndarray::NdArrayTensor {
        burn_ndarray::NdArrayTensor::from_data(TensorData::new(values, shape))
    }
}

#[cfg(feature = "flex")]
impl HostBackend for burn_flex::Flex {
    fn read<F: HostFloat>(tensor: &burn_flex::FlexTensor) -> Cow<'_, [F]> {
        F::read_flex(tensor)
    }

    fn take<F: HostFloat>(tensor: burn_flex::FlexTensor) -> Vec<F> {
        tensor.into_data().try_into_vec().expect("a tensor of this type")
    }

    fn write<F: HostFloat>(values: Vec<F>, shape: Shape) -> burn_flex::FlexTensor {
        burn_flex::FlexTensor::from_data(TensorData::new(values, shape))
    }
}
