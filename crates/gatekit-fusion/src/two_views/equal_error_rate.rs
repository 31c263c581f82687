//! The rate at which as many genuine utterances are missed as forgeries pass.

use gatekit_core::InputError;

/// An equal error rate and where it is reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EqualErrorRate {
    /// In [0, 1]; about 0.5 for scores that know nothing.
    pub rate: f64,
    /// Scores up to this one are rejected.
    pub threshold: f64,
}

/// The equal error rate of scores, higher for bona fide, with labels 1 (bona fide) and 0 (spoof).
///
/// With the scores rising (equal ones in the given order) the first i are rejected, i = 0 .. n: miss = rejected bona
/// fide / all bona fide, alarm = accepted spoof / all spoof. At the first i with the smallest `|miss - alarm|` the rate
/// is their mean; the threshold is the i-th score, for i = 0 the smallest minus 0.001.
///
/// # Errors
///
/// [`InputError`] for labels that are not one of 0 and 1 for every score, for NaN among the scores, and when one of the
/// classes is absent.
pub fn equal_error_rate(scores: &[f64], labels: &[usize]) -> Result<EqualErrorRate, InputError> {
    if labels.len() != scores.len() {
        let (got, need) = (format!("{} labels", labels.len()), format!("{}, one a score", scores.len()));
        return Err(InputError::new("labels", got, need));
    }
    if let Some(place) = labels.iter().position(|label| *label > 1) {
        return Err(InputError::new("labels", format!("{} at {place}", labels[place]), "0 or 1"));
    }
    if let Some(place) = scores.iter().position(|score| score.is_nan()) {
        return Err(InputError::new("scores", format!("NaN at {place}"), "numbers"));
    }
    let genuine = labels.iter().sum::<usize>();
    let forged = labels.len() - genuine;
    if genuine == 0 || forged == 0 {
        let got = format!("{genuine} bona fide and {forged} spoof");
        return Err(InputError::new("labels", got, "at least one of either class"));
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].partial_cmp(&scores[*b]).expect("no score is NaN"));
    let rates =
        |missed: usize, accepted: usize| (missed as f64 / genuine as f64, accepted as f64 / forged as f64);
    let (mut missed, mut accepted) = (0, forged);
    let (miss, alarm) = rates(missed, accepted);
    let mut smallest = (miss - alarm).abs();
    let mut found = EqualErrorRate { rate: (miss + alarm) / 2.0, threshold: scores[order[0]] - 0.001 };
    for index in order {
        missed += labels[index];
        accepted -= 1 - labels[index];
        let (miss, alarm) = rates(missed, accepted);
        if (miss - alarm).abs() < smallest {
            smallest = (miss - alarm).abs();
            found = EqualErrorRate { rate: (miss + alarm) / 2.0, threshold: scores[index] };
        }
    }
    Ok(found)
}
