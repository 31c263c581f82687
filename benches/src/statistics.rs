//! Times in brief.

use serde::{Deserialize, Serialize};

/// Order statistics of a sample, in seconds of one execution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Half of the times are below.
    pub median: f64,
    /// A quarter of them is below.
    pub lower_quartile: f64,
    /// Three quarters are.
    pub upper_quartile: f64,
    /// The shortest.
    pub minimum: f64,
    /// How many.
    pub samples: usize,
}

impl Summary {
    /// Of at least one time; `None` of none.
    pub fn of(times: &[f64]) -> Option<Self> {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            minimum: *sorted.first()?,
            lower_quartile: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            upper_quartile: quantile(&sorted, 0.75),
            samples: sorted.len(),
        })
    }
}

/// Linear between the order statistics, as R's type 7 and NumPy's default.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let (below, part) = (position.floor() as usize, position.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + part * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).expect("four times");
        assert_eq!(
            (summary.minimum, summary.lower_quartile, summary.median, summary.upper_quartile),
            (1.0, 1.75, 2.5, 3.25)
        );
        assert_eq!(summary.samples, 4);
    }

    #[test]
    fn one_time_is_its_own_summary_and_none_has_none() {
        let summary = Summary::of(&[0.5]).expect("one time");
        assert_eq!((summary.lower_quartile, summary.median, summary.upper_quartile), (0.5, 0.5, 0.5));
        assert_eq!(Summary::of(&[]), None);
    }
}
