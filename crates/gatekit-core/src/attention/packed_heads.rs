//! The attention layer whose query, key and value maps are one matrix.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::masked::{Seen, attend};
use crate::config::{ModuleConfig, check_sizes};
use crate::error::ConfigError;

/// Configuration of [`PackedAttention`].
#[derive(Config, Debug)]
pub struct PackedAttentionConfig {
    /// Channels of queries, memory and output, a multiple of `num_heads`.
    pub embed_dim: usize,
    /// Heads, at least 1.
    pub num_heads: usize,
    /// Share of the attention weights that is dropped in training, in [0, 1). Default 0.
    #[config(default = 0.0)]
    pub dropout: f64,
}

impl ModuleConfig for PackedAttentionConfig {
    type Module = PackedAttention;

    fn try_init(&self, device: &Device) -> Result<PackedAttention, ConfigError> {
        let (dim, heads) = (self.embed_dim, self.num_heads);
        check_sizes(&[("embed_dim", dim), ("num_heads", heads)])?;
        if dim % heads != 0 {
            return Err(ConfigError::new("num_heads", heads, format!("a divisor of embed_dim = {dim}")));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "a number in [0, 1)"));
        }
        let xavier = Initializer::XavierUniform { gain: 1.0 };
        Ok(PackedAttention {
            in_proj_weight: xavier.init_with([3 * dim, dim], Some(dim), Some(3 * dim), device),
            in_proj_bias: Initializer::Zeros.init([3 * dim], device),
            out_proj: Linear {
                bias: Some(Initializer::Zeros.init([dim], device)),
                ..LinearConfig::new(dim, dim).with_bias(false).with_initializer(xavier).init(device)
            },
            dropout: DropoutConfig::new(self.dropout).init(),
            num_heads: heads,
        })
    }
}

/// `y = W_o concat_h softmax(q_h k_h^T / sqrt(e)) v_h + b_o` with `[q; k; v] = W [x; m; m] + b`: tokens x read from
/// a memory m, their own sequence or another of the same width, of which some places may be padding.
///
/// [`MultiHeadAttention`](super::MultiHeadAttention) under the names and in the form of
/// `torch.nn.MultiheadAttention`: one matrix for the three maps, one width. A token that sees no key reads
/// exactly 0, without the bias: an absent memory adds nothing. Weights start Xavier uniform (the packed
/// matrix as one), biases 0. Vaswani et al. (arXiv 1706.03762), section 3.2.
#[derive(Module, Debug)]
pub struct PackedAttention {
    /// Maps to queries, keys and values, one below the other, `[3 embed_dim, embed_dim]`.
    pub in_proj_weight: Param<Tensor<2>>,
    /// Their biases, `[3 embed_dim]`.
    pub in_proj_bias: Param<Tensor<1>>,
    /// Output projection, `[embed_dim, embed_dim]`.
    pub out_proj: Linear,
    /// On the attention weights, in training.
    pub dropout: Dropout,
    num_heads: usize,
}

impl PackedAttention {
    /// `x` `[batch, time, embed_dim]` reads from `memory` `[batch, keys, embed_dim]` what is `seen`; to
    /// `[batch, time, embed_dim]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit, or the memory has no key.
    pub fn forward(&self, x: Tensor<3>, memory: Tensor<3>, seen: &Seen) -> Tensor<3> {
        let [batch, time, dim] = x.dims();
        if batch * time == 0 {
            return x;
        }
        let [q, k, v] = [(x, 0), (memory.clone(), 1), (memory, 2)].map(|(x, part)| self.part(x, part));
        let (o, blind) = attend(q, k, v, seen, &self.dropout);
        let y = self.out_proj.forward(o.reshape([batch, time, dim]));
        match blind {
            Some(blind) => y.mask_fill(blind.unsqueeze_dim::<3>(2).expand([batch, time, dim]), 0.0),
            None => y,
        }
    }

    /// Queries (0), keys (1) or values (2), split into heads.
    fn part(&self, x: Tensor<3>, part: usize) -> Tensor<4> {
        let [batch, time, dim] = x.dims();
        let weight = self.in_proj_weight.val().narrow(0, part * dim, dim);
        let bias = self.in_proj_bias.val().narrow(0, part * dim, dim);
        let y = x.reshape([batch * time, dim]).matmul(weight.transpose()) + bias.unsqueeze();
        y.reshape([batch, time, self.num_heads, dim / self.num_heads])
    }
}
