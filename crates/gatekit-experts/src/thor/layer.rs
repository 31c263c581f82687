//! The layers of encoder and decoder.

use burn::module::Module;
use burn::nn::{Dropout, LayerNorm};
use burn::tensor::{Bool, Tensor};
use gatekit_core::InputError;
use gatekit_core::attention::{KvCache, MultiHeadAttention};

use super::assignment::ExpertAssignment;
use super::feed_forward::ThorFeedForward;

/// `x + f(norm(x))` when the norm stands before, else `norm(x + f(x))`.
fn residual(
    norm: &LayerNorm,
    before: bool,
    x: Tensor<3>,
    part: impl FnOnce(Tensor<3>) -> Result<Tensor<3>, InputError>,
) -> Result<Tensor<3>, InputError> {
    match before {
        true => Ok(x.clone() + part(norm.forward(x))?),
        false => Ok(norm.forward(x.clone() + part(x)?)),
    }
}

/// An encoder layer: `x = LN(x + SelfAttn(x))`, `x = LN(x + f(x))`, or with the norms before:
/// `x = x + SelfAttn(LN(x))`, `x = x + f(LN(x))`.
#[derive(Module, Debug)]
pub struct ThorEncoderLayer {
    /// Attention of the sequence to itself.
    pub self_attn: MultiHeadAttention,
    /// Its norm.
    pub self_attn_layer_norm: LayerNorm,
    /// Feed-forward part, with or without experts.
    pub ffn: ThorFeedForward,
    /// Its norm.
    pub final_layer_norm: LayerNorm,
    pub(super) dropout: Dropout,
    pub(super) normalize_before: bool,
}

impl ThorEncoderLayer {
    /// `x` `[batch, time, D]` to `[batch, time, D]`; `padding` `[batch, time]` is true where a position is
    /// padding, which nobody attends to (it is computed like the others itself).
    ///
    /// # Errors
    ///
    /// [`InputError`] for experts that are missing, do not exist or belong to other tokens.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit. (A row of padding alone reads 0.)
    pub fn forward(
        &self,
        x: Tensor<3>,
        padding: Option<&Tensor<2, Bool>>,
        experts: Option<&ExpertAssignment>,
    ) -> Result<Tensor<3>, InputError> {
        let x = residual(&self.self_attn_layer_norm, self.normalize_before, x, |x| {
            Ok(self.dropout.forward(self.self_attn.forward(x.clone(), x, padding, false)))
        })?;
        residual(&self.final_layer_norm, self.normalize_before, x, |x| {
            Ok(self.dropout.forward(self.ffn.forward(x, experts)?))
        })
    }
}

/// A decoder layer: causal attention to itself, attention to the encoder's output, feed-forward; each with
/// a norm of its own, as in [`ThorEncoderLayer`]. Keys and values of the encoder's output are not
/// normalised again.
#[derive(Module, Debug)]
pub struct ThorDecoderLayer {
    /// Causal attention of the sequence to itself.
    pub self_attn: MultiHeadAttention,
    /// Its norm.
    pub self_attn_layer_norm: LayerNorm,
    /// Attention to the encoder's output.
    pub encoder_attn: MultiHeadAttention,
    /// Its norm.
    pub encoder_attn_layer_norm: LayerNorm,
    /// Feed-forward part, with or without experts.
    pub ffn: ThorFeedForward,
    /// Its norm.
    pub final_layer_norm: LayerNorm,
    pub(super) dropout: Dropout,
    pub(super) normalize_before: bool,
}

impl ThorDecoderLayer {
    /// `x` `[batch, time, D]` to `[batch, time, D]`, with `padding` `[batch, time]` of its own, reading from
    /// `encoder_out` `[batch, source, D]` with `encoder_padding` `[batch, source]`.
    ///
    /// # Errors
    ///
    /// As [`ThorEncoderLayer::forward`].
    ///
    /// # Panics
    ///
    /// As [`ThorEncoderLayer::forward`].
    pub fn forward(
        &self,
        x: Tensor<3>,
        padding: Option<&Tensor<2, Bool>>,
        encoder_out: Tensor<3>,
        encoder_padding: Option<&Tensor<2, Bool>>,
        experts: Option<&ExpertAssignment>,
    ) -> Result<Tensor<3>, InputError> {
        let memory = self.encoder_attn.remember(encoder_out);
        Ok(self.advance(x, None, padding, &memory, encoder_padding, experts)?.0)
    }

    /// Goes on after the tokens whose keys and values are `past`; returns those with the new ones. `memory`
    /// are the keys and values of the encoder's output, from `encoder_attn.remember`.
    ///
    /// # Errors
    ///
    /// As [`ThorEncoderLayer::forward`].
    ///
    /// # Panics
    ///
    /// As [`ThorEncoderLayer::forward`].
    pub fn advance(
        &self,
        x: Tensor<3>,
        past: Option<KvCache>,
        padding: Option<&Tensor<2, Bool>>,
        memory: &KvCache,
        memory_padding: Option<&Tensor<2, Bool>>,
        experts: Option<&ExpertAssignment>,
    ) -> Result<(Tensor<3>, KvCache), InputError> {
        let before = self.normalize_before;
        let normed = if before { self.self_attn_layer_norm.forward(x.clone()) } else { x.clone() };
        let new = self.self_attn.remember(normed.clone());
        let seen = match past {
            Some(past) => past.extended(new.keys, new.values),
            None => new,
        };
        let y = x + self.dropout.forward(self.self_attn.read(normed, &seen, padding, true));
        let x = if before { y } else { self.self_attn_layer_norm.forward(y) };
        let x = residual(&self.encoder_attn_layer_norm, before, x, |x| {
            Ok(self.dropout.forward(self.encoder_attn.read(x, memory, memory_padding, false)))
        })?;
        let x = residual(&self.final_layer_norm, before, x, |x| {
            Ok(self.dropout.forward(self.ffn.forward(x, experts)?))
        })?;
        Ok((x, seen))
    }
}
