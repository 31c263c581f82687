//! The stack's configuration: which layers are attention.

use burn::config::Config;
use burn::module::Initializer;
use burn::tensor::Device;
use gatekit_core::attention::CausalAttentionConfig;
use gatekit_core::moe::MoeLayerConfig;
use gatekit_core::{ConfigError, ModuleConfig};

use super::mixer::{HybridForCausalLm, HybridMixer, HybridMixerConfig};
use crate::backbone::{BackboneSize, CausalModel};

/// Which layers are full attention, and how it is built. Field names are those of
/// flash-linear-attention's `attn`.
#[derive(Config, Debug)]
pub struct HybridAttentionConfig {
    /// Indices of these layers, from 0, each once; see [`HybridConfig::ratio`].
    pub layers: Vec<usize>,
    /// Number of heads; divides the model's width.
    pub num_heads: usize,
    /// Number of key and value heads, each shared by consecutive query heads; `None` (the default):
    /// `num_heads`.
    #[config(default = "None")]
    pub num_kv_heads: Option<usize>,
    /// Bias on queries, keys and values. Default false.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Every token sees this many tokens, itself included; `None` (the default): all before it.
    #[config(default = "None")]
    pub window_size: Option<usize>,
    /// Base of the rotary positions. Default 10000.
    #[config(default = 10000.0)]
    pub rope_theta: f64,
}

impl HybridAttentionConfig {
    /// The configuration of one of the layers.
    pub fn layer(&self, hidden_size: usize) -> CausalAttentionConfig {
        CausalAttentionConfig::new(hidden_size, self.num_heads)
            .with_num_kv_heads(self.num_kv_heads)
            .with_qkv_bias(self.qkv_bias)
            .with_window_size(self.window_size)
            .with_rope_theta(Some(self.rope_theta))
    }

    fn check_layers(&self, num_hidden_layers: usize) -> Result<(), ConfigError> {
        for (place, &layer) in self.layers.iter().enumerate() {
            if layer >= num_hidden_layers {
                let need = format!("indices below {num_hidden_layers}, the number of layers");
                return Err(ConfigError::new("layers", layer, need));
            }
            if self.layers[..place].contains(&layer) {
                return Err(ConfigError::new("layers", format!("{layer} twice"), "every layer once"));
            }
        }
        Ok(())
    }
}

/// Configuration of [`HybridForCausalLm`]: one kind of layer, and attention in between.
///
/// ```text
/// x = x + mixer(RMSNorm(x))        layers in attn.layers: attention, all others: the mixer
/// x = x + SwiGLU(RMSNorm(x))
/// ```
#[derive(Config, Debug)]
pub struct HybridConfig {
    /// Number of tokens; 32000 in the paper.
    pub vocab_size: usize,
    /// Number of blocks; 24 in the paper.
    pub num_hidden_layers: usize,
    /// The layers that are not attention; their width is the model's, 1024 (340M) and 2048 (1.3B) in
    /// the paper.
    pub mixer: HybridMixerConfig,
    /// The layers that are; `None` (the default): none.
    #[config(default = "None")]
    pub attn: Option<HybridAttentionConfig>,
    /// Whether the forget gates of HGRN and HGRN2 have floors that grow with depth. Default true;
    /// other layers have none.
    #[config(default = true)]
    pub use_lower_bound: bool,
    /// Width of the feed-forward layers; `None` (the default): `2/3 * hidden_ratio * D` rounded up to
    /// a multiple of 256.
    #[config(default = "None")]
    pub intermediate_size: Option<usize>,
    /// See `intermediate_size`. Default 4.
    #[config(default = 4.0)]
    pub hidden_ratio: f64,
    /// Added to the mean square in every RMSNorm, those of the layers included whatever their own
    /// configuration says (but HGRN2's is 1e-5 always). Default 1e-6.
    #[config(default = 1e-6)]
    pub norm_eps: f64,
    /// The head uses the embeddings' weight. Default false.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
    /// Experts in place of every dense feed-forward layer, which then has no width of its own; `None`
    /// (the default): dense. No published model of this kind has them: the field is this library's own.
    pub moe: Option<MoeLayerConfig>,
}

impl HybridConfig {
    /// The layers that are attention when `linear` other layers come to every `full` of them: the
    /// last `full` of each group of `linear + full`. A stack shorter than one group has one in the
    /// middle.
    ///
    /// The paper studies 24:1, 12:1, 6:1 and 3:1; it recommends 3:1 to 6:1.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when one of the numbers is 0.
    pub fn ratio(linear: usize, full: usize, num_hidden_layers: usize) -> Result<Vec<usize>, ConfigError> {
        for (field, number) in [("linear", linear), ("full", full), ("num_hidden_layers", num_hidden_layers)]
        {
            if number == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        match linear.checked_add(full) {
            Some(group) if group <= num_hidden_layers => {
                Ok((0..num_hidden_layers).filter(|layer| layer % group >= linear).collect())
            }
            _ => Ok(vec![num_hidden_layers / 2]),
        }
    }

    fn size(&self) -> BackboneSize {
        BackboneSize {
            vocab_size: self.vocab_size,
            hidden_size: self.mixer.hidden_size(),
            num_hidden_layers: self.num_hidden_layers,
            intermediate_size: self.intermediate_size,
            hidden_ratio: self.hidden_ratio,
            norm_eps: self.norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }
}

impl ModuleConfig for HybridConfig {
    type Module = HybridForCausalLm;

    fn try_init(&self, device: &Device) -> Result<HybridForCausalLm, ConfigError> {
        let layer = self.mixer.clone().with_eps(self.norm_eps);
        let within = |error: ConfigError| error.within("attn");
        let (full, layers) = match &self.attn {
            Some(attn) => {
                attn.check_layers(self.num_hidden_layers).map_err(within)?;
                (Some(attn.layer(layer.hidden_size())), &attn.layers[..])
            }
            None => (None, &[][..]),
        };
        let mut model =
            CausalModel::try_with_experts(&self.size(), self.moe.as_ref(), device, |index| match &full {
                Some(full) if layers.contains(&index) => {
                    full.try_init(device).map(HybridMixer::Attention).map_err(within)
                }
                _ => layer.try_init(device),
            })?;
        if let Some(channels) = layer.floor_channels()?.filter(|_| self.use_lower_bound) {
            let raw = Initializer::Zeros.init([self.num_hidden_layers, channels], device);
            model.model.lower_bounds = Some(raw);
        }
        Ok(model)
    }
}
