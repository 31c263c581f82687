//! Whether confidences mean what they say: calibration error, and thresholds of conformal sets.

use serde::{Deserialize, Serialize};

use crate::error::InputError;

/// Where the bins of [`calibration_error`] end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BinStrategy {
    /// At the `k / bins` quantiles of the confidences (linear interpolation): about equally many in each.
    Quantile,
    /// At `k / bins`.
    Uniform,
}

/// The expected calibration error: `sum over non-empty bins (count / N) |share correct - mean confidence|`.
///
/// A confidence falls in the bin whose number is that of the *inner* edges strictly below it. Guo et
/// al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599), eq. 3; with quantile bins
/// Nguyen and O'Connor (arXiv 1508.05154). In [0, 1].
///
/// # Errors
///
/// [`InputError`] without samples or bins, for a confidence outside [0, 1] (or NaN), and unless there
/// is one answer a confidence.
///
/// ```
/// use gatekit_core::probe::{BinStrategy, calibration_error};
///
/// let ece = calibration_error(&[0.9, 0.9, 0.6, 0.6], &[true, true, true, false], 2, BinStrategy::Uniform)?;
/// // All four lie above 1/2: mean confidence 0.75, three of four right.
/// assert!(ece.abs() < 1e-12);
/// # Ok::<(), gatekit_core::InputError>(())
/// ```
pub fn calibration_error(
    confidence: &[f64],
    correct: &[bool],
    bins: usize,
    strategy: BinStrategy,
) -> Result<f64, InputError> {
    check_shares("confidence", confidence)?;
    if correct.len() != confidence.len() {
        let got = format!("{} answers", correct.len());
        return Err(InputError::new("correct", got, format!("{}, one a confidence", confidence.len())));
    }
    if bins == 0 {
        return Err(InputError::new("bins", 0, "at least 1"));
    }
    let edges = inner_edges(confidence, bins, strategy);
    let mut sums = vec![0.0; bins];
    for (confidence, correct) in confidence.iter().zip(correct) {
        let bin = edges.partition_point(|edge| edge < confidence);
        sums[bin] += f64::from(u8::from(*correct)) - confidence;
    }
    Ok(sums.into_iter().map(f64::abs).sum::<f64>() / confidence.len() as f64)
}

/// The `bins - 1` edges between bins, rising.
fn inner_edges(confidence: &[f64], bins: usize, strategy: BinStrategy) -> Vec<f64> {
    match strategy {
        BinStrategy::Uniform => (1..bins).map(|k| k as f64 / bins as f64).collect(),
        BinStrategy::Quantile => {
            let mut sorted = confidence.to_vec();
            sorted.sort_unstable_by(f64::total_cmp);
            let last = sorted.len() - 1;
            let edge = |k: usize| {
                // The place k / bins * last, in whole numbers: an edge that is a sample is exactly it.
                let (below, rest) = (k * last / bins, k * last % bins);
                let above = sorted[(below + 1).min(last)];
                sorted[below] + (above - sorted[below]) * (rest as f64 / bins as f64)
            };
            (1..bins).map(edge).collect()
        }
    }
}

/// The threshold q of a conformal set that holds the truth with probability `1 - alpha`.
///
/// `scores` are those of the truth on calibration samples, `1 - p_label`; q is their quantile at
/// `ceil((n + 1)(1 - alpha)) / n`, the higher of the two samples it falls between. The set of a new
/// sample is `{c : p_c >= 1 - q}`. With too few samples for that level (the quantile would lie above 1)
/// q is 1, and every class belongs to the set. Angelopoulos and Bates (arXiv 2107.07511), section 1.1.
///
/// # Errors
///
/// [`InputError`] without scores, for a score outside [0, 1] (or NaN), and for `alpha` outside (0, 1).
pub fn conformal_threshold(scores: &[f64], alpha: f64) -> Result<f64, InputError> {
    check_shares("scores", scores)?;
    if !(alpha > 0.0 && alpha < 1.0) {
        return Err(InputError::new("alpha", alpha, "a share in (0, 1)"));
    }
    let count = scores.len();
    // A whole number that floating point puts a little above itself must not count as the next.
    let rank = ((count + 1) as f64 * (1.0 - alpha) - 1e-9).ceil() as usize;
    if rank > count {
        return Ok(1.0);
    }
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    // rank / n of the way from the first sample to the last, rounded up.
    Ok(sorted[(rank * (count - 1)).div_ceil(count)])
}

