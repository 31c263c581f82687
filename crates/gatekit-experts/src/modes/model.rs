//! What a model offers so that it can be calibrated and searched.

use burn::tensor::Tensor;
use gatekit_core::InputError;

use super::{LayerImportance, SkipStats, SkippingMoeLayer, Thresholds};

/// A model with [`SkippingMoeLayer`]s.
///
/// Clones must not share what can be set: the methods that measure set thresholds and bypasses on
/// a clone.
pub trait SkippableModel: Clone {
    /// Samples that go through the model together.
    type Batch;

    /// The layers with routed experts, in their order.
    fn moe_layers(&self) -> Vec<&SkippingMoeLayer>;

    /// The same, to be changed.
    fn moe_layers_mut(&mut self) -> Vec<&mut SkippingMoeLayer>;

    /// The logits at the answer positions of a batch, `[S, V]` (the positions whose next token is
    /// asked for), and what was skipped on the way.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a batch that the model cannot process.
    fn answer_logits(&self, batch: &Self::Batch) -> Result<(Tensor<2>, SkipStats), InputError>;

    /// Sets the thresholds of all layers.
    fn set_thresholds(&mut self, thresholds: Thresholds) {
        for layer in self.moe_layers_mut() {
            layer.skipper.set_thresholds(thresholds);
        }
    }

    /// Gives every layer its importance.
    ///
    /// # Errors
    ///
    /// [`InputError`] when the table has another number of layers than the model.
    fn set_importance(&mut self, importance: &LayerImportance) -> Result<(), InputError> {
        let layers = self.moe_layers_mut();
        if layers.len() != importance.layers() {
            let got = format!("a table of {} layers", importance.layers());
            return Err(InputError::new("importance", got, format!("{}, as in the model", layers.len())));
        }
        for (layer, row) in layers.into_iter().zip(importance.rows()) {
            layer.skipper.set_importance(*row)?;
        }
        Ok(())
    }

    /// The importance that the layers hold.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a value that is negative or not finite, and for a model without such layers.
    fn importance(&self) -> Result<LayerImportance, InputError> {
        LayerImportance::new(self.moe_layers().into_iter().map(|layer| layer.skipper.importance()).collect())
    }
}
