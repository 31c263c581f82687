//! How a result is judged (`golden/FORMAT.md`).
//!
//! Floats: `||got - want||_2 <= tolerance * ||want||_2 + 1e-6 * sqrt(n)`, computed in float64, and
//! no NaN or infinity where the reference has none. Integers and truth values: equal.

use burn::tensor::TensorData;

use crate::{
    array::{Array, Values},
    failure::{Failure, Result},
};

/// Absolute slack per square root of the number of elements.
const ABSOLUTE: f64 = 1e-6;

/// Judges one result against its reference.
///
/// Returns the relative L2 error. It is 0 where the reference is nothing but rounding (norm within
/// the absolute slack), since there only the absolute part of the rule means something, and for
/// integers and truth values that agree.
///
/// # Errors
///
/// Says what differs: kind, shape, a NaN or infinity, or the error and its bound.
pub fn judge(got: &Array, want: &Array, tolerance: f64) -> Result<f64> {
    // A scalar of the file is a tensor with one element in Burn.
    let one_number = got.len() == 1 && want.shape.is_empty();
    if got.shape != want.shape && !one_number {
        return Err(Failure(format!("shape {:?}, the reference has {:?}", got.shape, want.shape)));
    }
    match (&got.values, &want.values) {
        (Values::Float(got), Values::Float(want)) => judge_floats(got, want, tolerance),
        (Values::Int(got), Values::Int(want)) => judge_equal(got, want),
        (Values::Bool(got), Values::Bool(want)) => judge_equal(got, want),
        (got, want) => Err(Failure(format!("{} values, the reference has {}", got.kind(), want.kind()))),
    }
}

fn judge_equal<T: PartialEq + std::fmt::Debug>(got: &[T], want: &[T]) -> Result<f64> {
    match got.iter().zip(want).position(|(got, want)| got != want) {
        None => Ok(0.0),
        Some(at) => {
            let unequal = got.iter().zip(want).filter(|(got, want)| got != want).count();
            Err(Failure(format!(
                "{unequal} of {} elements differ, the first at flat index {at}: {:?}, the reference has {:?}",
                want.len(),
                got[at],
                want[at]
            )))
        }
    }
}

fn judge_floats(got: &[f32], want: &[f32], tolerance: f64) -> Result<f64> {
    let mut squared_difference = 0.0_f64;
    let mut squared_norm = 0.0_f64;
    for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
        if want.is_finite() && got.is_finite() {
            squared_difference += (f64::from(got) - f64::from(want)).powi(2);
            squared_norm += f64::from(want).powi(2);
        } else if got != want && !(got.is_nan() && want.is_nan()) {
            return Err(Failure(format!("{got} at flat index {at}, the reference has {want}")));
        }
    }
    let (difference, norm) = (squared_difference.sqrt(), squared_norm.sqrt());
    let slack = ABSOLUTE * (want.len() as f64).sqrt();
    let bound = tolerance * norm + slack;
    if difference <= bound {
        Ok(if norm > slack { difference / norm } else { 0.0 })
    } else {
        Err(Failure(format!(
            "||got - want|| = {difference:.3e} exceeds {bound:.3e} (= {tolerance:.0e} * ||want|| + 1e-6 * sqrt(n), \
             ||want|| = {norm:.3e}, n = {}; relative error {:.3e})",
            want.len(),
            difference / norm
        )))
    }
}

/// Whether two computed tensors agree by the same rule; `what` and `tolerance` go into the message.
///
/// # Errors
///
/// As [`judge`].
pub fn agree(what: &str, got: &TensorData, want: &TensorData, tolerance: f64) -> Result<f64> {
    judge(&Array::from_data(got.clone())?, &Array::from_data(want.clone())?, tolerance)
        .map_err(|failure| failure.within(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Array {
        Array { shape: vec![values.len()], values: Values::Float(values.to_vec()) }
    }

    #[test]
    fn the_bound_is_relative_plus_absolute() {
        let want = floats(&[3.0, 4.0]);
        // ||want|| = 5, so the bound is 5e-3 + 1.4e-6.
        assert!(judge(&floats(&[3.0, 4.004_99]), &want, 1e-3).is_ok());
        assert!(judge(&floats(&[3.0, 4.005_1]), &want, 1e-3).is_err());
        let relative = judge(&floats(&[3.0, 4.001]), &want, 1e-3).expect("within the bound");
        assert!((relative - 2e-4).abs() < 1e-6);
    }

    #[test]
    fn a_reference_of_zero_leaves_the_absolute_part() {
        let want = floats(&[0.0; 4]);
        assert_eq!(judge(&floats(&[0.9e-6; 4]), &want, 1e-3), Ok(0.0));
        assert!(judge(&floats(&[1.1e-6; 4]), &want, 1e-3).is_err());
    }

    #[test]
    fn not_finite_needs_a_reference_that_is_not() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(judge(&floats(&[bad, 1.0]), &floats(&[1.0, 1.0]), 1e9).is_err());
            assert!(judge(&floats(&[1.0, 1.0]), &floats(&[bad, 1.0]), 1e9).is_err());
            assert!(judge(&floats(&[bad, 1.0]), &floats(&[bad, 1.0]), 1e-9).is_ok());
        }
        assert!(judge(&floats(&[f32::INFINITY]), &floats(&[f32::NEG_INFINITY]), 1e9).is_err());
    }

    #[test]
    fn shapes_kinds_and_integers_must_be_equal() {
        let column = Array { shape: vec![2, 1], values: Values::Float(vec![1.0, 2.0]) };
        assert!(judge(&column, &floats(&[1.0, 2.0]), 1.0).is_err());
        let scalar = Array { shape: vec![], values: Values::Float(vec![1.0]) };
        assert!(judge(&floats(&[1.0]), &scalar, 1e-6).is_ok());
        let ints = |values: &[i64]| Array { shape: vec![values.len()], values: Values::Int(values.to_vec()) };
        assert!(judge(&ints(&[1, 2]), &ints(&[1, 2]), 0.0).is_ok());
        assert!(judge(&ints(&[1, 3]), &ints(&[1, 2]), 9.0).is_err());
        assert!(judge(&ints(&[1]), &floats(&[1.0]), 9.0).is_err());
    }
}
