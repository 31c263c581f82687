//! Bidirectional hierarchical fusion of a sequence branch and a structure branch.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | widths, levels, kind of fusion |
//! | [`graph`] | residues, edges and distances, checked |
//! | [`local`], [`global`] | fusion by votes a residue, and by attention over both branches |
//! | [`layers`] | the traits of the branches, and small layers of our own |
//! | [`encoder`] | levels of both branches and a fusion |
//! | [`loss`] | of proteins' classes and quantities, and of residues' labels |
//! | [`baselines`] | one branch after the other, and joining at the end |
//!
//! Features are `[B, N, channels]`, a mask `[B, N]` is true where there is a residue; every result is 0 where there is
//! none. Liu et al., "Bidirectional Hierarchical Protein Multi-Modal Representation Learning" (arXiv 2504.04770).

pub mod baselines;
pub mod config;
pub mod encoder;
pub mod global;
pub mod graph;
pub mod layers;
pub mod local;
pub mod loss;

pub use baselines::{LateFusion, SerialFusion};
pub use config::{BiHierarchicalConfig, FusionKind, GlobalLayout};
pub use encoder::{BiHierarchicalEncoder, BiHierarchicalOutput, Fusion, Level};
pub use global::{GlobalFusion, GlobalFusionConfig};
pub use graph::ResidueGraph;
pub use layers::{MessagePassingLayer, SequenceLayer, StructureLayer, TransformerLayer};
pub use local::{Fused, LocalFusion, LocalFusionConfig};

use burn::tensor::{Bool, Tensor};

/// Branches and mask that belong together.
pub(crate) fn assert_branches(of: &str, sequence: &Tensor<3>, structure: &Tensor<3>, mask: &Tensor<2, Bool>) {
    let ([batch, residues, _], other) = (sequence.dims(), structure.dims());
    assert!(
        other[..2] == [batch, residues] && mask.dims() == [batch, residues],
        "{of}: `sequence` {:?}, `structure` {other:?} and `mask` {:?} differ in batch or residues",
        sequence.dims(),
        mask.dims()
    );
}
