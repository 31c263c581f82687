//! What the settings mean to each of the library's models, and what the example asks of all of them.

use std::ops::Range;

use burn::prelude::*;
use gatekit::core::ConfigError;
use gatekit::core::probe::GateStatistics;
use gatekit::sequence::affine_scaled::AffineScaledModelConfig;
use gatekit::sequence::auto::AutoNetwork;
use gatekit::sequence::hybrid_linear_attention::{
    DeltaNetConfig, GatedDeltaNetConfig, Hgrn2Config, HgrnConfig, HybridAttentionConfig, HybridConfig,
    HybridMixerConfig, RetentionConfig,
};
use gatekit::sequence::{
    AutoConfig, AutoModel, DeepseekV3Config, GamConfig, GatedAttentionModelConfig, GlaConfig,
    KimiLinearConfig, MambaConfig, MixtralConfig, MoveTextConfig, Qwen3MoeConfig, Qwen3NextConfig,
    SoftmaxConfig, TransNormerConfig,
};

use crate::data::tokens;
use crate::evaluate::{carrying_the_state, overlapping_windows};
use crate::experts;
use crate::metrics::GateRow;
use crate::settings::{Ffn, Mixer, Settings};

/// One token a byte.
const VOCABULARY: usize = 256;

/// The model, for people.
pub fn name(settings: &Settings) -> String {
    let name = match settings.mixer {
        Mixer::AffineScaled => "affine-scaled attention",
        Mixer::DeepseekV3 => "DeepSeek-V3",
        Mixer::DeltaNet => "DeltaNet",
        Mixer::Gam => "gated associative memory",
        Mixer::GatedAttention => "gated attention",
        Mixer::GatedDeltaNet => "gated DeltaNet",
        Mixer::Gla => "gated linear attention",
        Mixer::Hgrn => "HGRN",
        Mixer::Hgrn2 => "HGRN2",
        Mixer::KimiLinear => "Kimi Linear",
        Mixer::Mamba => "Mamba",
        Mixer::Mixtral => "Mixtral",
        Mixer::Move => "mixture of value embeddings",
        Mixer::Qwen3Moe => "Qwen3-MoE",
        Mixer::Qwen3Next => "Qwen3-Next",
        Mixer::Retnet => "RetNet",
        Mixer::Softmax => "softmax attention",
        Mixer::TransNormer => "TransNormerLLM",
    };
    let name = match settings.hybrid {
        Some(linear) => format!("{name} {linear}:1"),
        None => name.to_string(),
    };
    match settings.ffn {
        Ffn::Moe if !settings.mixer.is_sparse() => format!("{name} with {} experts", settings.experts),
        _ => name,
    }
}

