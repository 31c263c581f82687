//! The head on a small transformer encoder.

use burn::config::Config;
use burn::module::Module;
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{Embedding, LayerNorm, LayerNormConfig};
use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes, init};

use super::config::HectoConfig;
use super::head::{HectoHead, HectoOutput, check_mask};

/// Configuration of [`HectoModel`].
#[derive(Config, Debug)]
pub struct HectoModelConfig {
    /// Number of tokens, `[CLS]` among them.
    pub vocab_size: usize,
    /// Projection, gate and experts; the encoder is as wide as its `encoder_dim`.
    pub head: HectoConfig,
    /// Layers of the encoder.
    #[config(default = 2)]
    pub num_layers: usize,
    /// Heads of its attention, which divide its width.
    #[config(default = 4)]
    pub num_heads: usize,
    /// Inner width of its feed-forward layers; `None` (the default): four times its own.
    #[config(default = "None")]
    pub intermediate_size: Option<usize>,
    /// Longest sequence: the number of learned positions.
    #[config(default = 512)]
    pub max_length: usize,
    /// Share that is dropped in training, in [0, 1).
    #[config(default = 0.1)]
    pub dropout: f64,
}

impl ModuleConfig for HectoModelConfig {
    type Module = HectoModel;

    fn try_init(&self, device: &Device) -> Result<HectoModel, ConfigError> {
        let width = self.head.encoder_dim;
        let inner = self.intermediate_size.unwrap_or(width.saturating_mul(4));
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("intermediate_size", inner),
            ("max_length", self.max_length),
        ])?;
        let head = self.head.try_init(device).map_err(|error| error.within("head"))?;
        if !width.is_multiple_of(self.num_heads) {
            let need = format!("a divisor of the encoder's width {width}");
            return Err(ConfigError::new("num_heads", self.num_heads, need));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "a share in [0, 1)"));
        }
        let encoder = TransformerEncoderConfig::new(width, inner, self.num_heads, self.num_layers);
        Ok(HectoModel {
            word_embeddings: init::embedding(self.vocab_size, width, device),
            position_embeddings: init::embedding(self.max_length, width, device),
            norm: LayerNormConfig::new(width).init(device),
            encoder: encoder.with_dropout(self.dropout).init(device),
            head,
        })
    }
}

/// A small encoder (token and position embeddings, a norm, transformer layers) with a [`HectoHead`].
///
/// For states of a trained encoder (DistilBERT in the paper) use the head alone.
#[derive(Module, Debug)]
pub struct HectoModel {
    /// `[vocab_size, encoder_dim]`.
    pub word_embeddings: Embedding,
    /// `[max_length, encoder_dim]`.
    pub position_embeddings: Embedding,
    /// Norm of their sum.
    pub norm: LayerNorm,
    /// The layers.
    pub encoder: TransformerEncoder,
    /// Projection, gate and experts.
    pub head: HectoHead,
}

impl HectoModel {
    /// The encoder's states `[batch, time, encoder_dim]`; arguments and errors as
    /// [`forward`](Self::forward).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn encode(&self, input_ids: Tensor<2, Int>, mask: &Tensor<2, Bool>) -> Result<Tensor<3>, InputError> {
        let [batch, time] = input_ids.dims();
        assert!(
            mask.dims() == [batch, time],
            "HectoModel: `input_ids` {:?} with `mask` {:?}",
            [batch, time],
            mask.dims()
        );
        let [longest, _] = self.position_embeddings.weight.shape().dims();
        if time > longest || time == 0 {
            return Err(InputError::new("input_ids", format!("{time} tokens"), format!("1 to {longest}")));
        }
        let [vocabulary, _] = self.word_embeddings.weight.shape().dims();
        let known = |id: i64| usize::try_from(id).is_ok_and(|id| id < vocabulary);
        if let Some(id) = input_ids.to_data().iter::<i64>().find(|id| !known(*id)) {
            return Err(InputError::new("input_ids", format!("token {id}"), format!("0 .. {vocabulary}")));
        }
        check_mask(mask)?;
        let positions = Tensor::<1, Int>::arange(0..time as i64, &input_ids.device()).unsqueeze_dim(0);
        let states = self.word_embeddings.forward(input_ids) + self.position_embeddings.forward(positions);
        let input = TransformerEncoderInput::new(self.norm.forward(states)).mask_pad(mask.clone().bool_not());
        Ok(self.encoder.forward(input))
    }

    /// Token ids to outputs, probabilities and choice.
    ///
    /// # Shapes
    ///
    /// - `input_ids`: `[batch, time]`, `[CLS]` at position 0
    /// - `mask`: `[batch, time]`, true where a token counts; padding stands right
    ///
    /// # Errors
    ///
    /// [`InputError`] for an id outside the vocabulary, a sequence of no token or longer than
    /// `max_length`, and as [`HectoHead::forward`].
    ///
    /// # Panics
    ///
    /// When the mask has another shape.
    pub fn forward(
        &self,
        input_ids: Tensor<2, Int>,
        mask: Tensor<2, Bool>,
    ) -> Result<HectoOutput, InputError> {
        self.head.forward(self.encode(input_ids, &mask)?, mask)
    }
}
