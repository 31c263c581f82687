//! What an attention layer did: its sink, its gate, and the activations of the residual stream.

use std::fmt;

use burn::config::Config;
use burn::tensor::Tensor;

use super::statistics::{GateStatistics, SinkShare};
use crate::error::InputError;

/// The largest activations of a residual stream against the usual ones.
///
/// Sun et al., "Massive Activations in Large Language Models" (arXiv 2402.17762).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MassiveActivations {
    /// `max |h|`.
    pub max: f64,
    /// Median of `|h|`, the lower one of an even number.
    pub median: f64,
    /// `max / median`; infinite when more than half of the activations are 0.
    pub ratio: f64,
}

impl MassiveActivations {
    /// Reads the hidden values `[..]` back.
    ///
    /// # Panics
    ///
    /// When there are no values.
    pub fn of<const D: usize>(hidden: Tensor<D>) -> Self {
        let mut values: Vec<f64> = hidden.into_data().iter::<f64>().map(f64::abs).collect();
        assert!(!values.is_empty(), "MassiveActivations: no hidden value");
        let middle = (values.len() - 1) / 2;
        let (_, median, above) = values.select_nth_unstable_by(middle, f64::total_cmp);
        let median = *median;
        let max = above.iter().copied().fold(median, f64::max);
        Self { max, median, ratio: max / median }
    }
}

/// How [`AttentionDiagnostics`] are taken.
#[derive(Config, Debug)]
pub struct AttentionDiagnosticsConfig {
    /// Scores below this count as closed. Default 0.1.
    #[config(default = 0.1)]
    pub sparsity_threshold: f64,
    /// Leaves the first query out of the sink share: it has nothing but the first key to look at.
    /// Default false.
    #[config(default = false)]
    pub skip_first_query: bool,
}

/// Sink share, gate and activations of one layer: the measures of "Gated Attention for Large
/// Language Models" (arXiv 2505.06708), table 4. Averages over layers are the caller's.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionDiagnostics {
    /// Attention that goes to the first token.
    pub first_token_share: SinkShare,
    /// The gate, if the layer has one.
    pub gate: Option<GateDiagnostics>,
    /// The residual stream.
    pub activations: MassiveActivations,
}

/// Means and sparsity of an attention gate.
#[derive(Debug, Clone, PartialEq)]
pub struct GateDiagnostics {
    /// Mean score.
    pub mean: f64,
    /// Mean score of each head that has its own.
    pub mean_by_head: Vec<f64>,
    /// Share of scores below the threshold.
    pub sparsity: f64,
}

impl AttentionDiagnosticsConfig {
    /// Measures a layer.
    ///
    /// # Shapes
    ///
    /// - `attention_weights`: `[batch, heads, time, time]`
    /// - `gate_scores`: `[batch, time, heads or 1, width]`, after the activation
    /// - `hidden_states`: `[batch, time, hidden_size]`
    ///
    /// # Errors
    ///
    /// [`InputError`] when one of them is empty or holds a NaN, when no query is left after the
    /// first, and in debug builds when a row of weights does not sum to 1 (within 1e-3).
    pub fn measure(
        &self,
        attention_weights: Tensor<4>,
        gate_scores: Option<Tensor<4>>,
        hidden_states: Tensor<3>,
    ) -> Result<AttentionDiagnostics, InputError> {
        usable("attention_weights", &attention_weights)?;
        usable("hidden_states", &hidden_states)?;
        let queries = attention_weights.dims()[2];
        if self.skip_first_query && queries < 2 {
            return Err(InputError::new("attention_weights", "one query", "a query after the first"));
        }
        if cfg!(debug_assertions) {
            let sums = attention_weights.clone().sum_dim(3).into_data();
            if let Some(sum) = sums.iter::<f64>().find(|sum| (sum - 1.0).abs() > 1e-3) {
                return Err(InputError::new(
                    "attention_weights",
                    format!("a row that sums to {sum}"),
                    "rows that sum to 1",
                ));
            }
        }
        let gate = gate_scores.map(|scores| {
            usable("gate_scores", &scores)?;
            Ok(GateDiagnostics::of(scores, self.sparsity_threshold))
        });
        Ok(AttentionDiagnostics {
            first_token_share: SinkShare::of(attention_weights, self.skip_first_query),
            gate: gate.transpose()?,
            activations: MassiveActivations::of(hidden_states),
        })
    }
}

