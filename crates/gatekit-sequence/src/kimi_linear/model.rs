//! The language model.

use burn::config::Config;
use burn::module::ParamId;
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::attention::LatentAttentionConfig;
use gatekit_core::feed_forward::SwiGluConfig;
use gatekit_core::moe::{MoeLayerConfig, MoeLayout};
use gatekit_core::router::ScoringFunc;
use gatekit_core::scan::ScanForm;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::config::KimiDeltaAttentionConfig;
use super::layer::KimiGateValues;
use super::mixer::{KimiLayerState, KimiMixer};
use crate::backbone::{BackboneSize, CausalModel, MixerContext, ModelState};
use crate::decoder_layout::check_prediction_layers;
use crate::feed_forward::DecoderFeedForward;

/// The language model of Kimi Linear.
pub type KimiLinearForCausalLm = CausalModel<KimiMixer, DecoderFeedForward>;

/// Its streaming state: a matrix a head in the recurrent layers, a cache of latents in the others.
pub type KimiLinearState = ModelState<KimiLayerState>;

/// In which of its two forms a model folder is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "burn::serde", rename_all = "snake_case")]
pub enum KimiFolderForm {
    /// As released: layer numbers and sizes in `linear_attn_config`; a dense feed-forward layer is
    /// called `mlp`.
    Released,
    /// As `transformers` saves it: `layer_types`, `mlp_layer_types`; a dense feed-forward layer is
    /// called `block_sparse_moe` like the others.
    Transformers,
}

/// Configuration of [`KimiLinearForCausalLm`]. Field names are those of the released models;
/// defaults are the sizes of the 48B model.
#[derive(Config, Debug)]
pub struct KimiLinearConfig {
    /// Number of tokens; 163840 in the 48B model.
    pub vocab_size: usize,
    /// Width `D`; 2304 in the 48B model.
    pub hidden_size: usize,
    /// Number of blocks; 27 in the 48B model.
    pub num_hidden_layers: usize,
    /// Numbers **from 1** of the layers with Kimi Delta Attention: those that are not in
    /// `full_attn_layers`.
    pub kda_layers: Vec<usize>,
    /// Numbers **from 1** of the layers with latent attention; 4, 8, 12, 16, 20, 24 and 27 in the
    /// 48B model.
    pub full_attn_layers: Vec<usize>,
    /// Width of dense feed-forward layers.
    #[config(default = 9216)]
    pub intermediate_size: usize,
    /// Heads of Kimi Delta Attention.
    #[config(default = 32)]
    pub linear_num_heads: usize,
    /// Channels of such a head.
    #[config(default = 128)]
    pub linear_head_dim: usize,
    /// Width of the short convolutions.
    #[config(default = 4)]
    pub short_conv_kernel_size: usize,
    /// Short convolutions on queries, keys and values.
    #[config(default = true)]
    pub use_short_conv: bool,
    /// Floor of the log decay, below 0; `None`: none.
    pub lower_bound: Option<f64>,
    /// Write strengths in (0, 2) instead of (0, 1).
    #[config(default = false)]
    pub allow_neg_eigval: bool,
    /// Bias in the second projection of the output gate.
    #[config(default = false)]
    pub output_gate_bias: bool,
    /// Heads of latent attention.
    #[config(default = 32)]
    pub num_attention_heads: usize,
    /// Channels of the latent of keys and values.
    #[config(default = 512)]
    pub kv_lora_rank: usize,
    /// Channels of the latent of queries; `None`: none.
    pub q_lora_rank: Option<usize>,
    /// Channels of a head's key that come from the latent.
    #[config(default = 128)]
    pub qk_nope_head_dim: usize,
    /// Channels of the key that all heads share.
    #[config(default = 64)]
    pub qk_rope_head_dim: usize,
    /// Channels of a head's value.
    #[config(default = 128)]
    pub v_head_dim: usize,
    /// Experts of a sparse feed-forward layer.
    #[config(default = 256)]
    pub num_experts: usize,
    /// Experts that a token goes to.
    #[config(default = 8)]
    pub num_experts_per_token: usize,
    /// Experts that every token goes to, 0 for none: together one SwiGLU of their joint width.
    #[config(default = 1)]
    pub num_shared_experts: usize,
    /// Width of an expert.
    #[config(default = 1024)]
    pub moe_intermediate_size: usize,
    /// Leading layers with a dense feed-forward layer.
    #[config(default = 1)]
    pub first_k_dense_replace: usize,
    /// How the router's logits become scores: `sigmoid` or `softmax`.
    #[config(default = "String::from(\"sigmoid\")")]
    pub moe_router_activation_func: String,
    /// Divide the weights of a token's experts by their sum, where they are several.
    #[config(default = true)]
    pub moe_renormalize: bool,
    /// Multiplies these weights.
    #[config(default = 2.446)]
    pub routed_scaling_factor: f64,
    /// Groups of consecutive experts.
    #[config(default = 1)]
    pub num_expert_group: usize,
    /// Groups that a token may choose from.
    #[config(default = 1)]
    pub topk_group: usize,
    /// Added to the mean square in every RMSNorm but those of the latents, where it is 1e-6.
    #[config(default = 1e-5)]
    pub rms_norm_eps: f64,
    /// The head uses the embeddings' weight.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
    /// Layers for further tokens that a released file holds and this model does not need.
    #[config(default = 0)]
    pub num_nextn_predict_layers: usize,
    /// Steps that the scan treats at once. Never changes the result.
    #[config(default = 64)]
    pub chunk_size: usize,
    /// How a model folder is written.
    #[config(default = "KimiFolderForm::Released")]
    pub folder_form: KimiFolderForm,
}

