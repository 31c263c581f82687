//! A language model that learns captions as text, then bind network, prefixes and gates on images with captions.

use burn::tensor::{Device, Tensor};
use gatekit::core::ModuleConfig;
use gatekit::fusion::imagebind_llm::{CaptionBatch, ImageBindLlm, ImageBindLlmConfig, PhaseConfig};
use gatekit_examples::{ExampleError, Training, progress, tasks, train};
use rand::rngs::StdRng;

use super::world::{self, CHANNELS, START, Scene, VOCABULARY, World};

/// Samples of a step.
pub const BATCH: usize = 64;
/// Longest caption: a prompt of 1, and two things with their end.
const LONGEST: usize = 9;

/// The model's sizes: three layers of width 64, all injected.
pub fn config() -> ImageBindLlmConfig {
    ImageBindLlmConfig::new()
        .with_modality_dim(CHANNELS)
        .with_d_model(64)
        .with_heads(4)
        .with_layers(3)
        .with_vocab(VOCABULARY)
        .with_ffn_hidden(128)
        .with_bind_hidden(Some(128))
}

/// Prompts and captions of scenes.
pub fn captions(scenes: &[Scene], device: &Device) -> Result<CaptionBatch, ExampleError> {
    let pairs: Vec<_> = scenes.iter().map(|scene| (vec![START], world::caption(scene))).collect();
    Ok(CaptionBatch::new(&pairs, LONGEST, device)?)
}

/// The language model, from captions alone: nothing is injected.
pub fn language_model(steps: usize, seed: u64, device: &Device) -> Result<ImageBindLlm, ExampleError> {
    device.seed(seed);
    let model = config().try_init(device)?;
    let training = Training { steps, warmup: steps / 20, weight_decay: 0.01, ..Training::default() };
    let mut random = tasks::random(seed + 1000);
    let autodiff = device.clone().autodiff();
    let bar = progress(steps, &format!("captions as text {seed}"));
    let (model, _) = train(model, &training, &bar, |model, _| {
        let scenes: Vec<Scene> = (0..BATCH).map(|_| world::scene(&mut random)).collect();
        let batch = captions(&scenes, &autodiff).expect("captions are well formed");
        loss(model, &batch, None)
    });
    Ok(model)
}

/// The mean loss of a batch, with images or without.
pub fn loss(model: &ImageBindLlm, batch: &CaptionBatch, feats: Option<Tensor<2>>) -> Tensor<1> {
    let visual = feats.map(|feats| model.visual(feats).expect("embeddings have the model's width"));
    let logits = model.forward(batch.tokens.clone(), visual).expect("captions are well formed");
    model.loss(logits, &batch.labels).expect("labels are tokens")
}

/// What happened while images were learned.
pub struct Learned {
    pub model: ImageBindLlm,
    /// Loss of every step before its update.
    pub losses: Vec<f64>,
    /// What the language model alone has on the first batch.
    pub text_loss: f64,
    /// Mean of |tanh(gate)| by layer, of every step.
    pub gates: Vec<Vec<f64>>,
}

/// Learns images and their captions: the phase of pre-training at a rate that suits the size.
pub fn images(
    model: ImageBindLlm,
    world: &World,
    steps: usize,
    rate: f64,
    (label, seed): (&str, u64),
    device: &Device,
) -> Result<Learned, ExampleError> {
    let phase = PhaseConfig::pretrain()
        .with_base_rate(rate)
        .with_effective_batch(256)
        .with_epochs(steps)
        .with_warmup_epochs(steps / 20);
    let mut trainer = phase.try_init(model, &config().tensor_layout(), 1)?;
    let (mut random, autodiff) = (tasks::random(seed + 2000), device.clone().autodiff());
    let (mut losses, mut gates, mut text_loss) = (Vec::new(), Vec::new(), 0.0);
    let bar = progress(steps, &format!("{label} {seed}"));
    for step in 0..steps {
        let (scenes, feats) = scenes_and_images(world, BATCH, &mut random);
        let batch = captions(&scenes, &autodiff)?;
        if step == 0 {
            text_loss = loss(&trainer.model, &batch, None).into_scalar::<f64>();
        }
        gates.push(trainer.model.gates().iter().map(|heads| mean(heads)).collect());
        let loss = loss(&trainer.model, &batch, Some(world::rows(&feats, &autodiff)));
        losses.push(trainer.step(loss));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Learned { model: trainer.into_model(), losses, text_loss, gates })
}

/// Scenes of one or two concepts with an image each.
pub fn scenes_and_images(world: &World, count: usize, random: &mut StdRng) -> (Vec<Scene>, Vec<Vec<f64>>) {
    (0..count)
        .map(|_| {
            let scene = world::scene(random);
            let image = world.image(&scene, random);
            (scene, image)
        })
        .unzip()
}

/// The mean of some numbers.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
