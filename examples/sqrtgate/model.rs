//! A small language model on bytes, whose blocks have experts.

use burn::module::Initializer;
use burn::module::Module;
use burn::nn::{Embedding, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit::core::attention::{CausalAttention, CausalAttentionConfig};
use gatekit::core::norm::{RmsNorm, RmsNormConfig};
use gatekit::core::router::Routing;
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::experts::sqrtgate::{SqrtGateConfig, SqrtGateMoe, init};
use gatekit::sequence::CausalLm;

pub const VOCABULARY: usize = 256;
pub const WIDTH: usize = 32;
const HEADS: usize = 2;
/// The paper's 0.02 belongs to widths of 1024 and more: on the sphere it bounds the logits for good, at width 32 by 0.6.
const HEAD_DEVIATION: f64 = 0.2;

/// `x + s attn(norm(x))`, then `x + s moe(norm(x))`.
#[derive(Module, Debug)]
pub struct Block {
    attention_norm: RmsNorm,
    attention: CausalAttention,
    moe_norm: RmsNorm,
    pub moe: SqrtGateMoe,
}

/// Embedding, blocks, norm, head.
#[derive(Module, Debug)]
pub struct ByteModel {
    embed: Embedding,
    pub blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    residual_scale: f64,
}

impl ByteModel {
    /// `residual_scale` multiplies every branch.
    pub fn new(
        depth: usize,
        residual_scale: f64,
        moe: &SqrtGateConfig,
        device: &Device,
    ) -> Result<Self, ConfigError> {
        let norm = || RmsNormConfig::new(WIDTH).try_init(device);
        let block = || {
            let mut attention =
                CausalAttentionConfig::new(WIDTH, HEADS).with_qk_norm(true).try_init(device)?;
            attention.q_proj = init::projection(WIDTH, WIDTH, device);
            attention.k_proj = init::projection(WIDTH, WIDTH, device);
            attention.v_proj = init::projection(WIDTH, WIDTH, device);
            attention.o_proj = init::projection(WIDTH, WIDTH, device);
            Ok(Block { attention_norm: norm()?, attention, moe_norm: norm()?, moe: moe.try_init(device)? })
        };
        let normal = Initializer::Normal { mean: 0.0, std: HEAD_DEVIATION };
        let head = LinearConfig::new(WIDTH, VOCABULARY).with_bias(false).with_initializer(normal);
        Ok(Self {
            embed: init::embedding(VOCABULARY, WIDTH, device),
            blocks: (0..depth).map(|_| block()).collect::<Result<_, ConfigError>>()?,
            norm: norm()?,
            head: head.init(device),
            residual_scale,
        })
    }

    /// Logits, the balancing losses added up, and what every router decided.
    pub fn run(&self, ids: Tensor<2, Int>) -> (Tensor<3>, Tensor<1>, Vec<Routing>) {
        let mut x = self.embed.forward(ids);
        let mut balance = Tensor::zeros([1], &x.device());
        let mut routings = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let attended = block.attention.forward(block.attention_norm.forward(x.clone()), None);
            x = x + attended.mul_scalar(self.residual_scale);
            let output = block.moe.forward(block.moe_norm.forward(x.clone()));
            x = x + output.y.mul_scalar(self.residual_scale);
            balance = balance + output.aux_loss;
            routings.push(output.routing);
        }
        (self.head.forward(self.norm.forward(x)), balance, routings)
    }
}

impl CausalLm for ByteModel {
    fn forward(&self, input_ids: Tensor<2, Int>, _attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        self.run(input_ids).0
    }

    fn vocab_size(&self) -> usize {
        VOCABULARY
    }
}