impl GateDiagnostics {
    fn of(scores: Tensor<4>, threshold: f64) -> Self {
        let [_, _, heads, width] = scores.dims();
        let values: Vec<f64> = scores.clone().into_data().iter::<f64>().collect();
        let mut mean_by_head = vec![0.0; heads];
        for (index, value) in values.iter().enumerate() {
            mean_by_head[index / width % heads] += value;
        }
        let each = (values.len() / heads) as f64;
        mean_by_head.iter_mut().for_each(|sum| *sum /= each);
        let mean = mean_by_head.iter().sum::<f64>() / heads as f64;
        Self { mean, mean_by_head, sparsity: GateStatistics::share_below(scores, threshold) }
    }
}

fn usable<const D: usize>(field: &str, tensor: &Tensor<D>) -> Result<(), InputError> {
    let dims = tensor.dims();
    if dims.contains(&0) {
        return Err(InputError::new(field, format!("shape {dims:?}"), "at least one value"));
    }
    match tensor.to_data().iter::<f64>().any(f64::is_nan) {
        true => Err(InputError::new(field, "a NaN", "numbers")),
        false => Ok(()),
    }
}

impl fmt::Display for AttentionDiagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "first token {:.3}", self.first_token_share.mean)?;
        if let Some(gate) = &self.gate {
            write!(formatter, ", gate {:.3} ({:.1} % closed)", gate.mean, 100.0 * gate.sparsity)?;
        }
        let MassiveActivations { max, ratio, .. } = self.activations;
        write!(formatter, ", largest activation {max:.2} ({ratio:.1} times the median)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32};

    #[test]
    fn activations_of_known_values() {
        for device in devices() {
            let activations = MassiveActivations::of(float32(&[-8.0, 1.0, 0.5, -2.0], [2, 2], &device));
            assert_close(&[activations.max, activations.median, activations.ratio], &[8.0, 1.0, 8.0], 1e-12);
            let one = MassiveActivations::of(float32(&[-3.0], [1], &device));
            assert_close(&[one.max, one.median, one.ratio], &[3.0, 3.0, 1.0], 1e-12);
        }
    }

    #[test]
    fn a_layer_is_measured() {
        for device in devices() {
            let weights = float32(&[1.0, 0.0, 0.25, 0.75], [1, 1, 2, 2], &device);
            let scores = float32(&[0.0, 0.5, 1.0, 0.1, 0.3, 0.5, 0.7, 0.9], [1, 2, 2, 2], &device);
            let hidden = float32(&[1.0, -2.0, 3.0, 6.0], [1, 2, 2], &device);
            let config = AttentionDiagnosticsConfig::new().with_sparsity_threshold(0.25);
            let measured =
                config.measure(weights.clone(), Some(scores.clone()), hidden.clone()).expect("numbers");
            assert_close(&[measured.first_token_share.mean], &[0.625], 1e-6);
            let gate = measured.gate.as_ref().expect("scores were given");
            assert_close(&gate.mean_by_head, &[0.325, 0.675], 1e-6);
            assert_close(&[gate.mean, gate.sparsity], &[0.5, 0.25], 1e-6);
            assert_eq!(
                measured.to_string(),
                "first token 0.625, gate 0.500 (25.0 % closed), largest activation 6.00 (3.0 times the median)"
            );
            let field = |config: &AttentionDiagnosticsConfig, weights, scores, hidden| {
                config.measure(weights, Some(scores), hidden).unwrap_err().field
            };
            let nan = |tensor: Tensor<4>| tensor.mul_scalar(f64::NAN);
            let none = Tensor::zeros([1, 0, 2], &device);
            assert_eq!(field(&config, weights.clone(), nan(scores.clone()), hidden.clone()), "gate_scores");
            assert_eq!(field(&config, weights.clone(), scores.clone(), none), "hidden_states");
            assert_eq!(
                field(&config, nan(weights.clone()), scores.clone(), hidden.clone()),
                "attention_weights"
            );
            if cfg!(debug_assertions) {
                let doubled = weights.clone() * 2.0;
                assert_eq!(field(&config, doubled, scores.clone(), hidden.clone()), "attention_weights");
            }
            let later = config.with_skip_first_query(true);
            let first = weights.narrow(2, 0, 1);
            assert_eq!(field(&later, first, scores, hidden), "attention_weights");
        }
    }
}