/// The configuration that the settings describe.
///
/// # Errors
///
/// [`ConfigError`] for a width that the heads do not divide.
pub fn config(settings: &Settings) -> Result<AutoConfig, ConfigError> {
    let Settings { dim, layers, heads, experts: routed, window, .. } = *settings;
    if heads == 0 || !dim.is_multiple_of(heads) {
        return Err(ConfigError::new("--heads", heads, format!("a divisor of --dim {dim}")));
    }
    let (head, inner) = (dim / heads, settings.intermediate_size());
    // So that the chosen experts together are as wide as the dense layer.
    let chosen = settings.experts_per_token;
    let expert = inner.div_ceil(chosen);
    let moe = experts::layer(settings, inner);
    // Rotations take pairs of channels.
    let (rotated, latent) = ((head / 2).next_multiple_of(2), (dim / 2).max(1));
    // Every fourth layer, and the last of a stack that is shorter.
    let full: Vec<usize> =
        (1..=layers).filter(|layer| layer % 4 == 0 || layers < 4 && *layer == layers).collect();
    let linear: Vec<usize> = (1..=layers).filter(|layer| !full.contains(layer)).collect();
    Ok(match settings.mixer {
        Mixer::Gla if settings.hybrid.is_none() => gla(settings).into(),
        mixer if mixer.is_hybrid() => hybrid(settings)?.into(),
        Mixer::AffineScaled => AffineScaledModelConfig::new(VOCABULARY, dim, layers, inner)
            .with_num_heads(heads)
            .with_moe(moe)
            .into(),
        Mixer::DeepseekV3 => DeepseekV3Config::new(VOCABULARY, dim, layers)
            .with_intermediate_size(inner)
            .with_num_attention_heads(heads)
            .with_kv_lora_rank(latent)
            .with_q_lora_rank(None)
            .with_qk_nope_head_dim(head)
            .with_qk_rope_head_dim(rotated)
            .with_v_head_dim(head)
            .with_n_routed_experts(routed)
            .with_num_experts_per_tok(chosen)
            .with_norm_topk_prob(chosen > 1)
            .with_moe_intermediate_size(expert)
            .with_first_k_dense_replace(1)
            .with_n_group(1)
            .with_topk_group(1)
            .into(),
        Mixer::Gam => GamConfig::new(VOCABULARY, dim, layers)
            .with_block_size(settings.context)
            .with_num_memory_slots(dim)
            .with_dropout(0.0)
            .into(),
        Mixer::GatedAttention => GatedAttentionModelConfig::new(VOCABULARY, dim, layers, inner)
            .with_num_attention_heads(heads)
            .with_moe(moe)
            .into(),
        Mixer::KimiLinear => KimiLinearConfig::new(VOCABULARY, dim, layers, linear, full)
            .with_intermediate_size(inner)
            .with_linear_num_heads(heads)
            .with_linear_head_dim(head)
            .with_num_attention_heads(heads)
            .with_kv_lora_rank(latent)
            .with_qk_nope_head_dim(head)
            .with_qk_rope_head_dim(rotated)
            .with_v_head_dim(head)
            .with_num_experts(routed)
            .with_num_experts_per_token(chosen)
            .with_moe_intermediate_size(expert)
            .into(),
        Mixer::Mamba => MambaConfig::new(VOCABULARY, dim, layers).with_initializer_range(0.02).into(),
        Mixer::Mixtral => MixtralConfig::new(VOCABULARY, dim, layers)
            .with_intermediate_size(expert)
            .with_num_attention_heads(heads)
            .with_num_key_value_heads(heads)
            .with_sliding_window(window)
            .with_num_local_experts(routed)
            .with_num_experts_per_tok(chosen)
            .with_rope_theta(10_000.0)
            .into(),
        Mixer::Move => {
            MoveTextConfig::new(VOCABULARY, layers, heads, dim).with_window_size(window.unwrap_or(0)).into()
        }
        Mixer::Qwen3Moe => Qwen3MoeConfig::new(VOCABULARY, dim, layers)
            .with_intermediate_size(inner)
            .with_num_attention_heads(heads)
            .with_num_key_value_heads(heads)
            .with_head_dim(Some(head))
            .with_num_experts(routed)
            .with_num_experts_per_tok(chosen)
            .with_moe_intermediate_size(expert)
            .with_norm_topk_prob(chosen > 1)
            .into(),
        Mixer::Qwen3Next => Qwen3NextConfig::new(VOCABULARY, dim, layers)
            .with_full_attention_interval(4.min(layers))
            .with_num_attention_heads(heads)
            .with_num_key_value_heads(heads)
            .with_head_dim(head)
            .with_partial_rotary_factor(0.5)
            .with_rope_theta(10_000.0)
            .with_linear_num_key_heads(heads)
            .with_linear_num_value_heads(heads)
            .with_linear_key_head_dim(head)
            .with_linear_value_head_dim(head)
            .with_num_experts(routed)
            .with_num_experts_per_tok(chosen)
            .with_norm_topk_prob(chosen > 1)
            .with_moe_intermediate_size(expert)
            .with_shared_expert_intermediate_size(expert)
            .with_intermediate_size(inner)
            .into(),
        Mixer::Softmax => SoftmaxConfig::new(VOCABULARY, dim, layers)
            .with_num_heads(heads)
            .with_window_size(window)
            .with_intermediate_size(Some(inner))
            .with_moe(moe)
            .into(),
        Mixer::TransNormer => {
            TransNormerConfig::new(VOCABULARY, dim, layers).with_num_heads(heads).with_glu_dim(inner).into()
        }
        Mixer::Gla | Mixer::DeltaNet | Mixer::GatedDeltaNet | Mixer::Hgrn | Mixer::Hgrn2 | Mixer::Retnet => {
            unreachable!("hybrid mixers come first")
        }
    })
}