fn check_shares(field: &str, values: &[f64]) -> Result<(), InputError> {
    if values.is_empty() {
        return Err(InputError::new(field, "no sample", "at least one"));
    }
    match values.iter().position(|value| !(0.0..=1.0).contains(value)) {
        Some(place) => Err(InputError::new(field, format!("{} at {place}", values[place]), "in [0, 1]")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::assert_close;

    #[test]
    fn bins_by_quantile_hold_equally_many() {
        // Quartiles of 0 .. 8 lie on samples 2, 4 and 6, which belong below their edge.
        let confidence: Vec<f64> = (0..9).map(|i| f64::from(i) / 10.0).collect();
        let edges = inner_edges(&confidence, 4, BinStrategy::Quantile);
        assert_eq!(edges, [confidence[2], confidence[4], confidence[6]]);
        let correct = [false, true, false, true, false, true, true, true, true];
        let expected = [1.0 - 0.3, 1.0 - 0.7, 2.0 - 1.1, 2.0 - 1.5].map(f64::abs).iter().sum::<f64>() / 9.0;
        let ece = calibration_error(&confidence, &correct, 4, BinStrategy::Quantile).unwrap();
        assert_close(&[ece], &[expected], 1e-12);
        // Between samples the edge is interpolated.
        assert_close(&inner_edges(&[0.0, 1.0], 4, BinStrategy::Quantile), &[0.25, 0.5, 0.75], 1e-12);
    }

    #[test]
    fn bins_of_equal_width_are_open_below() {
        assert_eq!(inner_edges(&[], 4, BinStrategy::Uniform), [0.25, 0.5, 0.75]);
        // 0.5 is not strictly above the edge 0.5, so it shares a bin with 0.3.
        let ece = calibration_error(&[0.3, 0.5, 0.9], &[true, false, true], 2, BinStrategy::Uniform).unwrap();
        assert_close(&[ece], &[(0.2 + 0.1) / 3.0], 1e-12);
        let sure = calibration_error(&[1.0; 3], &[true; 3], 15, BinStrategy::Quantile).unwrap();
        assert_eq!(sure, 0.0);
        let wrong = calibration_error(&[1.0; 3], &[false; 3], 15, BinStrategy::Uniform).unwrap();
        assert_eq!(wrong, 1.0);
        assert_close(
            &[calibration_error(&[0.7], &[true], 15, BinStrategy::Quantile).unwrap()],
            &[0.3],
            1e-12,
        );
    }

    #[test]
    fn conformal_thresholds_are_the_higher_sample() {
        let scores: Vec<f64> = (0..19).rev().map(|i| f64::from(i) / 20.0).collect();
        // ceil(20 * 0.9) / 19 of the way: 18 of 19, place 17.05, rounded up.
        assert_eq!(conformal_threshold(&scores, 0.1).unwrap(), 18.0 / 20.0);
        // ceil(20 * 0.5) / 19: place 9.47, rounded up.
        assert_eq!(conformal_threshold(&scores, 0.5).unwrap(), 10.0 / 20.0);
        // More is asked than 19 samples can promise.
        assert_eq!(conformal_threshold(&scores, 0.01).unwrap(), 1.0);
        assert_eq!(conformal_threshold(&[0.4], 0.5).unwrap(), 0.4);
    }

    #[test]
    fn conformal_sets_hold_the_truth_as_often_as_promised() {
        // Scores spread evenly over (0, 1) in a scrambled order: calibrate on one half, try on the other.
        let score = |i: usize| (i as f64 * 0.618_033_988_75).fract();
        let calibration: Vec<f64> = (0..500).map(score).collect();
        for alpha in [0.05, 0.2, 0.5] {
            let q = conformal_threshold(&calibration, alpha).unwrap();
            let held = (500..2500).filter(|i| score(*i) <= q).count() as f64 / 2000.0;
            assert!((held - (1.0 - alpha)).abs() < 0.01, "{held} at {alpha}");
        }
    }

    #[test]
    fn refuses_what_is_no_confidence() {
        let ece = |confidence: &[f64], correct: &[bool], bins| {
            calibration_error(confidence, correct, bins, BinStrategy::Quantile).unwrap_err()
        };
        assert_eq!(ece(&[], &[], 15).field, "confidence");
        for bad in [-0.1, 1.1, f64::NAN] {
            let error = ece(&[0.5, bad], &[true, true], 15);
            assert!(error.field == "confidence" && error.got.contains("at 1"), "{error}");
        }
        assert_eq!(ece(&[0.5], &[true, false], 15).field, "correct");
        assert_eq!(ece(&[0.5], &[true], 0).field, "bins");
        assert_eq!(conformal_threshold(&[], 0.1).unwrap_err().field, "scores");
        assert_eq!(conformal_threshold(&[2.0], 0.1).unwrap_err().field, "scores");
        for alpha in [0.0, 1.0, f64::NAN] {
            assert_eq!(conformal_threshold(&[0.5], alpha).unwrap_err().field, "alpha");
        }
    }
}
