//! Matrices that depend on sizes alone, made once a size, type and device.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Device, Tensor, TensorData};

/// What a matrix is of, and where it lies.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    name: &'static str,
    sizes: [usize; 2],
    dtype: DType,
    device: Device,
}

/// More tables than a network of a few image sizes needs; the oldest goes first.
const MOST: usize = 64;

static KEPT: Mutex<Vec<(Key, Tensor<2>)>> = Mutex::new(Vec::new());

/// The matrix `shape` that `values` makes (row by row) for `name` and `sizes`, in the type and on the device of `like`.
pub(crate) fn matrix<const D: usize>(
    name: &'static str,
    sizes: [usize; 2],
    like: &Tensor<D>,
    shape: [usize; 2],
    values: impl FnOnce() -> Vec<f64>,
) -> Tensor<2> {
    let dtype = if like.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let key = Key { name, sizes, dtype, device: like.device().inner() };
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, table)) = kept.iter().find(|(known, _)| *known == key) {
        return table.clone();
    }
    let table = Tensor::from_data(TensorData::new(values(), shape), (&key.device, dtype));
    if kept.len() == MOST {
        kept.remove(0);
    }
    kept.push((key, table.clone()));
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{devices, float64, values};

    #[test]
    fn a_matrix_is_made_once_a_size_type_and_device() {
        for device in devices() {
            let like = float64(&[0.0], [1], &device);
            let mut made = 0;
            for (sizes, expected) in [([2, 1], 1), ([2, 1], 1), ([1, 2], 2)] {
                let table = matrix("counted", sizes, &like, sizes, || {
                    made += 1;
                    vec![0.1, 0.2]
                });
                assert_eq!((table.dims(), made), (sizes, expected));
                assert_eq!(values(table), [0.1, 0.2]);
            }
            let single = matrix("counted", [2, 1], &like.cast(DType::F32), [2, 1], || vec![0.1, 0.2]);
            assert_eq!(single.dtype(), DType::F32);
        }
    }

    #[test]
    fn old_tables_make_room() {
        let like = float64(&[0.0], [1], &devices().remove(0));
        for size in 1..=2 * MOST {
            matrix("many", [size, size], &like, [1, 1], || vec![size as f64]);
        }
        assert!(KEPT.lock().unwrap_or_else(PoisonError::into_inner).len() <= MOST);
    }
}