fn gla(settings: &Settings) -> GlaConfig {
    GlaConfig::new(VOCABULARY, settings.dim, settings.layers)
        .with_num_heads(settings.heads)
        .with_expand_k(settings.expand_k)
        .with_expand_v(settings.expand_v)
        .with_use_short_conv(settings.short_conv)
        .with_gate_logit_normalizer(settings.gate_normalizer)
        .with_intermediate_size(Some(settings.intermediate_size()))
        .with_moe(experts::layer(settings, settings.intermediate_size()))
}

/// The other linear layers, and stacks with softmax attention.
fn hybrid(settings: &Settings) -> Result<HybridConfig, ConfigError> {
    let Settings { dim, layers, heads, short_conv, .. } = *settings;
    let mixer: HybridMixerConfig = match settings.mixer {
        Mixer::Gla => gla(settings).layer().into(),
        Mixer::DeltaNet => {
            DeltaNetConfig::new(dim).with_num_heads(heads).with_use_short_conv(short_conv).into()
        }
        Mixer::GatedDeltaNet => GatedDeltaNetConfig::new(dim)
            .with_num_heads(heads)
            .with_head_dim(dim / heads)
            .with_expand_v(1.0)
            .with_use_short_conv(short_conv)
            .into(),
        Mixer::Hgrn => HgrnConfig::new(dim).with_use_short_conv(short_conv).into(),
        Mixer::Hgrn2 => {
            Hgrn2Config::new(dim).with_num_heads(Some(heads)).with_use_short_conv(short_conv).into()
        }
        _ => RetentionConfig::new(dim).with_num_heads(heads).with_use_short_conv(short_conv).into(),
    };
    let attn = match settings.hybrid {
        Some(linear) => Some(HybridAttentionConfig::new(HybridConfig::ratio(linear, 1, layers)?, heads)),
        None => None,
    };
    let size = settings.intermediate_size();
    Ok(HybridConfig::new(VOCABULARY, layers, mixer)
        .with_attn(attn)
        .with_intermediate_size(Some(size))
        .with_moe(experts::layer(settings, size)))
}

/// Mean bits per byte on `text[range]`, every byte predicted once from what stands before it.
///
/// A state of constant size goes along from the first byte to the last. Attention reads windows of the trained
/// context instead: positions beyond it mean nothing to it.
pub fn bits_per_byte(
    model: &AutoModel,
    text: &[u8],
    range: Range<usize>,
    settings: &Settings,
    device: &Device,
) -> f64 {
    let recurrent = settings.mixer.is_hybrid() && settings.hybrid.is_none()
        || matches!(settings.mixer, Mixer::Mamba | Mixer::TransNormer);
    match recurrent {
        true => carrying_the_state(model, text, range, settings.context, device),
        false => overlapping_windows(model, text, range, settings.context, device),
    }
}

