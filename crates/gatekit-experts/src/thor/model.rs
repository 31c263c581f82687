//! The encoder-decoder.

use burn::module::Module;
use burn::nn::{Dropout, Embedding, LayerNorm};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::InputError;

use super::assignment::{ExpertAssignment, ExpertDraw};
use super::layer::{ThorDecoderLayer, ThorEncoderLayer};

/// The layers that read the source.
#[derive(Module, Debug)]
pub struct ThorEncoder {
    /// From the bottom.
    pub layers: Vec<ThorEncoderLayer>,
    /// Behind the last layer, when norms stand before their parts.
    pub layer_norm: Option<LayerNorm>,
}

/// The layers that write the target.
#[derive(Module, Debug)]
pub struct ThorDecoder {
    /// From the bottom.
    pub layers: Vec<ThorDecoderLayer>,
    /// Behind the last layer, when norms stand before their parts.
    pub layer_norm: Option<LayerNorm>,
}

/// The experts of all layers that have some, in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThorExperts {
    /// One assignment for each layer of the encoder with experts, from the bottom.
    pub encoder: Vec<ExpertAssignment>,
    /// The same for the decoder.
    pub decoder: Vec<ExpertAssignment>,
}

/// A transformer whose layers have stochastic experts, every other one by default.
///
/// Tokens of source and target share one embedding, times `sqrt(D)`, which is also the output projection;
/// positions are sinusoids. Every pass is told its experts ([`ThorExperts`]), so it is a pure function of
/// its arguments (dropout, on devices with autodiff, apart).
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Int, Tensor};
/// use gatekit_core::ModuleConfig;
/// use gatekit_experts::thor::{ExpertDraw, ExpertLevel, ThorConfig};
///
/// let device = Device::flex();
/// let model = ThorConfig::new(20)
///     .with_embed_dim(16)
///     .with_ffn_dim(32)
///     .with_num_experts(4)
///     .with_encoder_layers(2)
///     .with_decoder_layers(2)
///     .init(&device);
/// let source = Tensor::<2, Int>::from_data([[5, 6, 7, 2], [8, 2, 1, 1]], &device);
/// let mut draw = ExpertDraw::new(4, ExpertLevel::Sentence, 0).unwrap();
/// let experts = model.draw(&mut draw, 2, 4, 6);
/// let sentences = model.greedy(source, 2, 2, 6, &experts).unwrap();
/// assert_eq!(sentences.len(), 2);
/// # }
/// ```
#[derive(Module, Debug)]
pub struct ThorModel {
    /// The joint embedding, `[vocab_size, D]`, normal with variance 1 / D.
    pub embed_tokens: Embedding,
    /// Reads the source.
    pub encoder: ThorEncoder,
    /// Writes the target.
    pub decoder: ThorDecoder,
    pub(super) dropout: Dropout,
    pub(super) padding_idx: usize,
}

impl ThorModel {
    /// Logits `[batch, time, V]` of the tokens that follow `target_input` `[batch, time]` (the target, one
    /// place later, behind a token that begins it), given `source` `[batch, source]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for experts that do not exist, or belong to other tokens or layers.
    ///
    /// # Panics
    ///
    /// When the two differ in batch. (Of a source of padding alone nothing is read.)
    pub fn forward(
        &self,
        source: Tensor<2, Int>,
        target_input: Tensor<2, Int>,
        experts: &ThorExperts,
    ) -> Result<Tensor<3>, InputError> {
        let source_padding = self.padding(&source);
        let encoder_out = self.encode(source, Some(&source_padding), &experts.encoder)?;
        self.decode(target_input, encoder_out, Some(&source_padding), &experts.decoder)
    }

