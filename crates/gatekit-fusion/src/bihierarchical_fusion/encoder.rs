//! Levels of both branches, each followed by a fusion that both hear of.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Bool, Tensor};
use gatekit_core::cross_modal::masked_mean;

use super::assert_branches;
use super::global::GlobalFusion;
use super::graph::ResidueGraph;
use super::layers::{SequenceLayer, StructureLayer};
use super::local::{Fused, LocalFusion};

/// A fusion of either kind; the variants leave no trace in parameter names.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // There is one a level, and modules are not moved about.
pub enum Fusion {
    /// By votes.
    Local(LocalFusion),
    /// By attention.
    Global(GlobalFusion),
}

impl Fusion {
    /// As [`LocalFusion::forward`] and [`GlobalFusion::forward`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn forward(&self, sequence: Tensor<3>, structure: Tensor<3>, mask: &Tensor<2, Bool>) -> Fused {
        match self {
            Self::Local(fusion) => fusion.forward(sequence, structure, mask),
            Self::Global(fusion) => fusion.forward(sequence, structure, mask),
        }
    }
}

/// A layer of either branch and their fusion.
#[derive(Module, Debug)]
pub struct Level<S, T> {
    /// Of the sequence branch.
    pub sequence: S,
    /// Of the structure branch.
    pub structure: T,
    /// Of both.
    pub fusion: Fusion,
}

/// At every level `s = Seq(s)`, `x = Struct(x)`, then a fusion whose mixture goes back into both; what comes of the last
/// mixture are features of residues, their mean, and the head's result.
#[derive(Module, Debug)]
pub struct BiHierarchicalEncoder<S, T> {
    /// The levels.
    pub levels: Vec<Level<S, T>>,
    /// From the pooled features, or from those of every residue.
    pub head: Linear,
}

/// What the encoder makes of proteins.
#[derive(Debug, Clone)]
pub struct BiHierarchicalOutput {
    /// `[B, N, C]`, 0 where there is no residue.
    pub residues: Tensor<3>,
    /// Mean over the residues, `[B, C]`; 0 for a protein without any.
    pub pooled: Tensor<2>,
    /// `[B, output_dim]`.
    pub logits: Tensor<2>,
    /// The weights of both branches, `[B, N, 2]`, a level; none for the fusion by attention.
    pub gates: Vec<Tensor<3>>,
}

impl<S: SequenceLayer, T: StructureLayer> BiHierarchicalEncoder<S, T> {
    /// `sequence` `[B, N, sequence_dim]` and `structure` `[B, N, structure_dim]` over a graph of B proteins.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(
        &self,
        sequence: Tensor<3>,
        structure: Tensor<3>,
        graph: &ResidueGraph,
    ) -> BiHierarchicalOutput {
        assert_branches("BiHierarchicalEncoder", &sequence, &structure, &graph.mask);
        let (mut s, mut x, mut gates) = (sequence, structure, Vec::new());
        let mut fused = None;
        for level in &self.levels {
            s = level.sequence.forward(s, &graph.mask);
            x = level.structure.forward(x, graph);
            let result = level.fusion.forward(s, x, &graph.mask);
            gates.extend(result.gates);
            (s, x) = (result.sequence, result.structure);
            fused = Some(result.fused);
        }
        let residues = fused.expect("there is a level");
        let pooled = masked_mean(residues.clone(), &graph.mask);
        let logits = self.head.forward(pooled.clone());
        BiHierarchicalOutput { residues, pooled, logits, gates }
    }

    /// The head's result for every residue instead of the protein: `[B, N, C]` (the [`residues`] of an output) to
    /// `[B, N, output_dim]`. For labels of residues, as binding sites and epitopes are.
    ///
    /// [`residues`]: BiHierarchicalOutput::residues
    pub fn residue_logits(&self, residues: Tensor<3>) -> Tensor<3> {
        self.head.forward(residues)
    }
}
