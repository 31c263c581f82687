//! What the network is made of.

use burn::config::Config;
use burn::nn::conv::Conv1dConfig;
use burn::nn::{DropoutConfig, PaddingConfig1d};
use burn::tensor::Device;
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::encoder::CrossModalEncoderConfig;
use super::gating::ModalityGatingConfig;
use super::loss::{TouchFormerLoss, TouchFormerLossConfig};
use super::model::TouchFormer;
use super::{check_shares, linear};

/// How sensors are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// By gates that see them, with a threshold: modality-adaptive gating.
    Adaptive,
    /// All that are present alike: what the gates are compared with.
    Equal,
}

/// Configuration of [`TouchFormer`].
#[derive(Config, Debug)]
pub struct TouchFormerConfig {
    /// Features of each of M sensors, at least 2 sensors; in the paper sound, normal force, friction and acceleration,
    /// 24 each.
    pub input_dims: Vec<usize>,
    /// Classes.
    pub output_dim: usize,
    /// Steps that the temporal convolution of each sensor sees, odd. `None` (the default): 1 for all.
    #[config(default = "None")]
    pub kernel_sizes: Option<Vec<usize>>,
    /// Common channels d, at least 4 and a multiple of `num_heads`. Default 32.
    #[config(default = 32)]
    pub dim: usize,
    /// Heads. Default 4.
    #[config(default = 4)]
    pub num_heads: usize,
    /// Layers of an encoder between two sensors. Default 3.
    #[config(default = 3)]
    pub layers: usize,
    /// Layers of an encoder within a sensor. Default 3.
    #[config(default = 3)]
    pub memory_layers: usize,
    /// No encoder looks ahead. Default false.
    #[config(default = false)]
    pub attn_mask: bool,
    /// How sensors are weighed. Default by gates.
    #[config(default = "Weighting::Adaptive")]
    pub weighting: Weighting,
    /// Hidden width of a gate. `None` (the default): d.
    #[config(default = "None")]
    pub gate_hidden: Option<usize>,
    /// One gate network for all sensors. Default true.
    #[config(default = true)]
    pub gate_shared: bool,
    /// A sensor whose gate is below it is dropped; in [0, 1). Default 0.3.
    #[config(default = 0.3)]
    pub gate_threshold: f64,
    /// Share of the attention weights that is dropped in training. Default 0.1.
    #[config(default = 0.1)]
    pub attn_dropout: f64,
    /// The same behind the encoders' ReLU. Default 0.1.
    #[config(default = 0.1)]
    pub relu_dropout: f64,
    /// The same on what the encoders' sublayers add. Default 0.1.
    #[config(default = 0.1)]
    pub res_dropout: f64,
    /// The same on the gated embeddings. Default 0.25.
    #[config(default = 0.25)]
    pub embed_dropout: f64,
    /// The same in the head. Default 0.1.
    #[config(default = 0.1)]
    pub out_dropout: f64,
    /// Of the regularisation, above 0. Default 0.2.
    #[config(default = 0.2)]
    pub temperature: f64,
    /// Of the regularisation, at least 0. Default 0.1.
    #[config(default = 0.1)]
    pub regularization_weight: f64,
}

impl TouchFormerConfig {
    /// What [`ModuleConfig::try_init`] checks besides its parts.
    fn check(&self) -> Result<(), ConfigError> {
        let count = self.input_dims.len();
        if count < 2 {
            return Err(ConfigError::new("input_dims", format!("{count} sensors"), "at least 2"));
        }
        for (m, &width) in self.input_dims.iter().enumerate() {
            check_sizes(&[(&format!("input_dims[{m}]"), width)])?;
        }
        if let Some(kernels) = &self.kernel_sizes {
            if kernels.len() != count {
                let need = format!("{count}, one a sensor");
                return Err(ConfigError::new("kernel_sizes", format!("{} sizes", kernels.len()), need));
            }
            if let Some(even) = kernels.iter().find(|size| size.is_multiple_of(2)) {
                return Err(ConfigError::new("kernel_sizes", even, "odd sizes"));
            }
            for (m, &size) in kernels.iter().enumerate() {
                check_sizes(&[(&format!("kernel_sizes[{m}]"), size)])?;
            }
        }
        check_sizes(&[("output_dim", self.output_dim), ("memory_layers", self.memory_layers)])?;
        if self.dim < 4 {
            return Err(ConfigError::new("dim", self.dim, "at least 4"));
        }
        check_shares(&[("embed_dropout", self.embed_dropout), ("out_dropout", self.out_dropout)])?;
        self.loss().map(|_| ())
    }

    /// The loss with this temperature and weight.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn loss(&self) -> Result<TouchFormerLoss, ConfigError> {
        TouchFormerLossConfig::new()
            .with_temperature(self.temperature)
            .with_regularization_weight(self.regularization_weight)
            .try_init()
    }

    fn gating(&self) -> ModalityGatingConfig {
        ModalityGatingConfig::new(self.dim, self.input_dims.len())
            .with_gate_hidden(self.gate_hidden)
            .with_gate_shared(self.gate_shared)
            .with_gate_threshold(self.gate_threshold)
    }

    fn encoder(&self, layers: usize) -> CrossModalEncoderConfig {
        CrossModalEncoderConfig::new(self.dim)
            .with_num_heads(self.num_heads)
            .with_layers(layers)
            .with_attn_mask(self.attn_mask)
            .with_attn_dropout(self.attn_dropout)
            .with_relu_dropout(self.relu_dropout)
            .with_res_dropout(self.res_dropout)
    }

    /// What published files call the tensors.
    pub fn tensor_layout(&self) -> TensorLayout {
        self.gating().tensor_layout(TensorLayout::default(), "mag.", "mag.")
    }
}

impl ModuleConfig for TouchFormerConfig {
    type Module = TouchFormer;

    fn try_init(&self, device: &Device) -> Result<TouchFormer, ConfigError> {
        self.check()?;
        let (dim, sensors) = (self.dim, self.input_dims.len());
        let mag = self.gating().try_init(device)?;
        let conv = |(m, &width): (usize, &usize)| {
            let size = self.kernel_sizes.as_ref().map_or(1, |sizes| sizes[m]);
            let padding = PaddingConfig1d::Explicit(size / 2, size / 2);
            Conv1dConfig::new(width, dim, size).with_bias(false).with_padding(padding).init(device)
        };
        let between = |target: usize| {
            let from = |source: usize| {
                (source != target).then(|| self.encoder(self.layers).try_init(device)).transpose()
            };
            (0..sensors).map(from).collect::<Result<Vec<_>, _>>()
        };
        let within = |_| self.encoder(self.memory_layers).try_init(device);
        let width = sensors * dim;
        Ok(TouchFormer {
            proj: self.input_dims.iter().enumerate().map(conv).collect(),
            mag: (self.weighting == Weighting::Adaptive).then_some(mag),
            trans: (0..sensors).map(between).collect::<Result<_, _>>()?,
            mem: (0..sensors).map(within).collect::<Result<_, _>>()?,
            proj1: linear(width, width, 0.0, device),
            proj2: linear(width, width, 0.0, device),
            out_layer: linear(width, self.output_dim, 0.0, device),
            embed_dropout: DropoutConfig::new(self.embed_dropout).init(),
            out_dropout: DropoutConfig::new(self.out_dropout).init(),
        })
    }
}
