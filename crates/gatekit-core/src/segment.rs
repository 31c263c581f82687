//! Rows that are gathered by segment, as messages of a graph are by their target.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};

/// Mean of the rows of every segment: `values` `[E, D]`, the segment of each row `[E]` in `0 .. count`, to
/// `[count, D]`. A segment without rows gets 0.
///
/// # Panics
///
/// When there is not one segment a row.
pub fn segment_mean(values: Tensor<2>, segments: Tensor<1, Int>, count: usize) -> Tensor<2> {
    let [rows, width] = values.dims();
    assert!(
        segments.dims() == [rows],
        "segment_mean: `segments` {:?} are not one a row of `values` {:?}",
        segments.dims(),
        values.dims()
    );
    let device = (&values.device(), values.dtype());
    let zeros = Tensor::<2>::zeros([count, width], device);
    if rows == 0 {
        return zeros;
    }
    let ones = Tensor::<2>::ones([rows, 1], device);
    let counts = Tensor::<2>::zeros([count, 1], device).select_assign(
        0,
        segments.clone(),
        ones,
        IndexingUpdateOp::Add,
    );
    zeros.select_assign(0, segments, values, IndexingUpdateOp::Add) / counts.clamp_min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::indices;
    use crate::test_util::{assert_close, check_gradients, devices, float32, ramp, values};

    #[test]
    fn rows_are_averaged_where_they_belong() {
        for device in devices() {
            let rows = float32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2], &device);
            let mean = segment_mean(rows, indices(vec![2, 0, 2], &device), 4);
            assert_close(&values(mean), &[3.0, 4.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0], 1e-6);
            let none = segment_mean(Tensor::zeros([0, 2], &device), indices(vec![], &device), 1);
            assert_eq!(values(none), [0.0, 0.0]);
        }
    }

    #[test]
    fn every_row_gets_its_share_of_the_gradient() {
        let device = devices().remove(0);
        check_gradients(&ramp(8, 1.0), [4, 2], &device, |rows| {
            segment_mean(rows.clone(), indices(vec![1, 1, 0, 1], &rows.device()), 3)
        });
    }
}
