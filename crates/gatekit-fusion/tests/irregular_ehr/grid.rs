//! Carrying forward, F1 and the split.

use burn::tensor::Tensor;
use gatekit_fusion::irregular_ehr::{CarryForward, F1Score, carry_forward, split_by_patient};

use crate::{devices, mask, tensor, values};

const NAN: f64 = f64::NAN;

#[test]
fn the_last_value_holds_until_the_next() {
    for device in devices() {
        // Out of order; two of one row (hour 1.9 counts), two of one hour (the later row counts), one on a border, one
        // past the grid; what was not observed is NaN.
        let hours = [2.0, 1.9, 1.2, 3.5, 3.5, 4.0];
        let stored = [7.0, NAN, 5.0, NAN, 4.0, 1.0, NAN, 2.0, NAN, 3.0, 9.0, NAN];
        let seen = [[true, false], [true, false], [true, true], [false, true], [false, true], [true, false]]
            .concat();
        let how = CarryForward::new(4, 1.0, -0.5).expect("a grid");
        let regular = carry_forward(
            &tensor(&stored, [1, 6, 2], &device),
            &mask(&seen, [1, 6, 2], &device),
            &tensor(&hours, [1, 6], &device),
            &how,
        );
        let expected =
            [[-0.5, -0.5, 0.0, 0.0], [5.0, 1.0, 1.0, 1.0], [7.0, 1.0, 1.0, 0.0], [7.0, 3.0, 0.0, 1.0]];
        assert_eq!(values(regular.expect("observations")), expected.concat());
    }
}

#[test]
fn a_stay_without_rows_is_filled() {
    for device in devices() {
        let how = CarryForward::new(2, 0.5, 0.25).expect("a grid");
        let none = mask(&[false, false], [2, 1, 1], &device);
        let hours = tensor(&[NAN, -3.0], [2, 1], &device);
        let regular = carry_forward(&Tensor::zeros([2, 1, 1], &device), &none, &hours, &how);
        assert_eq!(values(regular.expect("nothing to refuse")), [0.25, 0.0, 0.25, 0.0, 0.25, 0.0, 0.25, 0.0]);
    }
}

#[test]
fn what_cannot_be_carried_is_named() {
    let device = devices()[0].clone();
    let how = CarryForward::new(3, 1.0, 0.0).expect("a grid");
    let refused = |value: f64, hour: f64| {
        let seen = mask(&[true; 2], [2, 1, 1], &device);
        let stored = tensor(&[0.0, value], [2, 1, 1], &device);
        carry_forward(&stored, &seen, &tensor(&[0.0, hour], [2, 1], &device), &how).expect_err("refused")
    };
    for (value, hour, field) in
        [(1.0, -0.25, "hours"), (1.0, NAN, "hours"), (NAN, 1.0, "values"), (f64::INFINITY, 1.0, "values")]
    {
        let error = refused(value, hour);
        assert_eq!(error.field, field);
        assert!(error.got.contains("sample 1"), "{error}");
    }
    let (stored, seen) = (Tensor::<3>::zeros([1, 2, 2], &device), mask(&[true; 2], [1, 1, 2], &device));
    assert_eq!(
        carry_forward(&stored, &seen, &Tensor::zeros([1, 2], &device), &how).unwrap_err().field,
        "mask"
    );
    for (grid, step, fill, field) in [
        (0, 1.0, 0.0, "grid"),
        (2, 0.0, 0.0, "hours_per_step"),
        (2, NAN, 0.0, "hours_per_step"),
        (2, 1.0, NAN, "fill"),
    ] {
        assert_eq!(CarryForward::new(grid, step, fill).unwrap_err().field, field);
    }
}

#[test]
fn f1_counts_hits_and_misses() {
    let answers = [(0.9, 1), (0.5, 1), (0.7, 0), (0.2, 1), (0.1, 0)];
    let score = F1Score::of(answers, 0.5);
    assert_eq!(score, F1Score { true_positives: 2, false_positives: 1, false_negatives: 1 });
    assert!((score.value() - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(F1Score::of([(0.1, 0)], 0.5).value(), 0.0);
    let two = [vec![(0.9, 1), (0.1, 1)], vec![(0.8, 1), (0.9, 1)]];
    assert!((F1Score::macro_mean(&two, 0.5) - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
    assert_eq!(F1Score::macro_mean(&[], 0.5), 0.0);
}

#[test]
fn no_patient_is_in_two_parts() {
    let patients: Vec<u64> = (0..200).map(|stay| stay / 2).collect();
    let split = split_by_patient(&patients, [0.8, 0.1], 3).expect("shares");
    assert_eq!([split.train.len(), split.validation.len(), split.test.len()], [160, 20, 20]);
    let of =
        |part: &[usize]| part.iter().map(|stay| patients[*stay]).collect::<std::collections::BTreeSet<_>>();
    let parts = [of(&split.train), of(&split.validation), of(&split.test)];
    assert_eq!(parts.iter().map(std::collections::BTreeSet::len).sum::<usize>(), 100);
    assert!(parts[0].is_disjoint(&parts[1]) && parts[1].is_disjoint(&parts[2]));
    assert_eq!(split, split_by_patient(&patients, [0.8, 0.1], 3).expect("shares"));
    assert_ne!(split, split_by_patient(&patients, [0.8, 0.1], 4).expect("shares"));
    for shares in [[0.8, 0.3], [-0.1, 0.5], [f64::NAN, 0.1]] {
        assert_eq!(split_by_patient(&patients, shares, 0).unwrap_err().field, "shares");
    }
}