/// How open every gate of every layer is on `text`; of gated linear attention alone, where every layer has two.
pub fn gates(model: &AutoModel, text: &[u8], step: usize, device: &Device) -> Vec<GateRow> {
    let AutoNetwork::Gla(model) = model.network() else { return Vec::new() };
    let layers = model.gate_values(tokens(text, device));
    (layers.into_iter().zip(1..))
        .flat_map(|(gates, layer)| {
            let forget = GateRow::new(step, layer, "forget", &GateStatistics::of(gates.forget));
            // A swish gate has no upper end and can turn its input's sign: what counts is its size.
            let output = gates.output.map(|gate| GateStatistics::of(gate.abs()));
            let output = output.map(|gate| GateRow::new(step, layer, "output", &gate));
            [Some(forget), output].into_iter().flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use gatekit::core::ModuleConfig;
    use gatekit::sequence::{CausalLm, RoutedLm};

    use super::*;

    const TEXT: &[u8] = b"Now is the winter of our discontent made glorious summer by this sun of York; \
        and all the clouds that lour'd upon our house in the deep bosom of the ocean buried.";

    fn settings() -> Settings {
        Settings { layers: 2, dim: 16, context: 32, ..Settings::QUICK }
    }

    /// Bits per byte computed the plain way: one forward pass over everything that `context` lets a byte see.
    fn plainly(model: &impl CausalLm, from: usize, range: Range<usize>, device: &Device) -> f64 {
        let logits = model.forward(tokens(&TEXT[from..range.end - 1], device), None);
        let p = burn::tensor::activation::softmax(logits, 2);
        let bits = range.clone().map(|position| {
            let row = position - 1 - from;
            let byte = usize::from(TEXT[position]);
            -p.clone().slice([0..1, row..row + 1, byte..byte + 1]).into_scalar::<f64>().log2()
        });
        bits.sum::<f64>() / range.len() as f64
    }

    #[test]
    fn a_carried_state_gives_what_one_pass_gives() {
        let _alone = crate::random_numbers();
        let device = Device::default();
        let model = config(&settings()).expect("a model").init(&device);
        let streamed = bits_per_byte(&model, TEXT, 40..150, &settings(), &device);
        let expected = plainly(&model, 40 - 32, 40..150, &device);
        assert!((streamed - expected).abs() < 1e-4, "{streamed} {expected}");
    }

    #[test]
    fn windows_predict_every_byte_once() {
        let _alone = crate::random_numbers();
        let device = Device::default();
        let settings = Settings { mixer: Mixer::Softmax, ..settings() };
        let model = config(&settings).expect("a model").init(&device);
        // 70 bytes: four strides of 16 and one of 6.
        let found = bits_per_byte(&model, TEXT, 50..120, &settings, &device);
        let strides = [50..66, 66..82, 82..98, 98..114, 114..120];
        let expected: f64 = strides
            .map(|range| plainly(&model, range.end - 1 - 32, range.clone(), &device) * range.len() as f64)
            .iter()
            .sum();
        assert!((found - expected / 70.0).abs() < 1e-4, "{found} {expected}");
    }

    #[test]
    fn every_layer_of_the_gated_model_has_two_gates() {
        let _alone = crate::random_numbers();
        let device = Device::default();
        let model = config(&settings()).expect("a model").init(&device);
        let rows = gates(&model, TEXT, 7, &device);
        let names: Vec<(usize, &str)> = rows.iter().map(|row| (row.layer, row.gate.as_str())).collect();
        assert_eq!(names, [(1, "forget"), (1, "output"), (2, "forget"), (2, "output")]);
        for row in rows.iter().step_by(2) {
            // Decays start at 0.5^(1/16) = 0.958.
            assert!((row.mean - 0.958).abs() < 0.01, "{row:?}");
            assert_eq!((row.step, row.closed, row.open), (7, 0.0, 1.0));
        }
    }

    /// Every mixer makes a model that predicts, streams, and names itself; its size is what the settings say.
    #[test]
    fn every_mixer_makes_a_model() {
        let _alone = crate::random_numbers();
        // Every mixer has kernels of its own, which a GPU would compile first.
        let device = gatekit::device::parse("flex").expect("compiled in");
        for &mixer in Mixer::value_variants() {
            for (hybrid, ffn) in
                [(None, Ffn::Dense), (Some(1), Ffn::Dense), (None, Ffn::Moe), (Some(1), Ffn::Moe)]
            {
                let settings = Settings { mixer, hybrid, ffn, dim: 32, ..settings() };
                if hybrid.is_some() && !mixer.is_hybrid() || ffn == Ffn::Moe && !mixer.takes_experts() {
                    assert!(settings.validate().is_err());
                    continue;
                }
                settings.validate().expect("valid");
                let made = config(&settings).expect("a configuration");
                let model = made.try_init(&device).unwrap_or_else(|error| panic!("{mixer:?}: {error}"));
                assert!(!name(&settings).is_empty());
                let found = bits_per_byte(&model, TEXT, 40..72, &settings, &device);
                // At first nothing is known; embeddings that also are the head may even be sure of the wrong byte.
                assert!(found.is_finite() && found > 6.0, "{mixer:?}: {found}");
                let gates = gates(&model, TEXT, 1, &device).len();
                assert_eq!(gates, if mixer == Mixer::Gla && hybrid.is_none() { 4 } else { 0 });
                let (_, routings) = model.forward_with_routing(tokens(&TEXT[..32], &device));
                assert_eq!(routings.is_empty(), !settings.is_sparse(), "{mixer:?}");
            }
        }
    }
}
