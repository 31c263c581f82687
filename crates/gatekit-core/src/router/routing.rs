//! What a router decided, on the device.

use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor};

use super::{Assignment, ScoringFunc};
use crate::common::widen;
use crate::error::InputError;

/// The experts of every token and their weights.
///
/// Everything in floats carries gradients; indices do not.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Logits `[N, E]`, noise included; `None` where nothing is learned.
    pub logits: Option<Tensor<2>>,
    /// Scores `[N, E]`; `None` where nothing is learned.
    pub scores: Option<Tensor<2>>,
    /// Experts `[N, K]`, the best first; E for a slot that was [pruned](Self::prune).
    pub indices: Tensor<2, Int>,
    /// Their weights `[N, K]`; 0 for a second expert that was left out by chance and for a pruned
    /// slot. An expert that is full drops a slot, but not its weight here: see [`kept`](Self::kept).
    pub weights: Tensor<2>,
    /// Smoothed number of tokens an expert `[E]`, with Gaussian noise: the probability that a
    /// fresh draw of its noise makes the expert chosen, summed over tokens (Shazeer et al., eq. 10).
    pub load: Option<Tensor<1>>,
    /// The same choice on the host, and which slots are kept.
    pub assignment: Assignment,
}

impl Routing {
    /// From logits `[N, E]` and a choice `[N, K]` that were made elsewhere.
    ///
    /// # Errors
    ///
    /// [`InputError`] for an index that is no expert, and unless there is one weight an index and
    /// one row of them a token.
    pub fn from_parts(
        logits: Tensor<2>,
        scoring_func: ScoringFunc,
        indices: Tensor<2, Int>,
        weights: Tensor<2>,
    ) -> Result<Self, InputError> {
        let [tokens, experts] = logits.dims();
        if indices.dims()[0] != tokens || weights.dims() != indices.dims() {
            let got = format!("indices {:?}, weights {:?}", indices.dims(), weights.dims());
            return Err(InputError::new("indices", got, format!("both [{tokens}, K]")));
        }
        let assignment = Assignment::from_tensor(&indices, experts)?;
        let logits = widen(logits);
        let scores = scoring_func.apply(logits.clone());
        Ok(Self { logits: Some(logits), scores: Some(scores), indices, weights, load: None, assignment })
    }

    /// The same choice with other weights `[N, K]`, made of these.
    ///
    /// # Panics
    ///
    /// When the new weights have another shape.
    pub fn map_weights(mut self, weights: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        let dims = self.weights.dims();
        self.weights = weights(self.weights);
        assert!(
            self.weights.dims() == dims,
            "Routing: the new weights have shape {:?}, need {dims:?}",
            self.weights.dims()
        );
        self
    }

    /// Which slots are kept, `[N, K]`: not those that were pruned or of second experts left out by
    /// chance, nor, from a layer with a capacity, those of experts that were full.
    pub fn kept(&self) -> Tensor<2, Bool> {
        self.assignment.kept_mask(&self.weights.device())
    }

    /// Sum of every expert's weights, `[E]`.
    pub fn importance(&self) -> Tensor<1> {
        sum_by_expert(self.weights.clone(), self.indices.clone(), self.assignment.num_experts())
    }
}

/// `[E]`: the weights `[N, K]` added up by expert.
pub(super) fn sum_by_expert(weights: Tensor<2>, indices: Tensor<2, Int>, experts: usize) -> Tensor<1> {
    // Pruned slots have the index E.
    let zeros = Tensor::<1>::zeros([experts + 1], (&weights.device(), weights.dtype()));
    let sums = match weights.dims()[0] {
        0 => zeros,
        _ => zeros.select_assign(0, indices.flatten(0, 1), weights.flatten(0, 1), IndexingUpdateOp::Add),
    };
    sums.narrow(0, 0, experts)
}
