//! What the encoder is made of.

use burn::config::Config;
use burn::nn::LinearConfig;
use burn::tensor::Device;
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::encoder::{BiHierarchicalEncoder, Fusion, Level};
use super::global::GlobalFusionConfig;
pub use super::global::GlobalLayout;
use super::layers::{MessagePassingLayer, SequenceLayer, StructureLayer, TransformerLayer};
use super::local::{LocalFusion, LocalFusionConfig};

/// How levels are fused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FusionKind {
    /// By votes, residue by residue.
    Local,
    /// By attention over both branches.
    Global,
}

/// Configuration of [`BiHierarchicalEncoder`].
#[derive(Config, Debug)]
pub struct BiHierarchicalConfig {
    /// Channels of the sequence branch; 1280 in ESM-2 650M.
    pub sequence_dim: usize,
    /// Channels of the head's result.
    pub output_dim: usize,
    /// Channels of the structure branch. Default 128.
    #[config(default = 128)]
    pub structure_dim: usize,
    /// Common channels C. Default 128.
    #[config(default = 128)]
    pub fusion_dim: usize,
    /// How levels are fused. Default by votes.
    #[config(default = "FusionKind::Local")]
    pub fusion: FusionKind,
    /// Inner width of a voter. `None` (the default): C.
    #[config(default = "None")]
    pub vote_hidden: Option<usize>,
    /// One voter for both branches. Default false.
    #[config(default = false)]
    pub shared_votes: bool,
    /// Heads of the fusion by attention. Default 4.
    #[config(default = 4)]
    pub num_heads: usize,
    /// How that fusion makes tokens. Default 2N of width C.
    #[config(default = "GlobalLayout::Tokens")]
    pub layout: GlobalLayout,
    /// Levels, at least 1. Default 3.
    #[config(default = 3)]
    pub levels: usize,
    /// Heads of our own sequence layers. Default 4.
    #[config(default = 4)]
    pub sequence_heads: usize,
    /// Gaussians of our own structure layers. Default 16.
    #[config(default = 16)]
    pub radial_basis: usize,
    /// Largest distance in angstrom. Default 10.
    #[config(default = 10.0)]
    pub cutoff: f64,
}

impl BiHierarchicalConfig {
    /// A fusion of this configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn fusion(&self, device: &Device) -> Result<Fusion, ConfigError> {
        Ok(match self.fusion {
            FusionKind::Local => Fusion::Local(
                LocalFusionConfig::new(self.sequence_dim, self.structure_dim)
                    .with_fusion_dim(self.fusion_dim)
                    .with_vote_hidden(self.vote_hidden)
                    .with_shared_votes(self.shared_votes)
                    .try_init(device)?,
            ),
            FusionKind::Global => Fusion::Global(
                GlobalFusionConfig::new(self.sequence_dim, self.structure_dim)
                    .with_fusion_dim(self.fusion_dim)
                    .with_num_heads(self.num_heads)
                    .with_layout(self.layout)
                    .try_init(device)?,
            ),
        })
    }

    /// A sequence layer of our own.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn sequence_layer(&self, device: &Device) -> Result<TransformerLayer, ConfigError> {
        check_sizes(&[("sequence_dim", self.sequence_dim), ("sequence_heads", self.sequence_heads)])?;
        if !self.sequence_dim.is_multiple_of(self.sequence_heads) {
            let need = format!("a divisor of sequence_dim = {}", self.sequence_dim);
            return Err(ConfigError::new("sequence_heads", self.sequence_heads, need));
        }
        TransformerLayer::new(self.sequence_dim, self.sequence_heads, device)
    }

    /// A structure layer of our own.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn structure_layer(&self, device: &Device) -> Result<MessagePassingLayer, ConfigError> {
        MessagePassingLayer::new(self.structure_dim, self.radial_basis, self.cutoff, device)
    }

    /// An encoder over given branches, one layer a level each.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for no levels, branches of unequal depth, or another field that cannot be used.
    pub fn with_branches<S: SequenceLayer, T: StructureLayer>(
        &self,
        sequence: Vec<S>,
        structure: Vec<T>,
        device: &Device,
    ) -> Result<BiHierarchicalEncoder<S, T>, ConfigError> {
        check_sizes(&[("levels", self.levels), ("output_dim", self.output_dim)])?;
        if sequence.len() != self.levels || structure.len() != self.levels {
            let got = format!("{} sequence and {} structure layers", sequence.len(), structure.len());
            return Err(ConfigError::new("levels", got, format!("{} of each", self.levels)));
        }
        let levels = sequence.into_iter().zip(structure);
        let levels = levels
            .map(|(sequence, structure)| Ok(Level { sequence, structure, fusion: self.fusion(device)? }))
            .collect::<Result<_, ConfigError>>()?;
        let head = LinearConfig::new(self.fusion_dim, self.output_dim).init(device);
        Ok(BiHierarchicalEncoder { levels, head })
    }

    /// What published files call the tensors.
    pub fn tensor_layout(&self) -> TensorLayout {
        match self.fusion {
            FusionKind::Local => {
                LocalFusion::tensor_layout(TensorLayout::default(), "levels.{}.fusion.", self.shared_votes)
            }
            FusionKind::Global => TensorLayout::default(),
        }
    }
}

impl ModuleConfig for BiHierarchicalConfig {
    type Module = BiHierarchicalEncoder<TransformerLayer, MessagePassingLayer>;

    fn try_init(&self, device: &Device) -> Result<Self::Module, ConfigError> {
        let levels = || 0..self.levels;
        let sequence = levels().map(|_| self.sequence_layer(device)).collect::<Result<_, _>>()?;
        let structure = levels().map(|_| self.structure_layer(device)).collect::<Result<_, _>>()?;
        self.with_branches(sequence, structure, device)
    }
}