impl KimiLinearConfig {
    /// A stack in which every layer whose number (from 1) is a multiple of `period` is latent
    /// attention: 4 for three recurrent layers to one, 1 for attention alone, 0 for none.
    pub fn hybrid(vocab_size: usize, hidden_size: usize, num_hidden_layers: usize, period: usize) -> Self {
        let is_full = |number: &usize| period > 0 && number.is_multiple_of(period);
        let (full, kda) = (1..=num_hidden_layers).partition(is_full);
        Self::new(vocab_size, hidden_size, num_hidden_layers, kda, full)
    }

    /// The configuration of a recurrent layer.
    pub fn delta_layer(&self) -> KimiDeltaAttentionConfig {
        KimiDeltaAttentionConfig {
            hidden_size: self.hidden_size,
            num_heads: self.linear_num_heads,
            head_dim: self.linear_head_dim,
            num_v_heads: None,
            use_short_conv: self.use_short_conv,
            short_conv_kernel_size: self.short_conv_kernel_size,
            lower_bound: self.lower_bound,
            allow_neg_eigval: self.allow_neg_eigval,
            output_gate_bias: self.output_gate_bias,
            rms_norm_eps: self.rms_norm_eps,
            scale: None,
            chunk_size: self.chunk_size,
        }
    }

    /// The configuration of a latent attention layer, without positions.
    pub fn latent_layer(&self) -> LatentAttentionConfig {
        LatentAttentionConfig::new(self.hidden_size, self.num_attention_heads)
            .with_kv_lora_rank(self.kv_lora_rank)
            .with_q_lora_rank(self.q_lora_rank)
            .with_qk_nope_head_dim(self.qk_nope_head_dim)
            .with_qk_rope_head_dim(self.qk_rope_head_dim)
            .with_v_head_dim(self.v_head_dim)
    }

    /// The configuration of a sparse feed-forward layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an unknown activation of the router or shared experts of no size.
    pub fn sparse_layer(&self) -> Result<MoeLayerConfig, ConfigError> {
        let scoring_func = match self.moe_router_activation_func.as_str() {
            "sigmoid" => ScoringFunc::Sigmoid,
            "softmax" => ScoringFunc::Softmax,
            other => return Err(ConfigError::new("moe_router_activation_func", other, "sigmoid or softmax")),
        };
        let shared = self.num_shared_experts.saturating_mul(self.moe_intermediate_size);
        if shared > 0 {
            check_sizes(&[("num_shared_experts", shared)])?;
        }
        Ok(MoeLayerConfig::new(self.hidden_size, self.moe_intermediate_size)
            .with_num_experts(self.num_experts)
            .with_num_experts_per_tok(self.num_experts_per_token)
            .with_scoring_func(scoring_func)
            .with_norm_topk_prob(self.moe_renormalize && self.num_experts_per_token > 1)
            .with_routed_scaling_factor(self.routed_scaling_factor)
            .with_n_group(self.num_expert_group)
            .with_topk_group(self.topk_group)
            .with_selection_bias(Some(true))
            .with_shared_intermediate_size(shared)
            .with_layout(MoeLayout::Mixtral))
    }

