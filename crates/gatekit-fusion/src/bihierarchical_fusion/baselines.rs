//! What bidirectional fusion is compared with.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::ConfigError;
use gatekit_core::cross_modal::zero_masked;

use super::assert_branches;
use super::config::BiHierarchicalConfig;
use super::graph::ResidueGraph;
use super::layers::{MessagePassingLayer, SequenceLayer, StructureLayer, TransformerLayer};

/// One branch after the other: the sequence branch's result is added to what the structure branch starts with.
#[derive(Module, Debug)]
pub struct SerialFusion {
    /// The sequence branch.
    pub sequence: Vec<TransformerLayer>,
    /// From its result to the structure branch.
    pub between: Linear,
    /// The structure branch.
    pub structure: Vec<MessagePassingLayer>,
    /// To the common channels.
    pub project: Linear,
}

/// Both branches alone, joined at the end.
#[derive(Module, Debug)]
pub struct LateFusion {
    /// The sequence branch.
    pub sequence: Vec<TransformerLayer>,
    /// The structure branch.
    pub structure: Vec<MessagePassingLayer>,
    /// From both to the common channels.
    pub project: Linear,
}

/// The layers of both branches.
fn branches(
    config: &BiHierarchicalConfig,
    device: &Device,
) -> Result<(Vec<TransformerLayer>, Vec<MessagePassingLayer>), ConfigError> {
    gatekit_core::check_sizes(&[("levels", config.levels), ("fusion_dim", config.fusion_dim)])?;
    let levels = || 0..config.levels;
    Ok((
        levels().map(|_| config.sequence_layer(device)).collect::<Result<_, _>>()?,
        levels().map(|_| config.structure_layer(device)).collect::<Result<_, _>>()?,
    ))
}

impl SerialFusion {
    /// With the branches of `config`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn new(config: &BiHierarchicalConfig, device: &Device) -> Result<Self, ConfigError> {
        let (sequence, structure) = branches(config, device)?;
        Ok(Self {
            sequence,
            between: LinearConfig::new(config.sequence_dim, config.structure_dim).init(device),
            structure,
            project: LinearConfig::new(config.structure_dim, config.fusion_dim).init(device),
        })
    }

    /// Features of the residues, `[B, N, fusion_dim]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, sequence: Tensor<3>, structure: Tensor<3>, graph: &ResidueGraph) -> Tensor<3> {
        assert_branches("SerialFusion", &sequence, &structure, &graph.mask);
        let s = self.sequence.iter().fold(sequence, |s, layer| layer.forward(s, &graph.mask));
        let x = structure + self.between.forward(s);
        let x = self.structure.iter().fold(x, |x, layer| layer.forward(x, graph));
        zero_masked(self.project.forward(x), &graph.mask)
    }
}

impl LateFusion {
    /// With the branches of `config`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn new(config: &BiHierarchicalConfig, device: &Device) -> Result<Self, ConfigError> {
        let (sequence, structure) = branches(config, device)?;
        let both = config.sequence_dim + config.structure_dim;
        Ok(Self { sequence, structure, project: LinearConfig::new(both, config.fusion_dim).init(device) })
    }

    /// Features of the residues, `[B, N, fusion_dim]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, sequence: Tensor<3>, structure: Tensor<3>, graph: &ResidueGraph) -> Tensor<3> {
        assert_branches("LateFusion", &sequence, &structure, &graph.mask);
        let s = self.sequence.iter().fold(sequence, |s, layer| layer.forward(s, &graph.mask));
        let x = self.structure.iter().fold(structure, |x, layer| layer.forward(x, graph));
        zero_masked(self.project.forward(Tensor::cat(vec![s, x], 2)), &graph.mask)
    }
}
