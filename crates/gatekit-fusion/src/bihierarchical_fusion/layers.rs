//! The layers of both branches: what they must do, and small ones of our own.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Bool, Device, Tensor, TensorData};
use gatekit_core::activation::gelu;
use gatekit_core::attention::{MultiHeadAttention, MultiHeadAttentionConfig};
use gatekit_core::cross_modal::zero_masked;
use gatekit_core::segment::segment_mean;
use gatekit_core::{ConfigError, ModuleConfig};

use super::graph::ResidueGraph;

/// A layer of the sequence branch: a block of a protein language model.
pub trait SequenceLayer: Module {
    /// `[B, N, sequence_dim]` to the same shape, 0 where `mask` `[B, N]` is false; what `s` holds there is not looked at.
    fn forward(&self, s: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3>;
}

/// A layer of the structure branch: message passing over a graph of residues.
pub trait StructureLayer: Module {
    /// `[B, N, structure_dim]` to the same shape, 0 where there is no residue; what `x` holds there is not looked at.
    fn forward(&self, x: Tensor<3>, graph: &ResidueGraph) -> Tensor<3>;
}

/// A pre-norm transformer block: `s += MHSA(LN s)`, `s += W2 gelu(W1 LN s)`, four times as wide inside.
#[derive(Module, Debug)]
pub struct TransformerLayer {
    /// Before the attention.
    pub norm1: LayerNorm,
    /// Over the residues.
    pub attention: MultiHeadAttention,
    /// Before the feed-forward part.
    pub norm2: LayerNorm,
    /// `W1`.
    pub fc1: Linear,
    /// `W2`.
    pub fc2: Linear,
}

impl TransformerLayer {
    /// Of `dim` channels and `heads` heads.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for heads that do not divide the channels.
    pub fn new(dim: usize, heads: usize, device: &Device) -> Result<Self, ConfigError> {
        Ok(Self {
            norm1: LayerNormConfig::new(dim).init(device),
            attention: MultiHeadAttentionConfig::new(dim, heads).try_init(device)?,
            norm2: LayerNormConfig::new(dim).init(device),
            fc1: LinearConfig::new(dim, 4 * dim).init(device),
            fc2: LinearConfig::new(4 * dim, dim).init(device),
        })
    }
}

impl SequenceLayer for TransformerLayer {
    fn forward(&self, s: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3> {
        let s = zero_masked(s, mask);
        let normed = self.norm1.forward(s.clone());
        let absent = mask.clone().bool_not();
        let s = s + self.attention.forward(normed.clone(), normed, Some(&absent), false);
        let inner = gelu(self.fc1.forward(self.norm2.forward(s.clone())));
        zero_masked(s + self.fc2.forward(inner), mask)
    }
}

/// Message passing with distances: `h = LN x`, `m_ij = M2 silu(M1 [h_i; h_j; rbf(r)])`, a the mean of the messages that
/// come in, `x += U2 silu(U1 [h; a])`.
///
/// `rbf_k(r) = exp(-((r - c_k) K / cutoff)^2)` with K centres `c_k` from 0 to the cutoff.
#[derive(Module, Debug)]
pub struct MessagePassingLayer {
    /// Before the messages.
    pub norm: LayerNorm,
    /// `M1`.
    pub message1: Linear,
    /// `M2`.
    pub message2: Linear,
    /// `U1`.
    pub update1: Linear,
    /// `U2`.
    pub update2: Linear,
    radial_basis: usize,
    cutoff: f64,
}

impl MessagePassingLayer {
    /// Of `dim` channels, with `radial_basis` Gaussians up to `cutoff` angstrom.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] without a Gaussian, and for a cutoff that is not above 0.
    pub fn new(dim: usize, radial_basis: usize, cutoff: f64, device: &Device) -> Result<Self, ConfigError> {
        gatekit_core::check_sizes(&[("structure_dim", dim), ("radial_basis", radial_basis)])?;
        if !(cutoff.is_finite() && cutoff > 0.0) {
            return Err(ConfigError::new("cutoff", cutoff, "a finite number above 0"));
        }
        let linear = |from| LinearConfig::new(from, dim).init(device);
        Ok(Self {
            norm: LayerNormConfig::new(dim).init(device),
            message1: linear(2 * dim + radial_basis),
            message2: linear(dim),
            update1: linear(2 * dim),
            update2: linear(dim),
            radial_basis,
            cutoff,
        })
    }

    /// `[E]` to `[E, K]`.
    fn basis(&self, distances: Tensor<1>) -> Tensor<2> {
        let count = self.radial_basis;
        let step = self.cutoff / (count.max(2) - 1) as f64;
        let centres: Vec<f64> = (0..count).map(|index| index as f64 * step).collect();
        let centres = Tensor::<2>::from_data(TensorData::new(centres, [1, count]), &distances.device());
        let scaled = (distances.unsqueeze_dim::<2>(1) - centres) * (count as f64 / self.cutoff);
        scaled.square().neg().exp()
    }
}

impl StructureLayer for MessagePassingLayer {
    fn forward(&self, x: Tensor<3>, graph: &ResidueGraph) -> Tensor<3> {
        let [batch, residues, dim] = x.dims();
        let x = zero_masked(x, &graph.mask);
        let h = self.norm.forward(x.clone()).reshape([batch * residues, dim]);
        let incoming = match graph.distances.dims() {
            [0] => h.zeros_like(),
            _ => {
                let of_target = h.clone().select(0, graph.targets.clone());
                let of_source = h.clone().select(0, graph.sources.clone());
                let basis = self.basis(graph.distances.clone());
                let joined = Tensor::cat(vec![of_target, of_source, basis], 1);
                let messages = self.message2.forward(silu(self.message1.forward(joined)));
                segment_mean(messages, graph.targets.clone(), batch * residues)
            }
        };
        let update = self.update2.forward(silu(self.update1.forward(Tensor::cat(vec![h, incoming], 1))));
        zero_masked(x + update.reshape([batch, residues, dim]), &graph.mask)
    }
}
