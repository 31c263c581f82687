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
    let cases: [&[usize]; 6] = [&[1, 3, 0, 1, 3, 2], &[0; 5], &[4; 3], &[0], &[4], &[2, 1, 0]];
    for device in devices() {
        for depths in cases {
            let plan = PrefixPlan::new(depths, 4).unwrap();
            let values_in = ramp(depths.len() * 3, 1.0);
            let x = float64(&values_in, [depths.len(), 3], &device);
            let mut executed = 0;
            let y = prefix_execute(plan.gather(x), &plan, |stage, rows: Tensor<2>| {
                assert_eq!(rows.dims()[0], plan.counts()[stage]);
                executed += rows.dims()[0];
                rows.mul_scalar(2.0).add_scalar(stage as f64)
            });
            assert_eq!(executed, plan.executed());
            assert_close(&values(plan.restore(y)), &one_by_one(&values_in, 3, depths), 1e-12);
        }
    }
}

#[test]
fn no_rows_run_no_stage() {
    for device in devices() {
        let plan = PrefixPlan::new(&[], 3).unwrap();
        let y = prefix_execute(plan.gather(Tensor::<2>::zeros([0, 2], &device)), &plan, |_, _| {
            unreachable!("no row runs a stage")
        });
        assert_eq!(plan.restore(y).dims(), [0, 2]);
        let plan = PrefixPlan::new(&[0, 0], 2).unwrap();
        assert_eq!(plan.gather_first(Tensor::<2>::zeros([2, 5], &device), 0).dims(), [0, 5]);
    }
}

#[test]
fn inputs_are_shared_where_results_are_added_up() {
    let (depths, x) = ([2, 0, 1, 2], ramp(8, 1.0));
    for device in devices() {
        let sums = |x: Tensor<2>| {
            let plan = PrefixPlan::new(&depths, 2).unwrap();
            let zeros = Tensor::<2>::zeros([4, 2], (&x.device(), x.dtype()));
            let sorted = prefix_execute((plan.gather(x), zeros), &plan, |stage, (x, sum)| {
                let term = x.clone().powi_scalar(stage as i32 + 2);
                (x, sum + term)
            });
            plan.restore(sorted)
        };
        let expected: Vec<f64> = (x.chunks_exact(2).zip(depths))
            .flat_map(|(row, depth)| row.iter().map(move |x| (0..depth).map(|i| x.powi(i as i32 + 2)).sum()))
            .collect();
        assert_close(&values(sums(float64(&x, [4, 2], &device))), &expected, 1e-12);
        check_gradients(&x, [4, 2], &device, sums);
    }
}

#[test]
fn stages_at_once_are_those_one_by_one() {
    let cases: [&[usize]; 5] = [&[1, 3, 0, 1, 3, 2], &[0; 4], &[3; 4], &[2], &[0, 2, 0]];
    for (device, depths) in devices().into_iter().flat_map(|device| cases.map(|case| (device.clone(), case)))
    {
        let plan = PrefixPlan::new(depths, 3).unwrap();
        let (rows, x) = (depths.len(), ramp(depths.len() * 2, 1.0));
        let power = |x: Tensor<2>, stage: usize| x.powi_scalar(stage as i32 + 1);
        let start = |x: &Tensor<2>| x.clone().mul_scalar(0.5);
        let at_once = |x: Tensor<2>| {
            depth_execute(x.clone(), start(&x), &plan, |depth, x| {
                (0..depth).map(|stage| power(x.clone(), stage)).reduce(|a, b| a + b).unwrap()
            })
        };
        let one_by_one = |x: Tensor<2>| {
            let state = (plan.gather(x.clone()), plan.gather(start(&x)));
            plan.restore(prefix_execute(state, &plan, |stage, (x, sum)| {
                let term = power(x.clone(), stage);
                (x, sum + term)
            }))
        };
        let input = float64(&x, [rows, 2], &device);
        assert_close(&values(at_once(input.clone())), &values(one_by_one(input)), 1e-12);
        check_gradients(&x, [rows, 2], &device, at_once);
        let seen: Vec<(usize, usize)> = plan.by_depth().map(|(depth, rows)| (depth, rows.len())).collect();
        assert_eq!(seen.iter().map(|(_, rows)| rows).sum::<usize>(), rows);
        assert_eq!(seen.iter().map(|(depth, rows)| depth * rows).sum::<usize>(), plan.executed());
    }
}

#[test]
fn gradients_follow_the_rows() {
    let depths = [1, 3, 0, 1, 3, 2];
    for device in devices() {
        check_gradients(&ramp(12, 0.8), [6, 2], &device, |x| {
            let plan = PrefixPlan::new(&depths, 3).unwrap();
            let y = prefix_execute(plan.gather(x), &plan, |_, rows: Tensor<2>| rows.tanh().mul_scalar(1.5));
            let weights = float64(&ramp(12, 1.0), [6, 2], &y.device());
            plan.restore(y) * weights
        });
    }
}

#[test]
#[should_panic(expected = "stage 1 made 2 rows of 1")]
fn stages_keep_their_rows() {
    let device = devices().remove(0);
    let plan = PrefixPlan::new(&[2, 1], 2).unwrap();
    prefix_execute(float32(&[1.0, 2.0], [2, 1], &device), &plan, |stage, rows| match stage {
        0 => rows,
        _ => rows.repeat_dim(0, 2),
    });
}

#[test]
#[should_panic(expected = "`x` [3, 1] needs 2 rows")]
fn other_rows_are_refused() {
    let device = devices().remove(0);
    PrefixPlan::new(&[2, 1], 2).unwrap().gather(float32(&[0.0; 3], [3, 1], &device));
}
