//! A transformer with experts in every layer that reads patches and letters.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, activation::log_softmax};
use gatekit::core::attention::{CausalAttention, CausalAttentionConfig};
use gatekit::core::checkpoint::{load_tensors, named_parameters};
use gatekit::core::init;
use gatekit::core::moe::MoeLayerConfig;
use gatekit::core::norm::{RmsNorm, RmsNormConfig};
use gatekit::core::router::{BalanceLosses, CountNormalizer};
use gatekit::core::{ConfigError, InputError, ModuleConfig};
use gatekit::experts::modes::{SkipStats, SkippableModel, SkippingMoeLayer};

use super::task::{Batch, PATCHES, PIXELS, VOCABULARY};

/// Weight of the balancing loss of every layer.
const BALANCE: f64 = 0.01;
/// Deviation of embeddings at the start.
const EMBEDDING: f64 = 0.2;

/// The sizes of [`Reader`].
#[derive(Config, Debug)]
pub struct ReaderConfig {
    #[config(default = 64)]
    pub width: usize,
    #[config(default = 6)]
    pub layers: usize,
    #[config(default = 4)]
    pub heads: usize,
    #[config(default = 16)]
    pub experts: usize,
    #[config(default = 4)]
    pub experts_per_token: usize,
    #[config(default = 32)]
    pub expert_width: usize,
    #[config(default = 32)]
    pub shared_width: usize,
}

impl ModuleConfig for ReaderConfig {
    type Module = Reader;

    fn try_init(&self, device: &Device) -> Result<Reader, ConfigError> {
        let width = self.width;
        let normal = || Initializer::Normal { mean: 0.0, std: EMBEDDING };
        let block = |_| {
            let moe = MoeLayerConfig::new(width, self.expert_width)
                .with_num_experts(self.experts)
                .with_num_experts_per_tok(self.experts_per_token)
                .with_shared_intermediate_size(self.shared_width);
            Ok(Block {
                attn_norm: RmsNormConfig::new(width).try_init(device)?,
                attn: CausalAttentionConfig::new(width, self.heads).with_qk_norm(true).try_init(device)?,
                moe_norm: RmsNormConfig::new(width).try_init(device)?,
                moe: SkippingMoeLayer::new(moe.try_init(device)?, device),
            })
        };
        Ok(Reader {
            embed: EmbeddingConfig::new(VOCABULARY, width).with_initializer(normal()).init(device),
            patch: LinearConfig::new(PIXELS, width).init(device),
            place: normal().init([PATCHES, width], device),
            blocks: (0..self.layers).map(block).collect::<Result<_, ConfigError>>()?,
            norm: RmsNormConfig::new(width).try_init(device)?,
            head: init::linear(width, VOCABULARY, false, device),
        })
    }
}

#[derive(Module, Debug)]
pub struct Block {
    attn_norm: RmsNorm,
    attn: CausalAttention,
    moe_norm: RmsNorm,
    moe: SkippingMoeLayer,
}

/// Patches and letters in, letters out.
#[derive(Module, Debug)]
pub struct Reader {
    embed: Embedding,
    patch: Linear,
    /// Where a patch stands, `[PATCHES, width]`.
    place: Param<Tensor<2>>,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

impl Reader {
    /// Logits where answers are predicted, `[S, VOCABULARY]`; `experts` stands for the layers of experts.
    fn logits<E>(
        &self,
        batch: &Batch,
        mut experts: impl FnMut(&SkippingMoeLayer, Tensor<3>) -> Result<Tensor<3>, E>,
    ) -> Result<Tensor<2>, E> {
        let letters = self.embed.forward(batch.tokens.clone());
        let [rows, text, width] = letters.dims();
        let patches = self.patch.forward(batch.patches.clone()) + self.place.val().unsqueeze();
        let (begin, text) = (letters.clone().narrow(1, 0, 1), letters.narrow(1, 1, text - 1));
        let mut x = Tensor::cat(vec![begin, patches, text], 1);
        for block in &self.blocks {
            x = x.clone() + block.attn.forward(block.attn_norm.forward(x), None);
            x = x.clone() + experts(&block.moe, block.moe_norm.forward(x))?;
        }
        let time = x.dims()[1];
        let answers = x.reshape([rows * time, width]).select(0, batch.positions.clone());
        Ok(self.head.forward(self.norm.forward(answers)))
    }

    /// The training loss, `[1]`: cross-entropy of the answers and what keeps the experts even.
    pub fn loss(&self, batch: &Batch) -> Tensor<1> {
        let mut balance = Tensor::zeros([1], &batch.patches.device());
        let logits = self.logits(batch, |moe, x| {
            let [rows, time, _] = x.dims();
            let (y, routing) = moe.layer.forward_with_routing(x);
            let losses = BalanceLosses::new(&routing, [rows, time], None, CountNormalizer::Assignments);
            balance = balance.clone() + losses.load_balance;
            Ok::<_, std::convert::Infallible>(y)
        });
        let logits = match logits {
            Ok(logits) => logits,
            Err(never) => match never {},
        };
        let targets = batch.targets.clone().unsqueeze_dim(1);
        log_softmax(logits, 1).gather(1, targets).mean().neg() + balance.mul_scalar(BALANCE)
    }

    /// The same weights with fewer experts a token.
    pub fn with_experts_per_token(
        &self,
        config: &ReaderConfig,
        count: usize,
        device: &Device,
    ) -> Result<Self, ConfigError> {
        let fewer = config.clone().with_experts_per_token(count).try_init(device)?;
        Ok(load_tensors(fewer, named_parameters(self)).expect("the same parameters"))
    }
}

impl SkippableModel for Reader {
    type Batch = Batch;

    fn moe_layers(&self) -> Vec<&SkippingMoeLayer> {
        self.blocks.iter().map(|block| &block.moe).collect()
    }

    fn moe_layers_mut(&mut self) -> Vec<&mut SkippingMoeLayer> {
        self.blocks.iter_mut().map(|block| &mut block.moe).collect()
    }

    fn answer_logits(&self, batch: &Batch) -> Result<(Tensor<2>, SkipStats), InputError> {
        let mut counts = Vec::with_capacity(self.blocks.len());
        let logits = self.logits(batch, |moe, x| {
            let forward = moe.forward_with(x, &batch.modalities, &Default::default())?;
            counts.push(forward.decision.counts());
            Ok(forward.y)
        })?;
        Ok((logits, SkipStats::new(counts)))
    }
}
