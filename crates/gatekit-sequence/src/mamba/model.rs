//! The language model: Mamba blocks alone, without feed-forward layers.

use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::module::linear;
use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit_core::InputError;
use gatekit_core::norm::RmsNorm;
use gatekit_core::scan::ScanForm;

use super::mixer::MambaMixer;
use super::state::MambaState;
use crate::backbone::{ModelState, padding};
use crate::lm::{CausalLm, StreamingLm, expect_tokens};

/// The streaming state of [`MambaForCausalLm`], of constant size.
pub type MambaModelState = ModelState<MambaState>;

/// One block: `x = x + mixer(RMSNorm(x))`.
#[derive(Module, Debug)]
pub struct MambaBlock {
    /// Norm before the mixer.
    pub norm: RmsNorm,
    /// The mixer.
    pub mixer: MambaMixer,
}

impl MambaBlock {
    /// The block for a whole batch; shapes and panics as [`MambaMixer::forward`].
    pub fn forward(&self, x: Tensor<3>, attention_mask: Option<&Tensor<2, Bool>>) -> Tensor<3> {
        x.clone() + self.mixer.forward(self.norm.forward(x), attention_mask)
    }

    /// Continues by several tokens, `[batch, time, D]`.
    ///
    /// # Panics
    ///
    /// As [`MambaMixer::forward_with_state`].
    pub fn prefill(&self, x: Tensor<3>, state: MambaState) -> (Tensor<3>, MambaState) {
        let (mixed, state) = self.mixer.forward_with_state(self.norm.forward(x.clone()), None, Some(state));
        (x + mixed, state)
    }

    /// Continues by one token, `[batch, D]`.
    ///
    /// # Panics
    ///
    /// As [`MambaMixer::step`].
    pub fn step(&self, x: Tensor<2>, state: MambaState) -> (Tensor<2>, MambaState) {
        let (mixed, state) = self.mixer.step(self.norm.forward(x.clone()), state);
        (x + mixed, state)
    }
}

/// Embeddings, blocks and the final norm: everything but the head.
#[derive(Module, Debug)]
pub struct MambaModel {
    /// Token embeddings `[vocab_size, D]`.
    pub embeddings: Embedding,
    /// The blocks, first to last.
    pub layers: Vec<MambaBlock>,
    /// The norm after the last block.
    pub norm_f: RmsNorm,
}

/// The language model of Mamba.
///
/// ```text
/// x = embeddings[ids];   x = x + mixer(RMSNorm(x)) per block;   logits = W_head RMSNorm(x)
/// ```
///
/// The head is the embeddings' weight unless the configuration says otherwise. With an attention
/// mask, what padded tokens hold reaches no real one, and padding in front of a row changes
/// nothing; padding between real tokens lets the states decay over it, as [`MambaMixer`] says.
#[derive(Module, Debug)]
pub struct MambaForCausalLm {
    /// Everything but the head.
    pub backbone: MambaModel,
    /// The head; `None` when it is tied to the embeddings.
    pub lm_head: Option<Linear>,
}

impl MambaForCausalLm {
    /// The same model with another form of the scan in every layer; see
    /// [`MambaMixer::with_scan_form`].
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        for block in &mut self.backbone.layers {
            block.mixer = block.mixer.clone().with_scan_form(form);
        }
        self
    }

    fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        expect_tokens(self, &input_ids);
        self.backbone.embeddings.forward(input_ids)
    }

    fn logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let x = self.backbone.norm_f.forward(x);
        match &self.lm_head {
            Some(head) => head.forward(x),
            None => linear(x, self.backbone.embeddings.weight.val().transpose(), None),
        }
    }

    /// Runs the blocks one after the other, each with its part of the state.
    fn stream<const D: usize>(
        &self,
        x: Tensor<D>,
        state: MambaModelState,
        advance: impl Fn(&MambaBlock, Tensor<D>, MambaState) -> (Tensor<D>, MambaState),
    ) -> (Tensor<D>, MambaModelState) {
        self.check_state(&state, x.dims()[0]).unwrap_or_else(|error| panic!("{error}"));
        let mut layers = Vec::with_capacity(state.layers.len());
        let x = self.backbone.layers.iter().zip(state.layers).fold(x, |x, (block, layer)| {
            let (x, layer) = advance(block, x, layer);
            layers.push(layer);
            x
        });
        (x, ModelState { layers })
    }
}

impl CausalLm for MambaForCausalLm {
    fn forward(&self, input_ids: Tensor<2, Int>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        // Without padding there is nothing to mask.
        let mask = attention_mask.filter(|mask| padding(mask, input_ids.dims()).is_some());
        let x = self.embed(input_ids);
        let layers = self.backbone.layers.iter();
        self.logits(layers.fold(x, |x, block| block.forward(x, mask.as_ref())))
    }

    fn vocab_size(&self) -> usize {
        self.backbone.embeddings.weight.lazy_shape()[0]
    }
}

impl StreamingLm for MambaForCausalLm {
    type State = MambaModelState;

    fn empty_state(&self, batch: usize, device: &Device) -> MambaModelState {
        let layers = self.backbone.layers.iter();
        ModelState { layers: layers.map(|block| block.mixer.empty_state(batch, device)).collect() }
    }

    fn check_state(&self, state: &MambaModelState, batch: usize) -> Result<(), InputError> {
        let (got, need) = (state.layers.len(), self.backbone.layers.len());
        if got != need {
            return Err(InputError::new("state", format!("{got} layers"), format!("{need} layers")));
        }
        for (index, (block, layer)) in self.backbone.layers.iter().zip(&state.layers).enumerate() {
            block.mixer.check_state(layer, batch).map_err(|error| {
                InputError::new(format!("state.layers.{index}.{}", error.field), error.got, error.need)
            })?;
        }
        Ok(())
    }

    fn prefill(&self, input_ids: Tensor<2, Int>, state: MambaModelState) -> (Tensor<3>, MambaModelState) {
        let (x, state) = self.stream(self.embed(input_ids), state, MambaBlock::prefill);
        (self.logits(x), state)
    }

    fn step(&self, token: Tensor<1, Int>, state: MambaModelState) -> (Tensor<2>, MambaModelState) {
        let x = self.embed(token.unsqueeze_dim(1)).squeeze_dim::<2>(1);
        let (x, state) = self.stream(x, state, MambaBlock::step);
        (self.logits(x), state)
    }
}
