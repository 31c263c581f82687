//! What decides the numbers of a run: two runs of equal settings on one text and one device have equal losses.

use clap::ValueEnum;
use gatekit::core::ConfigError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What moves information from earlier bytes to later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mixer {
    /// Softmax attention whose weights are scaled and shifted by the input.
    AffineScaled,
    /// DeepSeek-V3: latent attention, experts chosen in groups.
    DeepseekV3,
    /// DeltaNet: a recurrence that overwrites what a key held.
    DeltaNet,
    /// Gated associative memory: a convolution, a trained memory, gates; positions are learned up to --context.
    Gam,
    /// Gated DeltaNet: a recurrence that forgets and overwrites.
    GatedDeltaNet,
    /// Softmax attention with an output gate.
    GatedAttention,
    /// Gated linear attention: a recurrent state of fixed size, a forget gate per key channel.
    Gla,
    /// HGRN: a gated recurrence of single channels.
    Hgrn,
    /// HGRN2: the same with a matrix for a state.
    Hgrn2,
    /// Kimi Linear: three layers of Kimi Delta Attention to one of latent attention, experts.
    KimiLinear,
    /// Mamba: a selective state space.
    Mamba,
    /// Mixtral: softmax attention and experts.
    Mixtral,
    /// Softmax attention with a memory of values that all layers share.
    Move,
    /// Qwen3-MoE: softmax attention and experts.
    Qwen3Moe,
    /// Qwen3-Next: three layers of gated DeltaNet to one of gated attention, experts.
    Qwen3Next,
    /// RetNet: a recurrence with a fixed decay per head.
    Retnet,
    /// Causal softmax attention with rotary positions: a cache that grows with the text.
    Softmax,
    /// TransNormerLLM: Lightning attention with a fixed decay per head.
    TransNormer,
}

/// What stands behind every mixer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Ffn {
    /// One SwiGLU for every byte.
    #[default]
    Dense,
    /// A mixture of experts, of which every byte chooses a few.
    Moe,
}

/// What keeps the experts evenly used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Nothing.
    None,
    /// A balancing loss with a weight of 0.01 a layer (Switch).
    Loss,
    /// A bias on the choice, moved by 0.001 after every step (DeepSeek-V3).
    Bias,
}

impl Mixer {
    /// Whether its published model has experts, whatever --ffn says.
    pub fn is_sparse(self) -> bool {
        use Mixer::*;
        matches!(self, DeepseekV3 | KimiLinear | Mixtral | Qwen3Moe | Qwen3Next)
    }

    /// Whether its dense feed-forward layers can be replaced by experts (--ffn moe).
    pub fn takes_experts(self) -> bool {
        !matches!(self, Self::Gam | Self::Mamba | Self::Move | Self::TransNormer)
    }

    /// Whether its experts can be chosen with a bias (--balance bias).
    pub fn takes_bias(self) -> bool {
        !matches!(self, Self::Mixtral | Self::Qwen3Moe | Self::Qwen3Next)
    }

    /// Whether the layers can be mixed with softmax attention (--hybrid).
    pub fn is_hybrid(self) -> bool {
        use Mixer::*;
        matches!(self, DeltaNet | GatedDeltaNet | Gla | Hgrn | Hgrn2 | Retnet)
    }

    /// Whether it looks back over a window (--window).
    pub fn has_window(self) -> bool {
        matches!(self, Self::Softmax | Self::Mixtral | Self::Move)
    }
}

/// Every flag that changes what is computed while training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The token mixer.
    pub mixer: Mixer,
    /// Number of blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Heads of the token mixer.
    pub heads: usize,
    /// Width of the feed-forward layers; `None` is 8/3 of `dim`, up to a multiple of 32.
    pub intermediate: Option<usize>,
    /// GLA: total key width over `dim`.
    pub expand_k: f64,
    /// GLA: total value width over `dim`.
    pub expand_v: f64,
    /// GLA: short convolutions on queries, keys and values.
    pub short_conv: bool,
    /// GLA: the divisor of the forget gate's logarithm.
    pub gate_normalizer: f64,
    /// Softmax: how many bytes back a byte may look; `None` is all.
    pub window: Option<usize>,
    /// Linear layers to every layer of softmax attention; `None` is linear layers alone.
    #[serde(default)]
    pub hybrid: Option<usize>,
    /// Experts of a layer, in models with experts.
    #[serde(default = "experts")]
    pub experts: usize,
    /// What stands behind every mixer.
    #[serde(default)]
    pub ffn: Ffn,
    /// Experts that every byte chooses.
    #[serde(default = "experts_per_token")]
    pub experts_per_token: usize,
    /// What keeps the experts evenly used, if not what the model was published with.
    #[serde(default)]
    pub balance: Option<Balance>,
    /// Slots of an expert in training, in multiples of its fair share; all that come if none.
    #[serde(default)]
    pub capacity: Option<f64>,
    /// Bytes of one training sequence.
    pub context: usize,
    /// Sequences of one step.
    pub batch_size: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// AdamW's decay of the second moment.
    pub beta_2: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Largest norm of one parameter's gradient.
    pub clip_norm: f64,
    /// Seed of the initial weights and of the order of the data.
    pub seed: u64,
}

