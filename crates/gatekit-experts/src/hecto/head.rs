//! Projection, gate and experts on the states of an encoder.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Bool, Int, Tensor};
use gatekit_core::InputError;
use gatekit_core::dispatch::{DispatchPlan, unlike_experts};
use gatekit_core::router::{Assignment, Phase};

use super::config::Estimator;
use super::experts::{HectoExpert, SequenceExpert, first};
use super::gate::{Top1Choice, Top1Gate};

/// Sends every sequence to one of several unlike experts.
///
/// `X = S W_p^T + b_p`; the gate reads the sentence vector `c = X[:, 0]`, and `y = sum_i m_i f_i(X)`. In
/// training with the straight-through estimator all experts run, since the gate's gradient needs their
/// outputs; else only the chosen one, on the rows that chose it. Pandey et al. (arXiv 2506.22919).
#[derive(Module, Debug)]
pub struct HectoHead {
    /// Projection of the encoder's states.
    pub proj: Linear,
    /// The choice of an expert.
    pub gate: Top1Gate,
    /// The experts.
    pub experts: Vec<HectoExpert>,
}

/// What a [`HectoHead`] answers.
#[derive(Debug, Clone)]
pub struct HectoOutput {
    /// `[batch, num_outputs]`.
    pub y: Tensor<2>,
    /// Probabilities of the experts, `[batch, E]`.
    pub probs: Tensor<2>,
    /// The expert of every row, `[batch]`.
    pub choice: Tensor<1, Int>,
}

impl HectoHead {
    /// Training on a device with autodiff, else evaluation; see [`forward_with`](Self::forward_with).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    pub fn forward(&self, states: Tensor<3>, mask: Tensor<2, Bool>) -> Result<HectoOutput, InputError> {
        let phase = Phase::of(&states.device());
        self.forward_with(states, mask, phase)
    }

    /// Whole sequences.
    ///
    /// # Shapes
    ///
    /// - `states`: `[batch, time, encoder_dim]`, the sentence vector at position 0
    /// - `mask`: `[batch, time]`, true where a token counts; padding stands right
    /// - output: see [`HectoOutput`]; an empty batch has an empty one
    ///
    /// # Errors
    ///
    /// [`InputError`] for a mask that [`check_mask`] refuses, and for states with a NaN.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward_with(
        &self,
        states: Tensor<3>,
        mask: Tensor<2, Bool>,
        phase: Phase,
    ) -> Result<HectoOutput, InputError> {
        let [batch, time, width] = states.dims();
        let [need, _] = self.proj.weight.shape().dims();
        assert!(
            width == need && mask.dims() == [batch, time],
            "HectoHead: `states` {:?} with `mask` {:?}, need [batch, time, {need}] and [batch, time]",
            [batch, time, width],
            mask.dims()
        );
        if batch == 0 {
            let zeros = |width| Tensor::zeros([0, width], (&states.device(), states.dtype()));
            let choice = Tensor::zeros([0], &states.device());
            return Ok(HectoOutput {
                y: zeros(self.num_outputs()),
                probs: zeros(self.experts.len()),
                choice,
            });
        }
        check_mask(&mask)?;
        if states.clone().detach().is_nan().any().into_scalar::<bool>() {
            return Err(InputError::new("states", "NaN", "numbers"));
        }
        let x = self.proj.forward(states);
        let Top1Choice { probs, choice, combine } = self.gate.forward(first(x.clone()), phase);
        let estimator = self.gate.config().estimator;
        let y = match (estimator, phase) {
            (Estimator::StraightThrough, Phase::Training) => self.all(x, mask, combine),
            _ => self.chosen(x, mask, &choice, combine)?,
        };
        Ok(HectoOutput { y, probs, choice })
    }

    /// Channels of the output.
    pub fn num_outputs(&self) -> usize {
        self.experts[0].num_outputs()
    }

    /// Every expert on every row.
    fn all(&self, x: Tensor<3>, mask: Tensor<2, Bool>, combine: Tensor<2>) -> Tensor<2> {
        let outputs = self.experts.iter().enumerate().map(|(number, expert)| {
            let output = SequenceExpert::forward(expert, x.clone(), mask.clone());
            let dtype = output.dtype();
            output * combine.clone().narrow(1, number, 1).cast(dtype)
        });
        outputs.reduce(|sum, output| sum + output).expect("there is an expert")
    }

    /// The chosen expert on the rows that chose it.
    fn chosen(
        &self,
        x: Tensor<3>,
        mask: Tensor<2, Bool>,
        choice: &Tensor<1, Int>,
        combine: Tensor<2>,
    ) -> Result<Tensor<2>, InputError> {
        let choice = choice.clone().unsqueeze_dim::<2>(1);
        let plan = DispatchPlan::new(&Assignment::from_tensor(&choice, self.experts.len())?);
        let outputs = unlike_experts(&self.experts, &(x, mask), &plan);
        Ok(plan.scatter_combine(outputs, combine.gather(1, choice)))
    }
}

/// Refuses masks `[batch, time]` (true where a token counts) that no recurrence can start from.
///
/// # Errors
///
/// [`InputError`] names the first row without a token, without a sentence vector (position 0), or with
/// padding before a token.
pub fn check_mask(mask: &Tensor<2, Bool>) -> Result<(), InputError> {
    let [batch, time] = mask.dims();
    let flat: Vec<bool> = mask.to_data().iter::<bool>().collect();
    let refused =
        |row: usize, got: &str, need: &str| Err(InputError::new("mask", format!("row {row} {got}"), need));
    for row in 0..batch {
        let counts = &flat[row * time..(row + 1) * time];
        let tokens = counts.iter().filter(|counts| **counts).count();
        if tokens == 0 {
            return refused(row, "without a token", "at least the one at position 0");
        }
        if counts[..tokens].contains(&false) {
            let (got, need) = match counts[0] {
                false => ("with position 0 false", "the sentence vector there"),
                true => ("with a false before a true", "padding on the right alone"),
            };
            return refused(row, got, need);
        }
    }
    Ok(())
}