    /// Which layers, counted from 0, are latent attention.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a layer in both lists or in neither, and for a number outside
    /// `1 ..= num_hidden_layers`.
    pub fn is_full_attention(&self) -> Result<Vec<bool>, ConfigError> {
        let depth = self.num_hidden_layers;
        let mut kinds = vec![None; depth];
        let lists =
            [("kda_layers", &self.kda_layers, false), ("full_attn_layers", &self.full_attn_layers, true)];
        for (field, numbers, is_full) in lists {
            for &number in numbers {
                match number.checked_sub(1).and_then(|index| kinds.get_mut(index)) {
                    None => {
                        return Err(ConfigError::new(
                            field,
                            number,
                            format!("layer numbers from 1 to {depth}"),
                        ));
                    }
                    Some(Some(_)) => {
                        let got = format!("layer {number} twice");
                        return Err(ConfigError::new(
                            field,
                            got,
                            "every layer once, in one of the two lists",
                        ));
                    }
                    Some(kind) => *kind = Some(is_full),
                }
            }
        }
        let missing = |index| {
            let got = format!("no layer {}", index + 1);
            ConfigError::new("kda_layers", got, "every layer, in this list or in full_attn_layers")
        };
        kinds.into_iter().enumerate().map(|(index, kind)| kind.ok_or_else(|| missing(index))).collect()
    }

    fn size(&self) -> BackboneSize {
        BackboneSize {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            intermediate_size: Some(self.intermediate_size),
            hidden_ratio: 4.0,
            norm_eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("linear_num_heads", self.linear_num_heads),
            ("linear_head_dim", self.linear_head_dim),
        ])?;
        if self.first_k_dense_replace < self.num_hidden_layers {
            check_sizes(&[
                ("num_experts", self.num_experts),
                ("moe_intermediate_size", self.moe_intermediate_size),
            ])?;
        }
        check_prediction_layers(self.num_nextn_predict_layers)?;
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(ConfigError::new("rms_norm_eps", self.rms_norm_eps, "a positive number"));
        }
        Ok(())
    }
}

impl ModuleConfig for KimiLinearConfig {
    type Module = KimiLinearForCausalLm;

    fn try_init(&self, device: &Device) -> Result<KimiLinearForCausalLm, ConfigError> {
        self.check()?;
        let is_full = self.is_full_attention()?;
        let (delta, latent, sparse) = (self.delta_layer(), self.latent_layer(), self.sparse_layer()?);
        let dense = SwiGluConfig::new(self.hidden_size, self.intermediate_size);
        CausalModel::try_with_feed_forward(
            &self.size(),
            device,
            |index| match is_full[index] {
                true => latent.try_init(device).map(KimiMixer::Latent),
                false => delta.try_init(device).map(KimiMixer::Delta),
            },
            |index| match index < self.first_k_dense_replace {
                true => dense.try_init(device).map(DecoderFeedForward::Dense),
                false => sparse.try_init(device).map(DecoderFeedForward::Sparse).map_err(published_field),
            },
        )
    }
}

/// The router's errors under the field names of this model.
fn published_field(mut error: ConfigError) -> ConfigError {
    error.field = match error.field.as_str() {
        "num_experts_per_tok" => "num_experts_per_token".into(),
        "n_group" | "group_score" => "num_expert_group".into(),
        _ => error.field,
    };
    error
}

impl KimiLinearForCausalLm {
    /// The same model with another form of the scan in every layer. All compute the same function;
    /// a new model has [`ScanForm::Auto`], the fastest on its device.
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        for block in &mut self.model.layers {
            block.attn = block.attn.clone().with_scan_form(form);
        }
        self
    }

    /// Parameters that take no weight decay: `A_log` and `dt_bias` of every recurrent layer. An
    /// optimiser of their own takes their gradients
    /// ([`GradientsParams::from_params`](burn::optim::GradientsParams::from_params)).
    pub fn without_weight_decay(&self) -> Vec<ParamId> {
        let layers = self.model.layers.iter();
        layers
            .filter_map(|block| match &block.attn {
                KimiMixer::Delta(layer) => Some([layer.A_log.id, layer.dt_bias.id]),
                KimiMixer::Latent(_) => None,
            })
            .flatten()
            .collect()
    }

    /// What the gates of every recurrent layer let through, for probes, first to last.
    ///
    /// `input_ids` is `[batch, time]`. Costs a forward pass and the gates' projections once more.
    pub fn gate_values(&self, input_ids: Tensor<2, Int>) -> Vec<KimiGateValues> {
        let mut x = self.embed(input_ids);
        let mut values = Vec::new();
        for block in &self.model.layers {
            if let KimiMixer::Delta(layer) = &block.attn {
                values.push(layer.gates(block.attn_norm.forward(x.clone())));
            }
            x = block.forward(x, &MixerContext::default());
        }
        values
    }
}
