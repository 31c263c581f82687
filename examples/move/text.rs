//! The text models: variants, training, what they remember.

use std::f64::consts::LN_2;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::sequence::CausalLm;
use gatekit::sequence::lm::Targets;
use gatekit::sequence::mixture_of_value_embeddings::{
    MoveLearningRates, MoveOptimizer, MoveTextConfig, MoveTextModel, ValueMemory,
};
use gatekit_examples::tasks::{self, Corpus};
use gatekit_examples::{ExampleError, Results, progress};

use crate::facts::Facts;

/// The variant whose gates are shown.
pub const PROBED: &str = "MoVE x4";
/// Share of facts whose value is the likeliest token.
pub const RECALL: &str = "facts recalled";

const LAYERS: usize = 4;
const HEADS: usize = 4;
const WIDTH: usize = 64;
/// Width of the standard model that makes as many products as MoVE x8, and of its heads.
const WIDER: (usize, usize) = (68, 16);
/// Rows of a batch: facts, and as many of text.
const ROWS: usize = 4;
const TIME: usize = 64;
/// Windows of held-out text.
const WINDOWS: usize = 64;
/// Questions asked at a time.
const QUESTIONS: usize = 256;

/// The models that are compared, with the slots of x1 half the layers.
pub fn variants(vocabulary: usize) -> Vec<(&'static str, MoveTextConfig)> {
    let base = || MoveTextConfig::new(vocabulary, LAYERS, HEADS, WIDTH);
    let (wide, dim) = WIDER;
    let wider = MoveTextConfig::new(vocabulary, LAYERS, HEADS, wide).with_head_dim(Some(dim));
    let slots = |density: usize| base().with_memory(ValueMemory::Global { slots: density * LAYERS / 2 });
    vec![
        ("standard", base().with_memory(ValueMemory::None)),
        ("standard, wider", wider.with_memory(ValueMemory::None)),
        ("LaVE x1", base().with_memory(ValueMemory::LayerWise { every: 2 })),
        ("LaVE x2", base().with_memory(ValueMemory::LayerWise { every: 1 })),
        ("MoVE x1", slots(1)),
        ("MoVE x2", slots(2)),
        (PROBED, slots(4)),
        ("MoVE x8", slots(8)),
    ]
}

/// What a model has learned, over the steps.
pub struct Curve {
    /// The variant.
    pub name: &'static str,
    /// Step and bits of a fact's value.
    pub fact_bits: Vec<(usize, f64)>,
}

/// What all trainings share.
pub struct Lab {
    device: Device,
    corpus: Corpus,
    steps: usize,
    /// Of the recipe's learning rates.
    rate: f64,
}

impl Lab {
    pub fn new(steps: usize, rate: f64, device: Device) -> Result<Self, ExampleError> {
        Ok(Self { device, corpus: Corpus::shakespeare()?, steps, rate })
    }

    /// A batch: rows of facts, then rows of text.
    fn batch(
        &self,
        facts: &Facts,
        random: &mut rand::rngs::StdRng,
        device: &Device,
    ) -> Tensor<2, burn::tensor::Int> {
        let (text, _) = self.corpus.batch(ROWS, TIME, random, device);
        Tensor::cat(vec![facts.batch(ROWS, TIME, random, device), text], 0)
    }

    /// Held-out text, and as many rows of facts, for the gates.
    pub fn sample(&self, facts: &Facts) -> Tensor<2, burn::tensor::Int> {
        let (text, _) = self.corpus.validation(WINDOWS, TIME, &self.device);
        Tensor::cat(vec![facts.batch(WINDOWS, TIME, &mut tasks::random(1), &self.device), text], 0)
    }

    /// Trains a variant by the paper's recipe and records what it knows at the end.
    pub fn train(
        &self,
        name: &'static str,
        config: &MoveTextConfig,
        facts: &Facts,
        seed: u64,
        results: &mut Results,
    ) -> Result<(MoveTextModel, Curve), ConfigError> {
        self.device.seed(seed);
        let device = self.device.clone().autodiff();
        let mut random = tasks::random(seed);
        let mut model = config.try_init(&self.device)?.materialize().train();
        let mut optimizer = MoveOptimizer::new(&model, MoveLearningRates::for_width(config.n_embd));
        let mut curve = Curve { name, fact_bits: Vec::new() };
        let bar = progress(self.steps, name);
        for step in 0..self.steps {
            let ids = self.batch(facts, &mut random, &device);
            let targets =
                Targets::new(&ids.to_data(), config.vocab_size, &device).expect("tokens of the corpus");
            let loss = targets.cross_entropy(model.forward(ids, None));
            bar.set_message(format!("loss {:.3}", loss.clone().into_scalar::<f64>()));
            model = optimizer.step(self.rate * self.multiplier(step), model, loss.backward());
            if (step + 1) % self.steps.div_ceil(6) == 0 {
                curve.fact_bits.push((step + 1, self.recall(&model.valid(), facts).1));
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let model = model.valid();
        let (recalled, fact_bits) = self.recall(&model, facts);
        let text_bits = self.corpus.bits_per_byte(&model, WINDOWS, TIME, &self.device);
        results.record(name, RECALL, seed, recalled);
        results.record(name, "bits a fact", seed, fact_bits);
        results.record(name, "text bits/byte", seed, text_bits);
        Ok((model, curve))
    }

    /// The schedule: constant, then down to 0 over the last 40%.
    fn multiplier(&self, step: usize) -> f64 {
        let left = (self.steps - step) as f64 / self.steps as f64;
        (left / 0.4).min(1.0)
    }

    /// Share of facts recalled, and mean bits of their values.
    fn recall(&self, model: &MoveTextModel, facts: &Facts) -> (f64, f64) {
        let (mut recalled, mut nats) = (0.0, 0.0);
        for start in (0..facts.count()).step_by(QUESTIONS) {
            let range = start..facts.count().min(start + QUESTIONS);
            let count = range.len() as f64;
            let (ids, labels) = facts.questions(range, &self.device);
            let logits = model.forward(ids, None);
            let targets = Targets::new(&labels.to_data(), model.vocab_size(), &self.device).expect("tokens");
            nats += targets.negative_log_likelihood(logits.clone()).sum().into_scalar::<f64>();
            recalled += tasks::accuracy(logits, labels) * count;
        }
        (recalled / facts.count() as f64, nats / facts.count() as f64 / LN_2)
    }
}
