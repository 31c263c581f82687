//! Which inputs go to which expert.

use burn::tensor::{Int, Tensor};
use gatekit_core::InputError;
use gatekit_core::cross_entropy::check_labels;

/// What a gate does with inputs of every class (or kind).
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertUsage {
    /// Inputs of every class.
    pub counts: Vec<usize>,
    /// Share of a class's inputs that every expert gets, `[classes][E]`; NaN for a class without inputs.
    pub shares: Vec<Vec<f64>>,
    /// Mean probability of every expert on a class's inputs, `[classes][E]`; NaN likewise.
    pub probabilities: Vec<Vec<f64>>,
    /// Share of all inputs that every expert gets.
    pub total: Vec<f64>,
    /// Entropy of every input's probabilities, in nats.
    pub entropies: Vec<f64>,
}

impl ExpertUsage {
    /// From a gate's `probs` `[batch, E]` and `choice` `[batch]`, for inputs of the classes `labels`
    /// `[batch]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a label that is no class, a choice that is no expert, and without inputs.
    pub fn of(
        probs: &Tensor<2>,
        choice: &Tensor<1, Int>,
        labels: &Tensor<1, Int>,
        classes: usize,
    ) -> Result<Self, InputError> {
        let [batch, experts] = probs.dims();
        if batch == 0 {
            return Err(InputError::new("probs", "no input", "at least one"));
        }
        let labels = check_labels(labels, batch, classes)?;
        let choice = check_labels(choice, batch, experts)
            .map_err(|error| InputError { field: "choice".into(), ..error })?;
        let probs: Vec<f64> = probs.to_data().iter::<f64>().collect();
        let mut counts = vec![0; classes];
        let (mut chosen, mut sums) = (vec![vec![0.0; experts]; classes], vec![vec![0.0; experts]; classes]);
        let mut total = vec![0.0; experts];
        let mut entropies = Vec::with_capacity(batch);
        for (input, row) in probs.chunks(experts).enumerate() {
            let class = labels[input];
            counts[class] += 1;
            chosen[class][choice[input]] += 1.0;
            total[choice[input]] += 1.0 / batch as f64;
            row.iter().enumerate().for_each(|(expert, p)| sums[class][expert] += p);
            entropies.push(row.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum());
        }
        for (class, count) in counts.iter().enumerate() {
            let mean = |sum: &mut f64| *sum /= *count as f64;
            chosen[class].iter_mut().for_each(mean);
            sums[class].iter_mut().for_each(mean);
        }
        Ok(Self { counts, shares: chosen, probabilities: sums, total, entropies })
    }

    /// Mean entropy of the inputs' probabilities, in nats.
    pub fn mean_entropy(&self) -> f64 {
        self.entropies.iter().sum::<f64>() / self.entropies.len() as f64
    }
}
