//! Depths at their edges, and every way against row by row.

use super::*;
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

#[test]
fn rows_are_sorted_by_falling_depth_and_stably() {
    let plan = PrefixPlan::new(&[1, 3, 0, 1, 3, 2], 4).unwrap();
    assert_eq!(plan.order(), [1, 4, 5, 0, 3, 2]);
    assert_eq!(plan.counts(), [5, 3, 2, 0]);
    assert_eq!((plan.rows(), plan.stages(), plan.executed()), (6, 4, 10));
    for (depths, counts) in [(vec![0; 3], [0, 0]), (vec![2; 3], [3, 3]), (vec![], [0, 0])] {
        let plan = PrefixPlan::new(&depths, 2).unwrap();
        assert_eq!(plan.counts(), counts);
        assert!(plan.order().is_sorted());
    }
    assert_eq!(PrefixPlan::new(&[0, 0], 0).unwrap().order(), [0, 1]);
}

#[test]
fn depths_that_are_none_are_refused() {
    let error = PrefixPlan::new(&[0, 5], 4).unwrap_err();
    assert_eq!((error.field.as_str(), error.got.as_str()), ("depths", "5 stages for row 1"));
    for device in devices() {
        let depths = Tensor::<2, Int>::from_data([[0, 1], [-1, 0]], &device);
        assert_eq!(PrefixPlan::from_tensor(&depths, 2).unwrap_err().got, "-1");
        let depths = Tensor::<2, Int>::from_data([[0, 1], [2, 0]], &device);
        assert_eq!(PrefixPlan::from_tensor(&depths, 2), PrefixPlan::new(&[0, 1, 2, 0], 2));
    }
}

/// Row by row: `x = 2 x + i` for the stages that the row runs.
fn one_by_one(x: &[f64], width: usize, depths: &[usize]) -> Vec<f64> {
    let row = |(x, depth): (&[f64], &usize)| -> Vec<f64> {
        x.iter().map(|x| (0..*depth).fold(*x, |x, stage| 2.0 * x + stage as f64)).collect()
    };
    x.chunks_exact(width).zip(depths).flat_map(row).collect()
}

#[test]
fn every_row_runs_its_stages_and_no_other() {
    let cases: [&[usize]; 7] = [&[1, 3, 0, 1, 3, 2], &[0; 5], &[4; 3], &[0], &[4], &[2, 1, 0], &[0, 1, 4]];
    for device in devices() {
        for depths in cases {
            let plan = PrefixPlan::new(depths, 4).unwrap();
            let values_in = ramp(depths.len() * 3, 1.0);
            let x = float64(&values_in, [depths.len(), 3], &device);
            let (mut seen, mut executed) = (Vec::new(), 0);
            let y = depth_execute(x.clone(), &plan, |depth, rows: Tensor<2>| {
                seen.push((depth, rows.dims()[0]));
                executed += depth * rows.dims()[0];
                (0..depth).fold(rows, |rows, stage| rows.mul_scalar(2.0).add_scalar(stage as f64))
            });
            assert_eq!(executed, plan.executed());
            assert_eq!(plan.by_depth().map(|(depth, rows)| (depth, rows.len())).collect::<Vec<_>>(), seen);
            assert!(seen.is_sorted_by(|a, b| a.0 > b.0) && seen.iter().all(|(_, rows)| *rows > 0));
            assert_close(&values(y), &one_by_one(&values_in, 3, depths), 1e-12);
            assert_eq!(values(plan.restore(plan.gather(x))), values_in);
        }
    }
}

#[test]
fn rows_of_more_axes_keep_them() {
    for device in devices() {
        let x = ramp(24, 1.0);
        let plan = PrefixPlan::new(&[0, 2, 1], 2).unwrap();
        let sorted = plan.gather(float64(&x, [3, 2, 4], &device));
        assert_eq!(sorted.dims(), [3, 2, 4]);
        assert_eq!(values(sorted.clone()), [&x[8..16], &x[16..], &x[..8]].concat());
        assert_eq!(values(plan.restore(sorted)), x);
    }
}

#[test]
fn results_may_be_of_another_width() {
    let (depths, x) = ([2, 0, 1, 2], ramp(8, 1.0));
    for device in devices() {
        let sums = |x: Tensor<2>| {
            let plan = PrefixPlan::new(&depths, 2).unwrap();
            depth_execute(x, &plan, |depth, x: Tensor<2>| {
                let start = x.clone().narrow(1, 0, 1).mul_scalar(0.5);
                (0..depth).fold(start, |sum, stage| sum + x.clone().powi_scalar(stage as i32 + 2).sum_dim(1))
            })
        };
        let expected: Vec<f64> = (x.chunks_exact(2).zip(depths))
            .map(|(row, depth)| {
                0.5 * row[0]
                    + (0..depth).flat_map(|i| row.iter().map(move |x| x.powi(i as i32 + 2))).sum::<f64>()
            })
            .collect();
        assert_close(&values(sums(float64(&x, [4, 2], &device))), &expected, 1e-12);
        check_gradients(&x, [4, 2], &device, sums);
    }
}

#[test]
fn gradients_follow_the_rows() {
    for device in devices() {
        for depths in [[1, 3, 0, 1, 3, 2], [3; 6], [0; 6], [3, 2, 2, 1, 0, 0]] {
            check_gradients(&ramp(12, 0.8), [6, 2], &device, |x| {
                let plan = PrefixPlan::new(&depths, 3).unwrap();
                let y = depth_execute(x, &plan, |depth, rows: Tensor<2>| {
                    (0..depth).fold(rows, |rows, _| rows.tanh().mul_scalar(1.5))
                });
                y.clone() * float64(&ramp(12, 1.0), [6, 2], &y.device())
            });
        }
    }
}

#[test]
#[should_panic(expected = "depth 2 made 2 rows of 1")]
fn depths_keep_their_rows() {
    let device = devices().remove(0);
    let plan = PrefixPlan::new(&[2, 1], 2).unwrap();
    depth_execute(float32(&[1.0, 2.0], [2, 1], &device), &plan, |depth, rows: Tensor<2>| {
        rows.repeat_dim(0, depth)
    });
}

#[test]
#[should_panic(expected = "depth_execute: no rows")]
fn no_rows_are_refused() {
    let plan = PrefixPlan::new(&[], 2).unwrap();
    depth_execute(Tensor::<2>::zeros([0, 1], &devices().remove(0)), &plan, |_, rows: Tensor<2>| rows);
}

#[test]
#[should_panic(expected = "`x` [3, 1] needs 2 rows")]
fn other_rows_are_refused() {
    let device = devices().remove(0);
    PrefixPlan::new(&[2, 1], 2).unwrap().gather(float32(&[0.0; 3], [3, 1], &device));
}
