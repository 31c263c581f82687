//! Fusion by attention over the residues of both branches.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor};
use gatekit_core::attention::{MultiHeadAttention, MultiHeadAttentionConfig};
use gatekit_core::cross_modal::zero_masked;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::assert_branches;
use super::local::{Fused, silent};

/// How both branches become one set of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GlobalLayout {
    /// 2N tokens of width C.
    Tokens,
    /// N tokens of width 2C.
    Channels,
}

/// Configuration of [`GlobalFusion`].
#[derive(Config, Debug)]
pub struct GlobalFusionConfig {
    /// Channels of the sequence branch.
    pub sequence_dim: usize,
    /// Channels of the structure branch.
    pub structure_dim: usize,
    /// Common channels C. Default 128.
    #[config(default = 128)]
    pub fusion_dim: usize,
    /// Heads; a divisor of C, or of 2C with [`GlobalLayout::Channels`]. Default 4.
    #[config(default = 4)]
    pub num_heads: usize,
    /// How the tokens are made. Default 2N of width C.
    #[config(default = "GlobalLayout::Tokens")]
    pub layout: GlobalLayout,
}

impl ModuleConfig for GlobalFusionConfig {
    type Module = GlobalFusion;

    fn try_init(&self, device: &Device) -> Result<GlobalFusion, ConfigError> {
        let (sequence, structure, common) = (self.sequence_dim, self.structure_dim, self.fusion_dim);
        check_sizes(&[
            ("sequence_dim", sequence),
            ("structure_dim", structure),
            ("fusion_dim", common),
            ("num_heads", self.num_heads),
        ])?;
        let width = if self.layout == GlobalLayout::Tokens { common } else { 2 * common };
        if !width.is_multiple_of(self.num_heads) {
            return Err(ConfigError::new("num_heads", self.num_heads, format!("a divisor of {width}")));
        }
        let normal = Initializer::Normal { mean: 0.0, std: 0.02 };
        Ok(GlobalFusion {
            sequence_proj: LinearConfig::new(sequence, common).init(device),
            structure_proj: LinearConfig::new(structure, common).init(device),
            branch_embedding: normal.init([2, common], device),
            norm: LayerNormConfig::new(width).init(device),
            attention: MultiHeadAttentionConfig::new(width, self.num_heads).try_init(device)?,
            to_sequence: silent(common, sequence, device),
            to_structure: silent(common, structure, device),
            layout: self.layout,
        })
    }
}

/// `a = P1 s + t1`, `b = P2 x + t2`; z joins them along residues or channels and `z + MHSA(LN z)` splits into a and b
/// again; fused `(a + b) / 2`, fed back as `s + A1 a`, `x + A2 b`.
///
/// The feedback starts at 0, the branch vectors t normal(0, 0.02).
#[derive(Module, Debug)]
pub struct GlobalFusion {
    /// `P1`.
    pub sequence_proj: Linear,
    /// `P2`.
    pub structure_proj: Linear,
    /// `t1` and `t2`, `[2, C]`.
    pub branch_embedding: Param<Tensor<2>>,
    /// Before the attention.
    pub norm: LayerNorm,
    /// Over the tokens.
    pub attention: MultiHeadAttention,
    /// `A1`.
    pub to_sequence: Linear,
    /// `A2`.
    pub to_structure: Linear,
    #[module(skip)]
    layout: GlobalLayout,
}

impl GlobalFusion {
    /// `sequence` `[B, N, sequence_dim]`, `structure` `[B, N, structure_dim]`, `mask` `[B, N]`. What the branches hold where there is
    /// no residue is not looked at.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, sequence: Tensor<3>, structure: Tensor<3>, mask: &Tensor<2, Bool>) -> Fused {
        assert_branches("GlobalFusion", &sequence, &structure, mask);
        let (sequence, structure) = (zero_masked(sequence, mask), zero_masked(structure, mask));
        let branch = |index| self.branch_embedding.val().narrow(0, index, 1).unsqueeze::<3>();
        let a = self.sequence_proj.forward(sequence.clone()) + branch(0);
        let b = self.structure_proj.forward(structure.clone()) + branch(1);
        let (axis, copies) = match self.layout {
            GlobalLayout::Tokens => (1, 2),
            GlobalLayout::Channels => (2, 1),
        };
        let z = Tensor::cat(vec![a, b], axis);
        let hidden = mask.clone().bool_not().repeat_dim(1, copies);
        let normed = self.norm.forward(z.clone());
        let z = z + self.attention.forward(normed.clone(), normed, Some(&hidden), false);
        let halves = z.chunk(2, axis);
        let (a, b) = (halves[0].clone(), halves[1].clone());
        let masked = |x| zero_masked(x, mask);
        Fused {
            sequence: masked(sequence + self.to_sequence.forward(a.clone())),
            structure: masked(structure + self.to_structure.forward(b.clone())),
            fused: masked((a + b) / 2.0),
            gates: None,
        }
    }
}