/// Experts of a layer, unless told otherwise.
const EXPERTS: usize = 4;

fn experts() -> usize {
    EXPERTS
}

/// Experts that a byte chooses, unless told otherwise.
const CHOSEN: usize = 2;

fn experts_per_token() -> usize {
    CHOSEN
}

impl Settings {
    /// The full run: at most five minutes on two cores.
    pub const DEFAULT: Self = Self {
        mixer: Mixer::Gla,
        layers: 4,
        dim: 128,
        heads: 4,
        intermediate: None,
        expand_k: 0.5,
        expand_v: 1.0,
        short_conv: true,
        gate_normalizer: 16.0,
        window: None,
        hybrid: None,
        experts: EXPERTS,
        ffn: Ffn::Dense,
        experts_per_token: CHOSEN,
        balance: None,
        capacity: None,
        context: 256,
        batch_size: 8,
        steps: 3000,
        learning_rate: 3e-3,
        warmup: 100,
        beta_2: 0.99,
        weight_decay: 1.0,
        clip_norm: 1.0,
        seed: 0,
    };

    /// A run that only shows that everything works: seconds on two cores.
    pub const QUICK: Self = Self {
        layers: 2,
        dim: 64,
        heads: 2,
        context: 64,
        batch_size: 8,
        steps: 60,
        warmup: 10,
        ..Self::DEFAULT
    };

    /// Width of the feed-forward layers: as given, or 8/3 of the model's up to a multiple of 32, the customary width
    /// for a SwiGLU with as many weights as a plain feed-forward layer of four times the model's.
    pub fn intermediate_size(&self) -> usize {
        self.intermediate.unwrap_or_else(|| (8 * self.dim).div_ceil(3).next_multiple_of(32))
    }

    /// Whether there are experts.
    pub fn is_sparse(&self) -> bool {
        self.mixer.is_sparse() || self.ffn == Ffn::Moe
    }

    /// What keeps the experts evenly used: as given, or a loss, or a bias for the models that were published with one.
    pub fn balance(&self) -> Balance {
        self.balance.unwrap_or(match self.mixer {
            _ if !self.is_sparse() => Balance::None,
            Mixer::DeepseekV3 | Mixer::KimiLinear => Balance::Bias,
            _ => Balance::Loss,
        })
    }

    /// The mixer as it is written on the command line.
    pub fn mixer_name(&self) -> String {
        self.mixer.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }

    /// Refuses what neither the model's nor the optimiser's own checks would catch.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (flag, value) in [
            ("--layers", self.layers),
            ("--dim", self.dim),
            ("--heads", self.heads),
            ("--intermediate", self.intermediate.unwrap_or(1)),
            ("--batch-size", self.batch_size),
            ("--steps", self.steps),
            ("--window", self.window.unwrap_or(1)),
            ("--hybrid", self.hybrid.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(ConfigError::new(flag, 0, "at least 1"));
            }
        }
        if self.context < 2 {
            return Err(ConfigError::new(
                "--context",
                self.context,
                "at least 2: a byte to read and a byte to predict",
            ));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return Err(ConfigError::new("--learning-rate", self.learning_rate, "above 0, at most 1"));
        }
        if !(0.0..1.0).contains(&self.beta_2) {
            return Err(ConfigError::new("--beta-2", self.beta_2, "at least 0 and below 1"));
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return Err(ConfigError::new("--weight-decay", self.weight_decay, "zero or positive"));
        }
        if !(self.clip_norm.is_finite() && self.clip_norm > 0.0) {
            return Err(ConfigError::new("--clip-norm", self.clip_norm, "positive"));
        }
        if self.window.is_some() && !self.mixer.has_window() {
            let got = format!("a number with --mixer {}", self.mixer_name());
            return Err(ConfigError::new(
                "--window",
                got,
                "--mixer softmax, mixtral or move: it bounds their cache",
            ));
        }
        if self.hybrid.is_some() && !self.mixer.is_hybrid() {
            let got = format!("a number with --mixer {}", self.mixer_name());
            let need = "--mixer gla, delta-net, gated-delta-net, hgrn, hgrn2 or retnet";
            return Err(ConfigError::new("--hybrid", got, need));
        }
        crate::experts::validate(self)
    }
}

