//! The two models, which differ in nothing but their token mixer, and what the example asks of both.

use std::ops::Range;

use burn::prelude::*;
use gatekit::core::probe::GateStatistics;
use gatekit::sequence::checkpoint::PretrainedConfig;
use gatekit::sequence::{GlaConfig, GlaForCausalLm, SoftmaxConfig, SoftmaxForCausalLm, StreamingLm};

use crate::data::tokens;
use crate::evaluate::{carrying_the_state, overlapping_windows};
use crate::metrics::GateRow;
use crate::settings::Settings;

/// One token a byte.
const VOCABULARY: usize = 256;

/// A model that this example trains.
pub trait LanguageModel: StreamingLm {
    /// Its configuration, which has a published form.
    type Config: PretrainedConfig<Module = Self>;

    /// For people.
    const NAME: &'static str;

    /// The configuration that the settings describe.
    fn config(settings: &Settings) -> Self::Config;

    /// Mean bits per byte on `text[range]`, every byte predicted once from what stands before it.
    fn bits_per_byte(&self, text: &[u8], range: Range<usize>, settings: &Settings, device: &Device) -> f64;

    /// How open every gate of every layer is on `text`.
    fn gates(&self, text: &[u8], step: usize, device: &Device) -> Vec<GateRow>;
}

impl LanguageModel for GlaForCausalLm {
    type Config = GlaConfig;

    const NAME: &'static str = "gated linear attention";

    fn config(settings: &Settings) -> GlaConfig {
        GlaConfig::new(VOCABULARY, settings.dim, settings.layers)
            .with_num_heads(settings.heads)
            .with_expand_k(settings.expand_k)
            .with_expand_v(settings.expand_v)
            .with_use_short_conv(settings.short_conv)
            .with_gate_logit_normalizer(settings.gate_normalizer)
            .with_intermediate_size(Some(settings.intermediate_size()))
    }

    /// The state is small, so it goes along from the first byte to the last.
    fn bits_per_byte(&self, text: &[u8], range: Range<usize>, settings: &Settings, device: &Device) -> f64 {
        carrying_the_state(self, text, range, settings.context, device)
    }

    fn gates(&self, text: &[u8], step: usize, device: &Device) -> Vec<GateRow> {
        let layers = self.gate_values(tokens(text, device));
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
}

impl LanguageModel for SoftmaxForCausalLm {
    type Config = SoftmaxConfig;

    const NAME: &'static str = "softmax attention";

    fn config(settings: &Settings) -> SoftmaxConfig {
        SoftmaxConfig::new(VOCABULARY, settings.dim, settings.layers)
            .with_num_heads(settings.heads)
            .with_window_size(settings.window)
            .with_intermediate_size(Some(settings.intermediate_size()))
    }

    /// Positions beyond the trained context mean nothing to it, so it reads windows of that length.
    fn bits_per_byte(&self, text: &[u8], range: Range<usize>, settings: &Settings, device: &Device) -> f64 {
        overlapping_windows(self, text, range, settings.context, device)
    }

    /// Softmax attention has no gates.
    fn gates(&self, _text: &[u8], _step: usize, _device: &Device) -> Vec<GateRow> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use gatekit::core::ModuleConfig;
    use gatekit::sequence::CausalLm;

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
        let model: GlaForCausalLm = GlaForCausalLm::config(&settings()).init(&device);
        let streamed = model.bits_per_byte(TEXT, 40..150, &settings(), &device);
        let expected = plainly(&model, 40 - 32, 40..150, &device);
        assert!((streamed - expected).abs() < 1e-4, "{streamed} {expected}");
    }

    #[test]
    fn windows_predict_every_byte_once() {
        let _alone = crate::random_numbers();
        let device = Device::default();
        let model: SoftmaxForCausalLm = SoftmaxForCausalLm::config(&settings()).init(&device);
        // 70 bytes: four strides of 16 and one of 6.
        let found = model.bits_per_byte(TEXT, 50..120, &settings(), &device);
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
        let model: GlaForCausalLm = GlaForCausalLm::config(&settings()).init(&device);
        let rows = model.gates(TEXT, 7, &device);
        let names: Vec<(usize, &str)> = rows.iter().map(|row| (row.layer, row.gate.as_str())).collect();
        assert_eq!(names, [(1, "forget"), (1, "output"), (2, "forget"), (2, "output")]);
        for row in rows.iter().step_by(2) {
            // Decays start at 0.5^(1/16) = 0.958.
            assert!((row.mean - 0.958).abs() < 0.01, "{row:?}");
            assert_eq!((row.step, row.closed, row.open), (7, 0.0, 1.0));
        }
    }
}