    /// As [`forward`](Self::forward) with the mean of all experts in every layer: deterministic, and as many
    /// times dearer as there are experts.
    ///
    /// # Errors
    ///
    /// None for tokens that the model knows.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn mean_expert(
        &self,
        source: Tensor<2, Int>,
        target_input: Tensor<2, Int>,
    ) -> Result<Tensor<3>, InputError> {
        self.forward(source, target_input, &self.mean())
    }

    /// The encoder's output `[batch, source, D]`; `padding` `[batch, source]`, experts as in
    /// [`ThorExperts::encoder`].
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn encode(
        &self,
        source: Tensor<2, Int>,
        padding: Option<&Tensor<2, Bool>>,
        experts: &[ExpertAssignment],
    ) -> Result<Tensor<3>, InputError> {
        let mut experts = Remaining::new("encoder", experts, self.expert_layers()[0])?;
        let x = self.embed(source, 0);
        let x = self.encoder.layers.iter().try_fold(x, |x, layer| {
            layer.forward(x, padding, experts.next(layer.ffn.num_experts().is_some()))
        })?;
        Ok(normed(&self.encoder.layer_norm, x))
    }

    /// Logits `[batch, time, V]` of the tokens that follow `target_input` `[batch, time]`.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn decode(
        &self,
        target_input: Tensor<2, Int>,
        encoder_out: Tensor<3>,
        encoder_padding: Option<&Tensor<2, Bool>>,
        experts: &[ExpertAssignment],
    ) -> Result<Tensor<3>, InputError> {
        let mut experts = Remaining::new("decoder", experts, self.expert_layers()[1])?;
        // Padding stands behind the target, where no real token looks.
        let x = self.embed(target_input, 0);
        let x = self.decoder.layers.iter().try_fold(x, |x, layer| {
            let experts = experts.next(layer.ffn.num_experts().is_some());
            layer.forward(x, None, encoder_out.clone(), encoder_padding, experts)
        })?;
        Ok(self.logits(normed(&self.decoder.layer_norm, x)))
    }

    /// Draws experts for every layer that has some, for `batch` sentences of `source` and `target` tokens.
    ///
    /// # Panics
    ///
    /// When `draw` draws among another number of experts than the layers have.
    pub fn draw(&self, draw: &mut ExpertDraw, batch: usize, source: usize, target: usize) -> ThorExperts {
        let experts = self.num_experts().unwrap_or(draw.num_experts());
        assert!(
            draw.num_experts() == experts,
            "ThorModel: `draw` draws among {} experts, the layers have {experts}",
            draw.num_experts()
        );
        let [encoder, decoder] = self.expert_layers();
        ThorExperts {
            encoder: (0..encoder).map(|_| draw.assignment([batch, source])).collect(),
            decoder: (0..decoder).map(|_| draw.assignment([batch, target])).collect(),
        }
    }

    /// The mean of all experts, in every layer that has some.
    pub fn mean(&self) -> ThorExperts {
        let [encoder, decoder] = self.expert_layers();
        ThorExperts {
            encoder: vec![ExpertAssignment::Mean; encoder],
            decoder: vec![ExpertAssignment::Mean; decoder],
        }
    }

    /// Where a batch of tokens `[batch, time]` is padding.
    pub fn padding(&self, tokens: &Tensor<2, Int>) -> Tensor<2, Bool> {
        tokens.clone().equal_elem(self.padding_idx as i64)
    }

    /// Token that is padding.
    pub fn padding_idx(&self) -> usize {
        self.padding_idx
    }

    /// Tokens of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.embed_tokens.weight.shape().dims::<2>()[0]
    }

    /// Experts of a layer that has some; `None` when none has.
    pub fn num_experts(&self) -> Option<usize> {
        let encoder = self.encoder.layers.iter().find_map(|layer| layer.ffn.num_experts());
        encoder.or_else(|| self.decoder.layers.iter().find_map(|layer| layer.ffn.num_experts()))
    }

    /// Layers with experts, of encoder and decoder.
    pub fn expert_layers(&self) -> [usize; 2] {
        [
            self.encoder.layers.iter().filter(|layer| layer.ffn.num_experts().is_some()).count(),
            self.decoder.layers.iter().filter(|layer| layer.ffn.num_experts().is_some()).count(),
        ]
    }

    /// What the first layer sees: tokens `[batch, time]`, the first at position `from`, to `[batch, time, D]`.
    pub fn embed(&self, tokens: Tensor<2, Int>, from: usize) -> Tensor<3> {
        let time = tokens.dims()[1];
        let x = self.embed_tokens.forward(tokens);
        let ([_, _, dim], dtype) = (x.dims(), x.dtype());
        if time == 0 {
            return x;
        }
        let positions = sinusoids(from, time, dim, &x.device()).cast(dtype).unsqueeze_dim(0);
        self.dropout.forward(x.mul_scalar((dim as f64).sqrt()) + positions)
    }

    /// The projection behind the last layer, `[batch, time, D]` to `[batch, time, V]`.
    ///
    /// # Panics
    ///
    /// When `x` does not have D channels.
    pub fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        x.matmul(self.embed_tokens.weight.val().transpose().unsqueeze_dim(0))
    }
}

/// Hands out assignments layer by layer.
pub(super) struct Remaining<'a>(std::slice::Iter<'a, ExpertAssignment>);

impl<'a> Remaining<'a> {
    pub fn new(side: &str, experts: &'a [ExpertAssignment], layers: usize) -> Result<Self, InputError> {
        if experts.len() != layers {
            let need = format!("{layers}, one for each {side} layer with experts");
            return Err(InputError::new("experts", format!("{} assignments", experts.len()), need));
        }
        Ok(Self(experts.iter()))
    }

    /// The next one, for a layer that has experts.
    pub fn next(&mut self, has_experts: bool) -> Option<&'a ExpertAssignment> {
        if has_experts { self.0.next() } else { None }
    }
}

pub(super) fn normed(norm: &Option<LayerNorm>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}

/// `p[t, 2i] = sin(t / 10000^(2i / D))`, `p[t, 2i + 1] = cos(..)`, `[time, D]`, from position `from`.
/// Vaswani et al. (arXiv 1706.03762), section 3.5.
fn sinusoids(from: usize, time: usize, dim: usize, device: &Device) -> Tensor<2> {
    let value = |position: usize, channel: usize| {
        let rate = 10000f64.powf(-((channel / 2 * 2) as f64) / dim as f64);
        let angle = position as f64 * rate;
        if channel.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    let positions = from..from + time;
    let values: Vec<f64> =
        positions.flat_map(|position| (0..dim).map(move |channel| value(position, channel))).collect();
    Tensor::from_data(TensorData::new(values, [time, dim]), device)
}
