//! Half precision, at the edge of an operation: its tensors are widened before anything is computed, and its results
//! narrowed to the types they are stored in.

use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::DType,
};

use crate::primitive::{Primitive, accumulation};

/// The values of a tensor in another float type.
pub(crate) fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    Primitive::<B>(tensor).cast(dtype).0
}

/// The tensors in the type that sums over values of the first are made in.
pub(crate) fn widen<B: Backend, const N: usize>(tensors: [FloatTensor<B>; N]) -> [FloatTensor<B>; N] {
    let wide = accumulation(tensors[0].dtype());
    tensors.map(|tensor| cast::<B>(tensor, wide))
}

/// The tensors in the types that they are stored in.
pub(crate) fn narrow<B: Backend, const N: usize>(
    tensors: [FloatTensor<B>; N],
    dtypes: [DType; N],
) -> [FloatTensor<B>; N] {
    let mut dtypes = dtypes.into_iter();
    tensors.map(|tensor| cast::<B>(tensor, dtypes.next().expect("a type for a tensor")))
}

/// Panics unless an operation can compute with its tensors: all in floating point, and none wider than what sums over
/// values of the main one are made in. Absent tensors have no type.
pub(crate) fn check_dtypes<const N: usize>(operation: &str, main: DType, others: [Option<DType>; N]) {
    let is_float = |dtype| matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64);
    assert!(
        is_float(main),
        "{operation} takes float16, bfloat16, float32 and float64, the inputs are {main:?}: cast them first"
    );
    for dtype in others.into_iter().flatten() {
        assert!(
            is_float(dtype) && (dtype != DType::F64 || main == DType::F64),
            "{operation} computes in {:?} for inputs in {main:?}, another tensor is in {dtype:?}: cast it first",
            accumulation(main)
        );
    }
}
