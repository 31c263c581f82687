//! What the model is made of.

use burn::config::Config;
use burn::nn::LinearConfig;
use burn::tensor::Device;
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::gate::GateLevel;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::carry_forward::CarryForward;
use super::encoder::InterleavedEncoderConfig;
use super::late::{LateFusionEncoder, StreamEncoder};
use super::model::IrregularEhrModel;
use super::time_attention::MultiTimeAttentionConfig;
use super::utde::UtdeConfig;

/// What is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One of two classes: softmax.
    Binary,
    /// Any of the classes: sigmoids.
    Multilabel,
}

/// How the two embeddings of a series become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeriesMixing {
    /// By the gate, as published.
    Gated,
    /// Half of each: no gate.
    EqualHalves,
    /// The interpolation alone.
    Interpolation,
    /// The imputation alone.
    Imputation,
}

/// How the streams of notes and series become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamFusion {
    /// Interleaved self- and cross-attention, as published.
    Interleaved,
    /// Each alone, joined at the end.
    Late,
}

/// Configuration of [`IrregularEhrModel`]. Defaults are those of the paper's 48-hour mortality.
#[derive(Config, Debug)]
pub struct IrregularEhrConfig {
    /// Measured channels d. Default 17.
    #[config(default = 17)]
    pub d_in: usize,
    /// Points of the grid Q, one every `hours_per_step`. Default 48.
    #[config(default = 48)]
    pub grid: usize,
    /// Width of the time embedding E, at least 2 and a multiple of `time_heads`. Default 64.
    #[config(default = 64)]
    pub embed_time: usize,
    /// Heads of the time attentions. Default 8.
    #[config(default = 8)]
    pub time_heads: usize,
    /// Width of a stream D, a multiple of `heads`. Default 128.
    #[config(default = 128)]
    pub d_model: usize,
    /// What has a gate of its own; chosen on validation in the paper. Default a step and channel.
    #[config(default = "GateLevel::BatchSeqFeature")]
    pub gate_level: GateLevel,
    /// Heads of the fusion. Default 8.
    #[config(default = 8)]
    pub heads: usize,
    /// Layers of the fusion. Default 3.
    #[config(default = 3)]
    pub cross_layers: usize,
    /// Width of a note's vector. Default 768.
    #[config(default = 768)]
    pub note_dim: usize,
    /// What is predicted. Default one of two classes.
    #[config(default = "Task::Binary")]
    pub task: Task,
    /// Classes. `None` (the default): 2, or 25 of a multilabel task.
    #[config(default = "None")]
    pub classes: Option<usize>,
    /// Hours of a point of the grid. Default 1.
    #[config(default = 1.0)]
    pub hours_per_step: f64,
    /// What is carried forward before the first observation. Default 0, the mean of a standardised channel.
    #[config(default = 0.0)]
    pub fill: f64,
    /// Share that is dropped in training of attention weights, of what the gate sees and of what the layers add, in
    /// [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub dropout: f64,
    /// How the two embeddings of a series are mixed. Default by the gate.
    #[config(default = "SeriesMixing::Gated")]
    pub mixing: SeriesMixing,
    /// How the streams are fused. Default interleaved.
    #[config(default = "StreamFusion::Interleaved")]
    pub fusion: StreamFusion,
}

impl IrregularEhrConfig {
    /// Classes of the task.
    pub fn num_classes(&self) -> usize {
        self.classes.unwrap_or(match self.task {
            Task::Binary => 2,
            Task::Multilabel => 25,
        })
    }

    /// The series' part.
    pub fn utde(&self) -> UtdeConfig {
        UtdeConfig::new(self.d_in)
            .with_grid(self.grid)
            .with_embed_time(self.embed_time)
            .with_time_heads(self.time_heads)
            .with_d_model(self.d_model)
            .with_gate_level(self.gate_level)
            .with_mixing(self.mixing)
            .with_dropout(self.dropout)
    }

    /// The fusion's part.
    pub fn encoder(&self) -> InterleavedEncoderConfig {
        InterleavedEncoderConfig::new()
            .with_grid(self.grid)
            .with_d_model(self.d_model)
            .with_heads(self.heads)
            .with_cross_layers(self.cross_layers)
            .with_dropout(self.dropout)
    }

    /// How series are carried forward.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn carry_forward(&self) -> Result<CarryForward, ConfigError> {
        CarryForward::new(self.grid, self.hours_per_step, self.fill)
    }

    /// What published files call the tensors.
    pub fn tensor_layout(&self) -> TensorLayout {
        UtdeConfig::tensor_layout("utde.")
    }
}

impl ModuleConfig for IrregularEhrConfig {
    type Module = IrregularEhrModel;

    fn try_init(&self, device: &Device) -> Result<IrregularEhrModel, ConfigError> {
        let (width, classes) = (self.d_model, self.num_classes());
        check_sizes(&[("d_model", width), ("note_dim", self.note_dim), ("classes", classes)])?;
        if self.task == Task::Binary && classes != 2 {
            return Err(ConfigError::new("classes", classes, "2 of a binary task"));
        }
        self.carry_forward()?;
        let notes = MultiTimeAttentionConfig::new(self.note_dim, width)
            .with_grid(self.grid)
            .with_embed_time(self.embed_time)
            .with_time_heads(self.time_heads)
            .with_dropout(self.dropout);
        let fusion = match self.fusion {
            StreamFusion::Interleaved => StreamEncoder::Interleaved(self.encoder().try_init(device)?),
            StreamFusion::Late => StreamEncoder::Late(LateFusionEncoder::new(&self.encoder(), device)?),
        };
        let linear = |to| LinearConfig::new(2 * width, to).init(device);
        Ok(IrregularEhrModel {
            utde: self.utde().try_init(device)?,
            time_attn: notes.try_init(device)?,
            trans_self_cross_ts_txt: fusion,
            proj1: linear(2 * width),
            proj2: linear(2 * width),
            out_layer: linear(classes),
            dropout: burn::nn::DropoutConfig::new(self.dropout).init(),
            task: self.task,
        })
    }
}

/// Refuses a share that dropout cannot drop.
pub(super) fn check_dropout(dropout: f64) -> Result<(), ConfigError> {
    match (0.0..1.0).contains(&dropout) {
        true => Ok(()),
        false => Err(ConfigError::new("dropout", dropout, "a share in [0, 1)")),
    }
}
