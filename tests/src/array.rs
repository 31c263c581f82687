//! Arrays as files hold them.

use burn::tensor::{DType, TensorData};
use safetensors::{Dtype, tensor::TensorView};

use crate::failure::{Failure, Result};

/// An array in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Length of every axis; empty for a single number.
    pub shape: Vec<usize>,
    /// The elements.
    pub values: Values,
}

/// Elements of an [`Array`].
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// 32-bit floats.
    Float(Vec<f32>),
    /// 64-bit integers.
    Int(Vec<i64>),
    /// Truth values.
    Bool(Vec<bool>),
}

impl Values {
    /// What the elements are, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Float(_) => "F32",
            Self::Int(_) => "I64",
            Self::Bool(_) => "BOOL",
        }
    }
}

impl Array {
    /// Reads a tensor of a safetensors file.
    ///
    /// # Errors
    ///
    /// A dtype other than F32, I64 and BOOL; a BOOL that is neither 0 nor 1.
    pub fn from_view(view: &TensorView<'_>) -> Result<Self> {
        let bytes = view.data();
        let values = match view.dtype() {
            Dtype::F32 => Values::Float(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            ),
            Dtype::I64 => Values::Int(
                bytes
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                    .collect(),
            ),
            Dtype::BOOL => Values::Bool(
                bytes
                    .iter()
                    .map(|byte| match byte {
                        0 => Ok(false),
                        1 => Ok(true),
                        other => Err(Failure(format!("a BOOL tensor holds the byte {other}"))),
                    })
                    .collect::<Result<_>>()?,
            ),
            other => return Err(Failure(format!("dtype {other:?}, need F32, I64 or BOOL"))),
        };
        Ok(Self { shape: view.shape().to_vec(), values })
    }

    /// Reads what a tensor computed: floats of any width as F32, integers as I64.
    ///
    /// # Errors
    ///
    /// A dtype that is neither float, integer nor boolean.
    pub fn from_data(data: TensorData) -> Result<Self> {
        let shape = data.shape().to_vec();
        let dtype: DType = data.dtype();
        let values = if dtype.is_float() {
            Values::Float(data.iter::<f32>().collect())
        } else if dtype.is_bool() {
            Values::Bool(data.iter::<bool>().collect())
        } else if dtype.is_int() || dtype.is_uint() {
            Values::Int(data.iter::<i64>().collect())
        } else {
            return Err(Failure(format!("a tensor of dtype {dtype:?} cannot be compared")));
        };
        Ok(Self { shape, values })
    }

    /// The array as Burn's data, with `shape` in place of its own (same number of elements).
    pub fn to_data(&self, shape: &[usize]) -> TensorData {
        let shape = shape.to_vec();
        match &self.values {
            Values::Float(values) => TensorData::new(values.clone(), shape),
            Values::Int(values) => TensorData::new(values.clone(), shape),
            Values::Bool(values) => TensorData::new(values.clone(), shape),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::Float(values) => values.len(),
            Values::Int(values) => values.len(),
            Values::Bool(values) => values.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Euclidean norm of a float array; `None` for integers and truth values.
    pub fn norm(&self) -> Option<f64> {
        match &self.values {
            Values::Float(values) => Some(values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()),
            _ => None,
        }
    }
}
