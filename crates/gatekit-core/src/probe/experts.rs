//! How evenly a router uses its experts.

use crate::router::Assignment;

/// The load of the experts of one layer, or of several passes put together.
///
/// ```
/// use gatekit_core::probe::ExpertLoad;
/// use gatekit_core::router::Assignment;
///
/// let assignment = Assignment::new(vec![0, 0, 0, 1], 1, 4).unwrap();
/// let load = ExpertLoad::of([&assignment]);
/// assert_eq!(load.max_over_mean, 3.0);
/// assert_eq!(load.unused, 0.5);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertLoad {
    /// Share of all slots that chose each expert.
    pub shares: Vec<f64>,
    /// Load of the busiest expert over the mean load: 1 is even, the number of experts a collapse.
    pub max_over_mean: f64,
    /// Share of experts that no token chose.
    pub unused: f64,
    /// Entropy of the shares over that of even ones: 1 is even, 0 a collapse.
    pub evenness: f64,
    /// Share of slots that were dropped.
    pub dropped: f64,
}

impl ExpertLoad {
    /// From what a router decided, over all of the given passes.
    ///
    /// # Panics
    ///
    /// Without a slot, or when the passes differ in their number of experts.
    pub fn of<'a>(assignments: impl IntoIterator<Item = &'a Assignment>) -> Self {
        let mut counts: Vec<usize> = Vec::new();
        let mut dropped = 0.0;
        for assignment in assignments {
            let of_pass = assignment.tokens_per_expert();
            if counts.is_empty() {
                counts = vec![0; of_pass.len()];
            }
            assert_eq!(counts.len(), of_pass.len(), "ExpertLoad: number of experts");
            counts.iter_mut().zip(&of_pass).for_each(|(count, of_pass)| *count += of_pass);
            dropped += assignment.dropped_share() * of_pass.iter().sum::<usize>() as f64;
        }
        let slots: usize = counts.iter().sum();
        assert!(slots > 0, "ExpertLoad: no slot was given");
        let shares: Vec<f64> = counts.iter().map(|count| *count as f64 / slots as f64).collect();
        let experts = shares.len() as f64;
        let entropy: f64 = shares.iter().filter(|share| **share > 0.0).map(|share| -share * share.ln()).sum();
        Self {
            max_over_mean: shares.iter().copied().fold(0.0, f64::max) * experts,
            unused: shares.iter().filter(|share| **share == 0.0).count() as f64 / experts,
            evenness: if experts > 1.0 { entropy / experts.ln() } else { 1.0 },
            dropped: dropped / slots as f64,
            shares,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{Capacity, Priority};

    #[test]
    fn known_loads() {
        let pass = |experts: [usize; 4]| Assignment::new(experts.to_vec(), 2, 2).unwrap();
        let even = ExpertLoad::of([&pass([0, 1, 1, 0]), &pass([0, 1, 0, 1])]);
        assert_eq!((even.max_over_mean, even.unused, even.evenness, even.dropped), (1.0, 0.0, 1.0, 0.0));
        let full = Capacity::new(0.5, Priority::Token).unwrap().apply(pass([0, 0, 0, 0]), &[]);
        let load = ExpertLoad::of([&full, &pass([0, 0, 0, 0])]);
        assert_eq!((load.max_over_mean, load.unused, load.evenness, load.dropped), (2.0, 0.5, 0.0, 0.375));
        assert_eq!(load.shares, [1.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "no slot was given")]
    fn nothing_has_no_load() {
        ExpertLoad::of([]);
    }
}