/// The fields in which two values of one type differ, each with both values: `dim: 64 there, 128 here`.
pub fn differences<T: Serialize>(there: &T, here: &T) -> Vec<String> {
    let fields = |value: &T| match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("only structures of plain fields are compared"),
    };
    let here = fields(here);
    (fields(there).iter())
        .filter(|(name, value)| here[*name] != **value)
        .map(|(name, value)| format!("{name}: {value} there, {} here", here[name]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_the_fields_with_both_values() {
        assert!(differences(&Settings::DEFAULT, &Settings::DEFAULT).is_empty());
        let other = Settings { dim: 64, mixer: Mixer::Softmax, window: Some(32), ..Settings::DEFAULT };
        let found = differences(&other, &Settings::DEFAULT);
        assert_eq!(found.len(), 3);
        assert!(found.contains(&format!("dim: 64 there, {} here", Settings::DEFAULT.dim)));
        assert!(found.contains(&"window: 32 there, null here".to_string()));
    }

    #[test]
    fn settings_that_train_nothing_are_refused_by_flag() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = Settings::DEFAULT;
            change(&mut settings);
            settings.validate().expect_err("refused").field
        };
        assert_eq!(refused(|s| s.steps = 0), "--steps");
        assert_eq!(refused(|s| s.batch_size = 0), "--batch-size");
        assert_eq!(refused(|s| s.context = 1), "--context");
        assert_eq!(refused(|s| s.learning_rate = f64::NAN), "--learning-rate");
        assert_eq!(refused(|s| s.clip_norm = 0.0), "--clip-norm");
        assert_eq!(refused(|s| s.window = Some(8)), "--window");
        assert_eq!(refused(|s| s.experts = 1), "--experts");
        assert_eq!(refused(|s| (s.hybrid, s.mixer) = (Some(3), Mixer::Mamba)), "--hybrid");
        assert_eq!(refused(|s| (s.ffn, s.mixer) = (Ffn::Moe, Mixer::Mamba)), "--ffn");
        assert_eq!(refused(|s| s.experts_per_token = 0), "--experts-per-token");
        assert_eq!(refused(|s| s.experts_per_token = 5), "--experts-per-token");
        assert_eq!(refused(|s| (s.experts_per_token, s.mixer) = (1, Mixer::Mixtral)), "--experts-per-token");
        assert_eq!(refused(|s| s.balance = Some(Balance::Loss)), "--balance");
        assert_eq!(refused(|s| (s.balance, s.mixer) = (Some(Balance::Bias), Mixer::Qwen3Moe)), "--balance");
        assert_eq!(refused(|s| s.capacity = Some(1.0)), "--capacity");
        assert_eq!(refused(|s| (s.ffn, s.capacity) = (Ffn::Moe, Some(0.0))), "--capacity");
        assert!(Settings::DEFAULT.validate().is_ok() && Settings::QUICK.validate().is_ok());
    }

    #[test]
    fn experts_are_balanced_as_their_model_was() {
        let balance = |mixer, ffn| Settings { mixer, ffn, ..Settings::DEFAULT }.balance();
        assert_eq!(balance(Mixer::Gla, Ffn::Dense), Balance::None);
        assert_eq!(balance(Mixer::Gla, Ffn::Moe), Balance::Loss);
        assert_eq!(balance(Mixer::Mixtral, Ffn::Dense), Balance::Loss);
        assert_eq!(balance(Mixer::KimiLinear, Ffn::Dense), Balance::Bias);
        let none = Settings { mixer: Mixer::DeepseekV3, balance: Some(Balance::None), ..Settings::DEFAULT };
        assert_eq!(none.balance(), Balance::None);
    }

    #[test]
    fn runs_from_before_there_were_experts_can_be_resumed() {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(Settings::DEFAULT) else { panic!("fields") };
        for field in ["ffn", "experts_per_token", "balance", "capacity"] {
            fields.remove(field);
        }
        let read: Settings = serde_json::from_value(Value::Object(fields)).expect("the rest are defaults");
        assert_eq!(read, Settings::DEFAULT);
    }
}
