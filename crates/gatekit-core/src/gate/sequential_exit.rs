//! Gates that stand one behind the other: who leaves at which.

use burn::tensor::{Int, Tensor};

use super::activation::sigmoid;
use crate::common::widen;
use crate::error::ConfigError;

/// A row of exits, passed one after the other, that share a budget of one (stick-breaking).
///
/// With gate values `g_l` of exits `l = 0 .. L` and a last exit L without a gate,
///
/// ```text
/// S_l = max(0, 1 - sum_{j<l} g_j)     what is left before exit l
/// P_l = min(g_l, S_l),  P_L = S_L     leaves at exit l
/// h_l = P_l / S_l                     leaves at l having come so far (the hazard); 0 where S_l = 0
/// ```
///
/// so `g_l` is the unconditional probability of leaving at l until the budget is used up, and P sums
/// to one. A sample leaves at the first l with `h_l >= exit_threshold`, else at L. The gradient of the
/// minimum goes through the smaller of the two; hazards of 0 or 1 that the budget makes have none.
///
/// Regol, Chataoui, Coates: "Jointly-Learned Exit and Inference for a Dynamic Neural Network",
/// ICLR 2024, arXiv 2310.09163, section 4.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use gatekit_core::gate::SequentialExit;
///
/// let exits = SequentialExit::new(0.5).unwrap();
/// // Gates of 0.2 and 0.88: nothing is left for the third exit.
/// let logits = Tensor::<2>::from_data([[-1.386_294_4, 2.0]], &Device::flex());
/// let distribution = exits.forward(logits); // P = 0.2, 0.8, 0 and h = 0.2, 1
/// assert_eq!(distribution.levels().into_scalar::<i64>(), 1);
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequentialExit {
    exit_threshold: f64,
}

/// What one exit makes of its gate, element by element.
#[derive(Debug, Clone)]
pub struct ExitStep<const D: usize> {
    /// `P_l`, the probability of leaving here.
    pub prob: Tensor<D>,
    /// `h_l`, the same for those that came so far.
    pub hazard: Tensor<D>,
    /// Gate values so far, this one included; may pass one.
    pub spent: Tensor<D>,
}

/// Who leaves where, from [`SequentialExit::forward`].
#[derive(Debug, Clone)]
pub struct ExitDistribution {
    /// `P`, `[batch, L + 1]`.
    pub probs: Tensor<2>,
    /// `h`, `[batch, L]`.
    pub hazards: Tensor<2>,
    exit_threshold: f64,
}

impl SequentialExit {
    /// Exits that are taken from the hazard `exit_threshold` on.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a threshold outside (0, 1].
    pub fn new(exit_threshold: f64) -> Result<Self, ConfigError> {
        match exit_threshold > 0.0 && exit_threshold <= 1.0 {
            true => Ok(Self { exit_threshold }),
            false => Err(ConfigError::new("exit_threshold", exit_threshold, "a hazard in (0, 1]")),
        }
    }

    /// The hazard from which a sample leaves.
    pub fn exit_threshold(&self) -> f64 {
        self.exit_threshold
    }

    /// The next exit: its logits and what the exits before it spent, `[..]` of one shape (zeros at the
    /// first). Computed in at least float32.
    ///
    /// # Panics
    ///
    /// When the shapes differ.
    pub fn step<const D: usize>(&self, gate_logits: Tensor<D>, spent: Tensor<D>) -> ExitStep<D> {
        assert!(
            gate_logits.dims() == spent.dims(),
            "SequentialExit: `gate_logits` {:?} and `spent` {:?} differ in shape",
            gate_logits.dims(),
            spent.dims()
        );
        let gate = sigmoid(widen(gate_logits));
        let left = spent.clone().neg().add_scalar(1.0).clamp_min(0.0);
        let short = left.clone().lower(gate.clone());
        let prob = gate.clone().mask_where(short.clone(), left.clone());
        // Where the gate asks for more than is left the quotient is 1, exactly and without a gradient.
        let some = left.clone().greater_elem(0.0);
        let divisor = left.mask_fill(short.clone().bool_or(some.clone().bool_not()), 1.0);
        let all = some.float().cast(gate.dtype());
        let hazard = (gate.clone() / divisor).mask_where(short, all);
        ExitStep { prob, hazard, spent: spent + gate }
    }

