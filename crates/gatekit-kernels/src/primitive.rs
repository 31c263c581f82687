//! Operators over a backend's float primitives, so that portable kernels read like equations.

use std::ops::{Add, Mul, Range, Sub};

use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::{DType, FloatDType, Shape, Slice, TensorData},
};

/// The type that sums over values of type `dtype` are made in: float32, or float64 for float64.
pub(crate) fn accumulation(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// A float tensor of backend `B`.
#[derive(Debug)]
pub(crate) struct Primitive<B: Backend>(pub FloatTensor<B>);

impl<B: Backend> Clone for Primitive<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> Primitive<B> {
    pub fn dims(&self) -> Vec<usize> {
        self.0.shape().to_vec()
    }

    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    fn rank(&self) -> usize {
        self.0.shape().num_dims()
    }

    /// The values in another float type.
    pub fn cast(self, dtype: DType) -> Self {
        if self.0.dtype() == dtype { self } else { Self(B::float_cast(self.0, dtype.into())) }
    }

    fn float_dtype(&self) -> FloatDType {
        self.0.dtype().into()
    }

    /// Zeros of another shape, on the same device and in the same dtype.
    pub fn zeros(&self, dims: impl Into<Shape>) -> Self {
        Self(B::float_zeros(dims.into(), &self.0.device(), self.float_dtype()))
    }

    /// Values from the host, on the same device and in the same dtype.
    pub fn constant(&self, values: Vec<f32>, dims: impl Into<Shape>) -> Self {
        let data = TensorData::new(values, dims.into());
        let data = if self.0.dtype() == DType::F64 { data.convert::<f64>() } else { data };
        Self(B::float_from_data(data, &self.0.device()))
    }

    pub fn reshape(self, dims: impl Into<Shape>) -> Self {
        Self(B::float_reshape(self.0, dims.into()))
    }

    pub fn expand(self, dims: impl Into<Shape>) -> Self {
        Self(B::float_expand(self.0, dims.into()))
    }

    pub fn permute(self, axes: &[usize]) -> Self {
        Self(B::float_permute(self.0, axes))
    }

    /// Swaps the last two axes.
    pub fn transpose(self) -> Self {
        let rank = self.rank();
        Self(B::float_swap_dims(self.0, rank - 2, rank - 1))
    }

    /// The indices `range` of axis `dim`.
    pub fn narrow(&self, dim: usize, range: Range<usize>) -> Self {
        let dims = self.dims();
        if range == (0..dims[dim]) {
            return self.clone();
        }
        let slices: Vec<Slice> = (0..dims.len())
            .map(|axis| Slice::from(if axis == dim { range.clone() } else { 0..dims[axis] }))
            .collect();
        Self(B::float_slice(self.0.clone(), &slices))
    }

    pub fn cat(parts: Vec<Self>, dim: usize) -> Self {
        let mut parts = parts;
        if parts.len() == 1 {
            return parts.remove(0);
        }
        Self(B::float_cat(parts.into_iter().map(|part| part.0).collect(), dim))
    }

    /// Appends zeros along axis `dim` up to `length`.
    pub fn pad_end(self, dim: usize, length: usize) -> Self {
        let mut dims = self.dims();
        if dims[dim] == length {
            return self;
        }
        dims[dim] = length - dims[dim];
        let zeros = self.zeros(dims);
        Self::cat(vec![self, zeros], dim)
    }

    pub fn matmul(self, rhs: Self) -> Self {
        Self(B::float_matmul(self.0, rhs.0))
    }

    /// An index tensor on the same device.
    fn indices(&self, indices: Vec<usize>) -> burn::backend::tensor::IntTensor<B> {
        let device = self.0.device();
        let settings = burn::backend::get_or_init_device_settings::<B>(&device);
        let count = indices.len();
        let indices: Vec<i64> = indices.into_iter().map(|index| index as i64).collect();
        let data = TensorData::new(indices, [count]).convert_dtype(settings.int_dtype.into());
        B::int_from_data(data, &device)
    }

    /// The given indices of axis `dim`, in their order.
    pub fn select(self, dim: usize, indices: Vec<usize>) -> Self {
        let indices = self.indices(indices);
        Self(B::float_select(self.0, dim, indices))
    }

    pub fn exp(self) -> Self {
        Self(B::float_exp(self.0))
    }

    pub fn log1p(self) -> Self {
        Self(B::float_log1p(self.0))
    }

    pub fn abs(self) -> Self {
        Self(B::float_abs(self.0))
    }

    pub fn sqrt(self) -> Self {
        Self(B::float_sqrt(self.0))
    }

    pub fn recip(self) -> Self {
        Self(B::float_recip(self.0))
    }

    pub fn neg(self) -> Self {
        Self(B::float_neg(self.0))
    }

    pub fn scale(self, factor: f64) -> Self {
        Self(B::float_mul_scalar(self.0, factor.into()))
    }

    pub fn add_scalar(self, term: f64) -> Self {
        Self(B::float_add_scalar(self.0, term.into()))
    }

    pub fn clamp_min(self, min: f64) -> Self {
        Self(B::float_clamp_min(self.0, min.into()))
    }

    pub fn clamp_max(self, max: f64) -> Self {
        Self(B::float_clamp_max(self.0, max.into()))
    }

    pub fn mean(self, dim: usize) -> Self {
        Self(B::float_mean_dim(self.0, dim))
    }

    /// Sum over axis `dim`, which stays with length 1.
    pub fn sum(self, dim: usize) -> Self {
        Self(B::float_sum_dim(self.0, dim))
    }

    pub fn cumsum(self, dim: usize) -> Self {
        Self(B::float_cumsum(self.0, dim))
    }

    pub fn flip(self, dim: usize) -> Self {
        Self(B::float_flip(self.0, &[dim]))
    }

    /// Sums of all later entries and the entry itself along axis `dim`.
    pub fn reverse_cumsum(self, dim: usize) -> Self {
        self.flip(dim).cumsum(dim).flip(dim)
    }

    /// `other` where `key` is below `bound`, else `self`.
    pub fn or_below(self, key: &Self, bound: f64, other: Self) -> Self {
        let settings = burn::backend::get_or_init_device_settings::<B>(&self.0.device());
        let mask = B::float_lower_elem(key.0.clone(), bound.into(), settings.bool_dtype);
        Self(B::float_mask_where(self.0, mask, other.0))
    }

    /// 1 where the value is above 0, else 0.
    pub fn positive(self) -> Self {
        let dtype = self.float_dtype();
        let settings = burn::backend::get_or_init_device_settings::<B>(&self.0.device());
        let mask = B::float_greater_elem(self.0, 0.0.into(), settings.bool_dtype);
        Self(B::bool_into_float(mask, dtype))
    }

    /// 1 where the value is at least `bound`, else 0.
    pub fn at_least(self, bound: f64) -> Self {
        let dtype = self.float_dtype();
        let device = self.0.device();
        let settings = burn::backend::get_or_init_device_settings::<B>(&device);
        let mask = B::float_greater_equal_elem(self.0, bound.into(), settings.bool_dtype);
        Self(B::bool_into_float(mask, dtype))
    }
}

impl<B: Backend> Add for Primitive<B> {
    type Output = Self;
    fn add(self, rhs: Self) -> Self {
        Self(B::float_add(self.0, rhs.0))
    }
}

impl<B: Backend> Sub for Primitive<B> {
    type Output = Self;
    fn sub(self, rhs: Self) -> Self {
        Self(B::float_sub(self.0, rhs.0))
    }
}

impl<B: Backend> Mul for Primitive<B> {
    type Output = Self;
    fn mul(self, rhs: Self) -> Self {
        Self(B::float_mul(self.0, rhs.0))
    }
}
