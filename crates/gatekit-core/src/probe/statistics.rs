//! Numbers that summarise gate values and attention weights.

use std::fmt;

use burn::tensor::Tensor;

/// What a gate's values look like.
///
/// Meant for gates in [0, 1]; mean and deviation are those of any values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateStatistics {
    /// Mean value: the gate's openness.
    pub mean: f64,
    /// Standard deviation over all values (the population's).
    pub deviation: f64,
    /// Share of values below 0.1.
    pub closed: f64,
    /// Share of values above 0.9.
    pub open: f64,
    /// Mean entropy of a coin that falls "open" with the gate's value, in bits: 0 for gates of 0 and
    /// 1 only, 1 for gates of 1/2. Values outside [0, 1] count as the nearer end.
    pub entropy: f64,
}

impl GateStatistics {
    /// Reads the gate values `[..]` back and summarises them in float64.
    ///
    /// # Panics
    ///
    /// When there are no values.
    pub fn of<const D: usize>(gate: Tensor<D>) -> Self {
        let values: Vec<f64> = gate.into_data().iter::<f64>().collect();
        assert!(!values.is_empty(), "GateStatistics: no gate value");
        let average =
            |f: &dyn Fn(f64) -> f64| values.iter().map(|g| f(*g)).sum::<f64>() / values.len() as f64;
        let mean = average(&|g| g);
        Self {
            mean,
            deviation: average(&|g| (g - mean).powi(2)).sqrt(),
            closed: average(&|g| f64::from(g < 0.1)),
            open: average(&|g| f64::from(g > 0.9)),
            entropy: average(&|g| entropy(g.clamp(0.0, 1.0))),
        }
    }

    /// Share of gate values below `threshold`, for a sparsity of one's own definition.
    ///
    /// # Panics
    ///
    /// When there are no values.
    pub fn share_below<const D: usize>(gate: Tensor<D>, threshold: f64) -> f64 {
        let values: Vec<f64> = gate.into_data().iter::<f64>().collect();
        assert!(!values.is_empty(), "GateStatistics: no gate value");
        values.iter().filter(|g| **g < threshold).count() as f64 / values.len() as f64
    }

    /// Name and value of each statistic.
    pub fn parts(&self) -> [(&'static str, f64); 5] {
        [
            ("mean", self.mean),
            ("deviation", self.deviation),
            ("closed", self.closed),
            ("open", self.open),
            ("entropy", self.entropy),
        ]
    }
}

impl fmt::Display for GateStatistics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "mean {:.3} ± {:.3}, closed {:.1} %, open {:.1} %, entropy {:.3} bits",
            self.mean,
            self.deviation,
            100.0 * self.closed,
            100.0 * self.open,
            self.entropy
        )
    }
}

/// `-p log2 p - (1 - p) log2 (1 - p)`, 0 at both ends.
fn entropy(p: f64) -> f64 {
    let part = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
    part(p) + part(1.0 - p)
}

/// How much of softmax attention goes to the first key: the attention sink.
///
/// Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453); as a
/// measure of what output gates do: "Gated Attention for Large Language Models" (arXiv 2505.06708).
#[derive(Debug, Clone, PartialEq)]
pub struct SinkShare {
    /// Mean over batch, heads and queries.
    pub mean: f64,
    /// Mean over batch and queries, for each head.
    pub by_head: Vec<f64>,
}

impl SinkShare {
    /// From attention weights `[batch, heads, queries, keys]` whose rows sum to 1.
    ///
    /// `skip_first_query` leaves out the first query, which under a causal mask has nothing but the
    /// first key to look at.
    ///
    /// # Panics
    ///
    /// When no query is left. In debug builds also when a row does not sum to 1 (within 1e-3).
    pub fn of(weights: Tensor<4>, skip_first_query: bool) -> Self {
        let [batch, heads, queries, _] = weights.dims();
        let first = usize::from(skip_first_query);
        assert!(batch * heads > 0 && queries > first, "SinkShare: no query in weights {:?}", weights.dims());
        if cfg!(debug_assertions) {
            let sums = weights.clone().sum_dim(3).into_data();
            let wrong = sums.iter::<f64>().find(|sum| (sum - 1.0).abs() > 1e-3);
            assert!(wrong.is_none(), "SinkShare: a row of weights sums to {wrong:?}, not 1");
        }
        let on_first: Vec<f64> =
            weights.narrow(3, 0, 1).narrow(2, first, queries - first).into_data().iter::<f64>().collect();
        let rows = queries - first;
        let by_head: Vec<f64> = (0..heads)
            .map(|head| {
                let of_row = |row: usize| on_first[(row * heads + head) * rows..][..rows].iter().sum::<f64>();
                (0..batch).map(of_row).sum::<f64>() / (batch * rows) as f64
            })
            .collect();
        Self { mean: by_head.iter().sum::<f64>() / heads as f64, by_head }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32};

    #[test]
    fn statistics_of_known_values() {
        for device in devices() {
            let gate = float32(&[0.0, 1.0, 0.5, 0.25], [2, 2], &device);
            let statistics = GateStatistics::of(gate.clone());
            let mean: f64 = 1.75 / 4.0;
            let deviation =
                ((mean.powi(2) + (1.0 - mean).powi(2) + (0.5 - mean).powi(2) + (0.25 - mean).powi(2)) / 4.0)
                    .sqrt();
            let quarter = 0.25 * 2.0 + 0.75 * (4.0f64 / 3.0).log2();
            let expected = [mean, deviation, 0.25, 0.25, (1.0 + quarter) / 4.0];
            assert_close(&statistics.parts().map(|(_, value)| value), &expected, 1e-12);
            assert_eq!(GateStatistics::share_below(gate, 0.3), 0.5);
        }
    }

    #[test]
    fn statistics_print_in_one_line() {
        let device = devices().remove(0);
        let statistics = GateStatistics::of(float32(&[0.0, 1.0], [2], &device));
        assert_eq!(
            statistics.to_string(),
            "mean 0.500 ± 0.500, closed 50.0 %, open 50.0 %, entropy 0.000 bits"
        );
    }

    #[test]
    fn sink_share_by_head() {
        for device in devices() {
            let weights = [
                1.0, 0.0, 0.5, 0.5, // row 0, head 0
                1.0, 0.0, 0.25, 0.75, // row 0, head 1
                1.0, 0.0, 0.0, 1.0, // row 1, head 0
                1.0, 0.0, 0.75, 0.25, // row 1, head 1
            ];
            let weights = float32(&weights, [2, 2, 2, 2], &device);
            let all = SinkShare::of(weights.clone(), false);
            assert_close(&all.by_head, &[0.625, 0.75], 1e-6);
            assert_close(&[all.mean], &[0.6875], 1e-6);
            let later = SinkShare::of(weights, true);
            assert_close(&later.by_head, &[0.25, 0.5], 1e-6);
        }
    }

    #[test]
    #[should_panic(expected = "not 1")]
    fn scores_that_are_no_weights_panic_in_debug_builds() {
        let device = devices().remove(0);
        SinkShare::of(Tensor::ones([1, 1, 2, 2], &device), false);
    }
}