    /// All exits of the gates' logits `[batch, L]`, in at least float32.
    ///
    /// The sums run from the first exit to the last, as [`step`](Self::step) by step, so that both come
    /// to the same hazards.
    ///
    /// # Panics
    ///
    /// When there is no gate.
    pub fn forward(&self, gate_logits: Tensor<2>) -> ExitDistribution {
        let [batch, gates] = gate_logits.dims();
        assert!(gates > 0, "SequentialExit: `gate_logits` {:?} holds no gate", [batch, gates]);
        let logits = widen(gate_logits);
        let mut spent = Tensor::<2>::zeros([batch, 1], (&logits.device(), logits.dtype()));
        if batch == 0 {
            let zeros = |width| Tensor::zeros([0, width], (&logits.device(), logits.dtype()));
            let exit_threshold = self.exit_threshold;
            return ExitDistribution { probs: zeros(gates + 1), hazards: zeros(gates), exit_threshold };
        }
        let (mut probs, mut hazards) = (Vec::with_capacity(gates + 1), Vec::with_capacity(gates));
        for gate in 0..gates {
            let step = self.step(logits.clone().narrow(1, gate, 1), spent);
            probs.push(step.prob);
            hazards.push(step.hazard);
            spent = step.spent;
        }
        probs.push(spent.neg().add_scalar(1.0).clamp_min(0.0));
        ExitDistribution {
            probs: Tensor::cat(probs, 1),
            hazards: Tensor::cat(hazards, 1),
            exit_threshold: self.exit_threshold,
        }
    }
}

impl ExitDistribution {
    /// The exit that every sample takes, `[batch]`: the first whose hazard reaches the threshold, else L.
    ///
    /// A hazard of NaN counts as below it.
    pub fn levels(&self) -> Tensor<1, Int> {
        let [batch, gates] = self.hazards.dims();
        let device = self.hazards.device();
        if batch == 0 {
            return Tensor::zeros([0], &device);
        }
        let stays = self.hazards.clone().greater_equal_elem(self.exit_threshold).bool_not().int();
        let mut going = Tensor::<2, Int>::ones([batch, 1], &device);
        let mut level = Tensor::<2, Int>::zeros([batch, 1], &device);
        for gate in 0..gates {
            going = going * stays.clone().narrow(1, gate, 1);
            level = level + going.clone();
        }
        level.squeeze_dim(1)
    }

