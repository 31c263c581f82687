//! How far two drawings of the experts predict differently.

use burn::tensor::{Bool, Int, Tensor};
use gatekit_core::InputError;
use gatekit_core::divergence::symmetric_kl;

use super::assignment::ExpertDraw;
use super::model::ThorModel;

/// What two drawings make of the same tokens, over the positions that count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertSpread {
    /// Mean of `KL(p || q) + KL(q || p)`, in nats.
    pub symmetric_kl: f64,
    /// Share of positions whose likeliest token differs.
    pub disagreement: f64,
}

impl ExpertSpread {
    /// Of logits `[batch, time, V]`; `mask` `[batch, time]` is true where a position counts. Both numbers
    /// are 0 when none does.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn of(logits: [Tensor<3>; 2], mask: Option<&Tensor<2, Bool>>) -> Self {
        let mask = mask.map(|mask| mask.clone().unsqueeze_dim::<3>(2));
        let [a, b] = logits.clone();
        let divergence: Vec<f64> = symmetric_kl(a, b, mask.as_ref(), 1.0).into_data().iter::<f64>().collect();
        let [a, b] = logits.map(|logits| logits.argmax(2).into_data().iter::<i64>().collect::<Vec<_>>());
        let counts: Vec<bool> = match mask {
            Some(mask) => mask.into_data().iter::<bool>().collect(),
            None => vec![true; divergence.len()],
        };
        let counted = counts.iter().filter(|counts| **counts).count().max(1) as f64;
        let differ = (a.iter().zip(&b).zip(&counts)).filter(|((a, b), counts)| **counts && a != b).count();
        Self { symmetric_kl: divergence.iter().sum::<f64>() / counted, disagreement: differ as f64 / counted }
    }
}

impl ThorModel {
    /// The spread of two drawings, over the real positions of `target` `[batch, time]`.
    ///
    /// # Errors
    ///
    /// None for tokens that the model knows.
    ///
    /// # Panics
    ///
    /// As [`forward`](ThorModel::forward), and when `draw` draws among another number of experts.
    pub fn spread(
        &self,
        source: Tensor<2, Int>,
        target_input: Tensor<2, Int>,
        target: &Tensor<2, Int>,
        draw: &mut ExpertDraw,
    ) -> Result<ExpertSpread, InputError> {
        let ([batch, source_time], time) = (source.dims(), target_input.dims()[1]);
        let mut pass = || {
            let experts = self.draw(draw, batch, source_time, time);
            self.forward(source.clone(), target_input.clone(), &experts)
        };
        let logits = [pass()?, pass()?];
        Ok(ExpertSpread::of(logits, Some(&self.padding(target).bool_not())))
    }
}
