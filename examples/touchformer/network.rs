//! The models that are compared, and how they learn.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use gatekit::core::ModuleConfig;
use gatekit::core::cross_entropy::cross_entropies;
use gatekit::core::cross_modal::masked_mean;
use gatekit::fusion::touchformer::{
    ModalityDropout, SensorNoise, TouchBatch, TouchFormer, TouchFormerConfig, TouchFormerTrainer,
    TouchFormerTrainingConfig, Weighting,
};
use gatekit_examples::{ExampleError, Training, progress, tasks, train};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::materials::{FEATURES, Fault, MATERIALS, SENSORS, Touch, batch};

/// Instances of a step.
const BATCH: usize = 32;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variant {
    /// Means over the frames, joined, under two layers.
    Concatenation,
    /// All sensors that are there count alike.
    Equal,
    /// Modality-adaptive gating.
    Mag,
    /// The same with regularisation across instances.
    MagCer,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Concatenation, Self::Equal, Self::Mag, Self::MagCer];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Concatenation => "concatenation",
            Self::Equal => "equal weights",
            Self::Mag => "MAG",
            Self::MagCer => "MAG + CER",
        }
    }
}

/// How large and how long.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Common width.
    pub dim: usize,
    /// Passes over the training touches.
    pub epochs: usize,
    /// Touches that are learned from.
    pub train: usize,
    /// Touches that choose the epoch.
    pub validation: usize,
    /// Touches that judge.
    pub test: usize,
    /// Whether sensors fail in training as well.
    pub failures: bool,
}

/// Means of every sensor's features over its frames, 0 for a missing one, under two layers.
#[derive(Module, Debug)]
pub struct Means {
    fc1: Linear,
    fc2: Linear,
}

impl Means {
    fn forward(&self, batch: &TouchBatch) -> Tensor<2> {
        let means = batch.inputs.iter().enumerate();
        let means = means.map(|(m, x)| masked_mean(x.clone(), batch.mask.steps(m))).collect();
        self.fc2.forward(relu(self.fc1.forward(Tensor::cat(means, 1))))
    }
}

/// A model that has learned.
#[derive(Debug)]
pub enum Trained {
    /// Of [`Variant::Concatenation`].
    Means(Box<Means>),
    /// Of the others.
    TouchFormer(Box<TouchFormer>),
}

impl Trained {
    /// Share of right answers.
    pub fn accuracy(&self, batch: &TouchBatch) -> f64 {
        let logits = match self {
            Self::Means(model) => model.forward(batch),
            Self::TouchFormer(model) => model.forward(&batch.inputs, &batch.mask).logits,
        };
        let right = logits.argmax(1).squeeze_dim::<1>(1).equal(batch.labels.clone());
        right.float().mean().into_scalar::<f64>()
    }

    /// Trained parameters.
    pub fn parameters(&self) -> usize {
        match self {
            Self::Means(model) => model.num_params(),
            Self::TouchFormer(model) => model.num_params(),
        }
    }
}

/// TouchFormer of the experiment's size.
pub fn config(variant: Variant, sizes: &Sizes) -> TouchFormerConfig {
    TouchFormerConfig::new(vec![FEATURES; SENSORS.len()], MATERIALS)
        .with_dim(sizes.dim)
        .with_num_heads(2)
        .with_layers(1)
        .with_memory_layers(1)
        .with_attn_dropout(0.0)
        .with_relu_dropout(0.0)
        .with_res_dropout(0.0)
        .with_embed_dropout(0.1)
        .with_weighting(if variant == Variant::Equal { Weighting::Equal } else { Weighting::Adaptive })
        .with_regularization_weight(if variant == Variant::MagCer { 0.1 } else { 0.0 })
}

/// Trains a variant; all of a seed see the same touches, and the same failures if there are any.
pub fn trained(
    variant: Variant,
    sizes: &Sizes,
    (touches, validation): (&[Touch], &[Touch]),
    seed: u64,
    device: &Device,
) -> Result<Trained, ExampleError> {
    device.seed(seed);
    let mut random = tasks::random(seed);
    let mut order: Vec<&Touch> = touches.iter().collect();
    let steps = touches.len().div_ceil(BATCH);
    let bar = progress(sizes.epochs * steps, &format!("{} {seed}", variant.name()));
    if variant == Variant::Concatenation {
        let model = Means {
            fc1: LinearConfig::new(FEATURES * SENSORS.len(), 64).init(device),
            fc2: LinearConfig::new(64, MATERIALS).init(device),
        };
        let steps = sizes.epochs * steps;
        let training = Training { steps, warmup: steps / 20, weight_decay: 1e-2, ..Training::default() };
        let autodiff = device.clone().autodiff();
        let mut pending: Vec<TouchBatch> = Vec::new();
        let (model, _) = train(model, &training, &bar, |model, _| {
            if pending.is_empty() {
                pending = epoch(&mut order, sizes.failures, &mut random, &autodiff).expect("probabilities");
            }
            let batch = pending.pop().expect("an epoch has a batch");
            cross_entropies(model.forward(&batch), batch.labels).mean()
        });
        return Ok(Trained::Means(Box::new(model)));
    }
    let config = config(variant, sizes);
    let settings = TouchFormerTrainingConfig::new().with_learning_rate(5e-3).with_decay(0.3);
    let mut trainer = TouchFormerTrainer::new(config.try_init(device)?, config.loss()?, &settings)?;
    // Judged under the conditions of the training.
    let mut held_out: Vec<&Touch> = validation.iter().collect();
    let validation = epoch(&mut held_out, sizes.failures, &mut tasks::random(seed), device)?;
    for _ in 0..sizes.epochs {
        for batch in epoch(&mut order, sizes.failures, &mut random, device)? {
            let loss = trainer.step(&batch)?;
            bar.set_message(format!("loss {loss:.3}"));
            bar.inc(1);
        }
        trainer.end_epoch(&validation)?;
    }
    bar.finish_and_clear();
    Ok(Trained::TouchFormer(Box::new(trainer.best())))
}

/// The touches in new order; if sensors fail, a fifth loses one and in a fifth one of those left gives noise.
fn epoch(
    order: &mut [&Touch],
    failures: bool,
    random: &mut StdRng,
    device: &Device,
) -> Result<Vec<TouchBatch>, ExampleError> {
    order.shuffle(random);
    // A batch of one instance cannot be regularised.
    let batches = order.chunks(BATCH).filter(|touches| touches.len() > 1);
    let batches = batches.map(|touches| {
        let mut batch = batch(touches, Fault::None, device);
        if failures {
            batch.mask = ModalityDropout::new().apply(&batch.mask, random)?;
            batch.inputs = SensorNoise::new().apply(batch.inputs, &batch.mask, random)?.0;
        }
        Ok(batch)
    });
    batches.collect()
}
