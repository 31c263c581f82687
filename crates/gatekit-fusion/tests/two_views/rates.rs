//! Equal error rates.

use gatekit_fusion::two_views::{EqualErrorRate, equal_error_rate};

#[test]
fn equal_error_rates_of_small_sets() {
    let of = |scores: &[f64], labels: &[usize]| equal_error_rate(scores, labels).unwrap();
    // Told apart: rejected are both forgeries.
    let apart = of(&[0.9, -1.0, 0.5, 0.1], &[1, 0, 1, 0]);
    assert_eq!(apart, EqualErrorRate { rate: 0.0, threshold: 0.1 });
    // The wrong way round: nothing helps.
    assert_eq!(of(&[-1.0, 1.0], &[1, 0]).rate, 1.0);
    // One of either on the wrong side: s g s g, rejected two.
    let mixed = of(&[1.0, 2.0, 3.0, 4.0], &[0, 1, 0, 1]);
    assert_eq!(mixed, EqualErrorRate { rate: 0.5, threshold: 2.0 });
    // Equal scores keep their order; the first smallest difference counts.
    let equal = of(&[0.5, 0.5], &[0, 1]);
    assert_eq!(equal, EqualErrorRate { rate: 0.0, threshold: 0.5 });
    // Only the order counts.
    let moved = of(&[10.0, 11.0, 12.0, 400.0], &[0, 1, 0, 1]);
    assert_eq!(moved.rate, mixed.rate);
    assert_eq!(of(&[f64::NEG_INFINITY, f64::INFINITY], &[0, 1]).rate, 0.0);
}

#[test]
fn rates_that_do_not_exist_are_refused() {
    let field = |scores: &[f64], labels: &[usize]| equal_error_rate(scores, labels).unwrap_err().field;
    assert_eq!(field(&[1.0, 2.0], &[1, 1]), "labels");
    assert_eq!(field(&[1.0, 2.0], &[0, 0]), "labels");
    assert_eq!(field(&[], &[]), "labels");
    assert_eq!(field(&[1.0, 2.0], &[0]), "labels");
    assert_eq!(field(&[1.0, 2.0], &[0, 2]), "labels");
    assert_eq!(field(&[1.0, f64::NAN], &[0, 1]), "scores");
}
