//! Any model, and what it was built from.

use std::fmt;
use std::path::Path;

use burn::module::{Devices, Module, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit_core::InputError;
use gatekit_core::checkpoint::{CheckpointError, save_pretrained};
use gatekit_core::router::{BiasBalancer, Routing};

use super::config::AutoConfig;
use super::state::{AutoState, Held};
use crate::affine_scaled::AffineScaledForCausalLm;
use crate::deepseek_v3::DeepseekV3ForCausalLm;
use crate::gated_associative_memory::GamLm;
use crate::gated_attention::GatedAttentionForCausalLm;
use crate::gla::GlaForCausalLm;
use crate::hybrid_linear_attention::HybridForCausalLm;
use crate::kimi_linear::KimiLinearForCausalLm;
use crate::lm::{CausalLm, StreamingLm};
use crate::mamba::MambaForCausalLm;
use crate::mixtral::MixtralForCausalLm;
use crate::mixture_of_value_embeddings::MoveTextModel;
use crate::qwen3_moe::Qwen3MoeForCausalLm;
use crate::qwen3_next::Qwen3NextForCausalLm;
use crate::routed::RoutedLm;
use crate::softmax::SoftmaxForCausalLm;
use crate::transnormer::TransNormerLlm;

/// A language model of this crate, whichever it is, and its configuration.
///
/// Its parameters are named as in the model itself.
#[derive(Clone, Debug)]
pub struct AutoModel {
    config: AutoConfig,
    network: AutoNetwork,
}

impl AutoModel {
    pub(super) fn new(config: AutoConfig, network: AutoNetwork) -> Self {
        Self { config, network }
    }

    /// What the model was built from.
    pub fn config(&self) -> &AutoConfig {
        &self.config
    }

    /// The model.
    pub fn network(&self) -> &AutoNetwork {
        &self.network
    }

    /// Saves the model to a folder in the published layout, under the names that the published
    /// files use; see [`checkpoint::save_pretrained`](save_pretrained).
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when a file cannot be written.
    pub fn save_pretrained(
        &self,
        folder: impl AsRef<Path>,
        max_shard_bytes: Option<usize>,
    ) -> Result<(), CheckpointError> {
        save_pretrained(folder, &self.config, self, max_shard_bytes)
    }
}

macro_rules! networks {
    ($($(#[$attribute:meta])* $variant:ident($model:ty),)+) => {
        /// The models that an [`AutoModel`] can be.
        #[derive(Module, Debug)]
        #[allow(clippy::large_enum_variant, reason = "a program holds few, by value like every module")]
        pub enum AutoNetwork {
            $($(#[$attribute])* $variant($model),)+
        }

        impl CausalLm for AutoModel {
            fn forward(
                &self,
                input_ids: Tensor<2, Int>,
                attention_mask: Option<Tensor<2, Bool>>,
            ) -> Tensor<3> {
                match &self.network {
                    $(AutoNetwork::$variant(model) => model.forward(input_ids, attention_mask),)+
                }
            }

            fn vocab_size(&self) -> usize {
                match &self.network {
                    $(AutoNetwork::$variant(model) => model.vocab_size(),)+
                }
            }
        }

        impl RoutedLm for AutoModel {
            fn forward_with_routing(&self, input_ids: Tensor<2, Int>) -> (Tensor<3>, Vec<Routing>) {
                match &self.network {
                    $(AutoNetwork::$variant(model) => RoutedLm::forward_with_routing(model, input_ids),)+
                }
            }

            fn rebalance(self, balancer: &BiasBalancer, routings: &[Routing]) -> Self {
                let network = match self.network {
                    $(AutoNetwork::$variant(model) => {
                        AutoNetwork::$variant(RoutedLm::rebalance(model, balancer, routings))
                    })+
                };
                Self { network, ..self }
            }
        }

        impl StreamingLm for AutoModel {
            type State = AutoState;

            fn empty_state(&self, batch: usize, device: &Device) -> AutoState {
                match &self.network {
                    $(AutoNetwork::$variant(model) => model.empty_state(batch, device).hold(),)+
                }
            }

            fn check_state(&self, state: &AutoState, batch: usize) -> Result<(), InputError> {
                match &self.network {
                    $(AutoNetwork::$variant(model) => model.check_state(Held::seen(state)?, batch),)+
                }
            }

            fn check_room(&self, state: &AutoState, tokens: usize) -> Result<(), InputError> {
                match &self.network {
                    $(AutoNetwork::$variant(model) => model.check_room(Held::seen(state)?, tokens),)+
                }
            }

            fn prefill(&self, input_ids: Tensor<2, Int>, state: AutoState) -> (Tensor<3>, AutoState) {
                match &self.network {
                    $(AutoNetwork::$variant(model) => {
                        let (logits, state) = model.prefill(input_ids, take(state));
                        (logits, state.hold())
                    })+
                }
            }

            fn step(&self, token: Tensor<1, Int>, state: AutoState) -> (Tensor<2>, AutoState) {
                match &self.network {
                    $(AutoNetwork::$variant(model) => {
                        let (logits, state) = model.step(token, take(state));
                        (logits, state.hold())
                    })+
                }
            }
        }
    };
}

networks! {
    /// Softmax attention with scaled and shifted weights.
    AffineScaled(AffineScaledForCausalLm),
    /// DeepSeek-V3.
    DeepseekV3(DeepseekV3ForCausalLm),
    /// Gated associative memory.
    Gam(GamLm),
    /// Softmax attention with an output gate.
    GatedAttention(GatedAttentionForCausalLm),
    /// Gated linear attention.
    Gla(GlaForCausalLm),
    /// Other linear layers, and stacks of them with full attention.
    Hybrid(HybridForCausalLm),
    /// Kimi Linear.
    KimiLinear(KimiLinearForCausalLm),
    /// Mamba.
    Mamba(MambaForCausalLm),
    /// Mixtral.
    Mixtral(MixtralForCausalLm),
    /// Softmax attention with a memory of values that all layers share.
    Move(MoveTextModel),
    /// Qwen3-MoE.
    Qwen3Moe(Qwen3MoeForCausalLm),
    /// Qwen3-Next.
    Qwen3Next(Qwen3NextForCausalLm),
    /// Softmax attention.
    Transformer(SoftmaxForCausalLm),
    /// TransNormerLLM.
    TransNormer(TransNormerLlm),
}

fn take<S: Held>(state: AutoState) -> S {
    S::taken(state).unwrap_or_else(|error| panic!("{error}"))
}

/// As a derived module, but that the network adds no segment to the names of its parameters.
impl Module for AutoModel {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.network.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        Self { network: self.network.fork(device), ..self }
    }

    fn to_device(self, device: &Device) -> Self {
        Self { network: self.network.to_device(device), ..self }
    }

    fn train(self) -> Self {
        Self { network: self.network.train(), ..self }
    }

    fn valid(&self) -> Self {
        Self { network: self.network.valid(), config: self.config.clone() }
    }

    fn materialize(self) -> Self {
        Self { network: self.network.materialize(), ..self }
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        self.network.visit(visitor);
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        Self { network: self.network.map(mapper), ..self }
    }
}

impl ModuleDisplayDefault for AutoModel {
    fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
        self.network.content(content)
    }

    fn num_params(&self) -> usize {
        Module::num_params(&self.network)
    }
}

impl burn::module::ModuleDisplay for AutoModel {}

impl fmt::Display for AutoModel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.network.fmt(formatter)
    }
}
