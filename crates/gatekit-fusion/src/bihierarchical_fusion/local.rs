//! Fusion by votes, residue by residue.

use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::cross_modal::{VoteGate, VoteGateConfig, zero_masked};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::assert_branches;

/// Configuration of [`LocalFusion`].
#[derive(Config, Debug)]
pub struct LocalFusionConfig {
    /// Channels of the sequence branch.
    pub sequence_dim: usize,
    /// Channels of the structure branch.
    pub structure_dim: usize,
    /// Common channels C. Default 128.
    #[config(default = 128)]
    pub fusion_dim: usize,
    /// Inner width of a voter. `None` (the default): C.
    #[config(default = "None")]
    pub vote_hidden: Option<usize>,
    /// One voter for both branches. Default false.
    #[config(default = false)]
    pub shared_votes: bool,
}

impl ModuleConfig for LocalFusionConfig {
    type Module = LocalFusion;

    fn try_init(&self, device: &Device) -> Result<LocalFusion, ConfigError> {
        let (sequence, structure, common) = (self.sequence_dim, self.structure_dim, self.fusion_dim);
        check_sizes(&[
            ("sequence_dim", sequence),
            ("structure_dim", structure),
            ("fusion_dim", common),
            ("vote_hidden", self.vote_hidden.unwrap_or(common)),
        ])?;
        let gate =
            VoteGateConfig::new(common, 2).with_hidden(self.vote_hidden).with_shared(self.shared_votes);
        Ok(LocalFusion {
            sequence_proj: LinearConfig::new(sequence, common).init(device),
            structure_proj: LinearConfig::new(structure, common).init(device),
            gate: gate.try_init(device)?,
            to_sequence: silent(common, sequence, device),
            to_structure: silent(common, structure, device),
        })
    }
}

/// A projection that says nothing at first, so that a trained branch starts as it was.
pub(super) fn silent(from: usize, to: usize, device: &Device) -> Linear {
    Linear {
        bias: Some(Initializer::Zeros.init([to], device)),
        ..LinearConfig::new(from, to).with_bias(false).with_initializer(Initializer::Zeros).init(device)
    }
}

/// `u1 = P1 s`, `u2 = P2 x`; `g = softmax(f1(u1) + f2(u2))`, `z = g_1 u1 + g_2 u2` ([`VoteGate`]);
/// fed back as `s + A1 z`, `x + A2 z`.
///
/// The feedback starts at 0.
#[derive(Module, Debug)]
pub struct LocalFusion {
    /// `P1`.
    pub sequence_proj: Linear,
    /// `P2`.
    pub structure_proj: Linear,
    /// The votes.
    pub gate: VoteGate,
    /// `A1`.
    pub to_sequence: Linear,
    /// `A2`.
    pub to_structure: Linear,
}

/// What a fusion makes of both branches.
#[derive(Debug, Clone)]
pub struct Fused {
    /// The mixture, `[B, N, C]`.
    pub fused: Tensor<3>,
    /// The sequence branch with its feedback, `[B, N, sequence_dim]`.
    pub sequence: Tensor<3>,
    /// The structure branch with its feedback, `[B, N, structure_dim]`.
    pub structure: Tensor<3>,
    /// Weights of both branches, `[B, N, 2]`; none for the fusion by attention.
    pub gates: Option<Tensor<3>>,
}

impl LocalFusion {
    /// `sequence` `[B, N, sequence_dim]`, `structure` `[B, N, structure_dim]`, `mask` `[B, N]`. What the branches hold where there is
    /// no residue is not looked at.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, sequence: Tensor<3>, structure: Tensor<3>, mask: &Tensor<2, Bool>) -> Fused {
        assert_branches("LocalFusion", &sequence, &structure, mask);
        let (sequence, structure) = (zero_masked(sequence, mask), zero_masked(structure, mask));
        let u =
            [self.sequence_proj.forward(sequence.clone()), self.structure_proj.forward(structure.clone())];
        let (z, gates) = self.gate.forward(&u, None);
        let masked = |x| zero_masked(x, mask);
        Fused {
            sequence: masked(sequence + self.to_sequence.forward(z.clone())),
            structure: masked(structure + self.to_structure.forward(z.clone())),
            fused: masked(z),
            gates: Some(masked(gates)),
        }
    }

    /// What published files call the tensors whose names begin with `prefix`.
    pub fn tensor_layout(layout: TensorLayout, prefix: &str, shared_votes: bool) -> TensorLayout {
        let names: &[&str] = if shared_votes { &["votes"] } else { &["sequence_votes", "structure_votes"] };
        names.iter().enumerate().fold(layout, |layout, (index, name)| {
            layout.with_prefix(&format!("{prefix}gate.votes.{index}."), &format!("{prefix}{name}."))
        })
    }
}