    /// `sum_l P_l values_l`, `[batch]`, for one value an exit, the last included: the expected cost.
    ///
    /// # Panics
    ///
    /// Unless there are L + 1 values.
    pub fn expectation(&self, values: &[f64]) -> Tensor<1> {
        let [_, exits] = self.probs.dims();
        assert!(values.len() == exits, "ExitDistribution: {} `values` for {exits} exits", values.len());
        let row = Tensor::<1>::from_data(values, (&self.probs.device(), self.probs.dtype()));
        (self.probs.clone() * row.unsqueeze_dim(0)).sum_dim(1).squeeze_dim(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    /// Stick-breaking by the book, in float64.
    fn by_hand(logits: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut spent, mut probs, mut hazards) = (0.0, Vec::new(), Vec::new());
        for logit in logits {
            let (gate, left) = (1.0 / (1.0 + (-logit).exp()), f64::max(0.0, 1.0 - spent));
            let prob = f64::min(gate, left);
            probs.push(prob);
            hazards.push(if left == 0.0 { 0.0 } else { prob / left });
            spent += gate;
        }
        probs.push(f64::max(0.0, 1.0 - spent));
        (probs, hazards)
    }

    #[test]
    fn the_budget_is_one_and_sums_match() {
        let exits = SequentialExit::new(0.5).unwrap();
        for device in devices() {
            for gates in [1, 2, 7] {
                let logits: Vec<f64> = ramp(5 * gates, 3.0).iter().map(|z| z - 0.5).collect();
                let distribution = exits.forward(float64(&logits, [5, gates], &device));
                let (got, hazards) =
                    (values(distribution.probs.clone()), values(distribution.hazards.clone()));
                let levels: Vec<i64> = distribution.levels().into_data().iter::<i64>().collect();
                for (row, logits) in logits.chunks(gates).enumerate() {
                    let (probs, expected) = by_hand(logits);
                    let row_probs = &got[row * (gates + 1)..][..gates + 1];
                    assert_close(row_probs, &probs, 1e-12);
                    assert!((row_probs.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                    assert_close(&hazards[row * gates..][..gates], &expected, 1e-12);
                    let level = expected.iter().position(|h| *h >= 0.5).unwrap_or(gates);
                    assert_eq!(levels[row], level as i64);
                }
            }
        }
    }

    #[test]
    fn exhausted_budgets_are_exactly_zero() {
        // Open gates in float32: nothing may be left over by rounding.
        let exits = SequentialExit::new(1.0).unwrap();
        for device in devices() {
            let distribution = exits.forward(float32(&[40.0, 3.0, -40.0, 40.0], [1, 4], &device));
            assert_eq!(values(distribution.probs.clone()), [1.0, 0.0, 0.0, 0.0, 0.0]);
            assert_eq!(values(distribution.hazards.clone()), [1.0, 0.0, 0.0, 0.0]);
            assert_eq!(distribution.levels().into_scalar::<i64>(), 0);
            // The rest is taken whole, so a threshold of one is reached.
            let distribution = exits.forward(float32(&[0.3, 0.4, 0.1], [1, 3], &device));
            assert_eq!(distribution.levels().into_scalar::<i64>(), 1);
            let closed = exits.forward(float32(&[-200.0; 3], [1, 3], &device));
            assert_eq!(values(closed.probs.clone()), [0.0, 0.0, 0.0, 1.0]);
            assert_eq!(closed.levels().into_scalar::<i64>(), 3);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let device = devices().remove(0);
        let exits = SequentialExit::new(0.5).unwrap();
        let logits: Vec<f64> = ramp(12, 1.5).iter().map(|z| z - 0.7).collect();
        let costs = [0.1, 0.3, 0.7, 1.3, 2.0];
        check_gradients(&logits, [3, 4], &device, |x| exits.forward(x).expectation(&costs));
        let weights = float64(&ramp(12, 1.0), [3, 4], &device);
        check_gradients(&logits, [3, 4], &device, |x| {
            let weights = Tensor::from_data(weights.to_data(), (&x.device(), x.dtype()));
            exits.forward(x).hazards * weights
        });
    }

    #[test]
    fn gradients_are_finite_where_gates_are_shut_or_open() {
        let exits = SequentialExit::new(0.5).unwrap();
        for device in devices() {
            let logits = [1e4, -1e4, 1e4, -1e4, 1e4, 0.0, -1e4, -1e4, -1e4];
            let x = float32(&logits, [3, 3], &device.autodiff()).require_grad();
            let distribution = exits.forward(x.clone());
            let sum = distribution.hazards.sum() + distribution.probs.narrow(1, 1, 2).sum();
            let gradient = values(x.grad(&sum.backward()).unwrap());
            assert!(gradient.iter().all(|value| value.is_finite()), "{gradient:?}");
        }
    }

    #[test]
    fn empty_batches_and_bad_thresholds() {
        for device in devices() {
            let distribution = SequentialExit::new(0.5).unwrap().forward(Tensor::zeros([0, 3], &device));
            assert_eq!((distribution.probs.dims(), distribution.hazards.dims()), ([0, 4], [0, 3]));
            assert_eq!(distribution.levels().dims(), [0]);
        }
        for threshold in [0.0, -0.1, 1.01, f64::NAN] {
            assert_eq!(SequentialExit::new(threshold).unwrap_err().field, "exit_threshold");
        }
    }
}
