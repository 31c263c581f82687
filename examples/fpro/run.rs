//! One network, trained and measured, or found finished.

use std::fs;
use std::path::Path;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use gatekit::core::ModuleConfig;
use gatekit::core::batch_norm::BatchStatistics;
use gatekit::fusion::fpro::{
    FPro, FProConfig, FProTrainer, FProTraining, Frequencies, Orientation, Prompts, psnr,
};
use gatekit_examples::{ExampleError, progress, tasks};
use serde::{Deserialize, Serialize};

use crate::images::{self, Degradation, Pair};

/// Highest learning rate.
const LEARNING_RATE: f64 = 2e-3;
/// Images a forward pass of the measurement.
const CHUNK: usize = 32;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    pub name: &'static str,
    pub frequencies: Frequencies,
    pub filter_gate: bool,
}

const fn variant(name: &'static str, frequencies: Frequencies, filter_gate: bool) -> Variant {
    Variant { name, frequencies, filter_gate }
}

pub const BOTH: Variant = variant("both prompts", Frequencies::Both, true);
pub const UNGATED: Variant = variant("both, ungated filter", Frequencies::Both, false);
pub const VARIANTS: [Variant; 5] = [
    variant("no prompts", Frequencies::None, true),
    variant("low prompt", Frequencies::Low, true),
    variant("high prompt", Frequencies::High, true),
    BOTH,
    UNGATED,
];

/// Sizes of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Pixels of a side.
    pub size: usize,
    pub dim: usize,
    pub steps: usize,
    /// Images a step, half of each degradation.
    pub batch: usize,
    /// Test images of each degradation.
    pub test: usize,
    pub learning_rate: f64,
}

impl Settings {
    pub fn new(quick: bool) -> Self {
        Self {
            size: 32,
            dim: if quick { 8 } else { 16 },
            steps: if quick { 4 } else { 300 },
            batch: 4,
            test: if quick { 4 } else { 32 },
            learning_rate: LEARNING_RATE,
        }
    }

    pub fn config(&self, variant: Variant) -> FProConfig {
        FProConfig::new()
            .with_dim(self.dim)
            .with_num_blocks([1, 1, 1])
            .with_num_refinement_blocks(1)
            .with_heads([2, 2, 4])
            .with_ffn_expansion_factor(2.0)
            .with_image_size(self.size)
            .with_window_size(8)
            .with_filter_gate(variant.filter_gate)
            .with_frequencies(variant.frequencies)
    }

    /// Test images of a seed, which no training sees.
    pub fn test_images(&self, degradation: Degradation, seed: u64) -> Vec<Pair> {
        let mut random = tasks::random(seed.wrapping_mul(2).wrapping_add(1_000_001 + degradation as u64));
        images::pairs(self.size, degradation, self.test, &mut random)
    }

    /// Trained on pictures that are all seen once, rain and haze in equal parts.
    fn train(&self, variant: Variant, seed: u64, device: &Device) -> Result<FPro, ExampleError> {
        device.seed(seed);
        let config = self.config(variant);
        let training = FProTraining::new()
            .with_steps(self.steps)
            .with_learning_rate(self.learning_rate)
            .with_min_learning_rate(self.learning_rate / 300.0)
            .with_batch_size(self.batch);
        let mut trainer = FProTrainer::new(config.try_init(device)?, &config, &training)?;
        let (mut random, autodiff) = (tasks::random(seed), device.clone().autodiff());
        let bar = progress(self.steps, &format!("{} {seed}", variant.name));
        for _ in 0..self.steps {
            let mut pairs = images::pairs(self.size, Degradation::Rain, self.batch / 2, &mut random);
            pairs.extend(images::pairs(self.size, Degradation::Haze, self.batch / 2, &mut random));
            let orientation = Orientation::random(&mut random);
            let [spoilt, clean] =
                images::batch(&pairs, self.size, &autodiff).map(|images| orientation.apply(images));
            let loss = trainer.step(spoilt, clean)?;
            bar.set_message(format!("loss {loss:.3}"));
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(trainer.model.valid())
    }
}

/// What a variant reached on the test pictures of a seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reached {
    /// Settings it was trained with.
    settings: Settings,
    /// PSNR in dB, in the order of [`Degradation::ALL`].
    pub psnr: [f64; 2],
    /// The same with each fault of [`FAULTS`], mean of both degradations; without prompts nothing can be at fault.
    pub faults: Vec<f64>,
    pub parameters: usize,
    /// Of a training step.
    pub seconds: f64,
}

/// What can happen to the low (`true`) or high prompt at test time.
pub const FAULTS: [(bool, Fault); 4] =
    [(true, Fault::Removed), (true, Fault::Noise), (false, Fault::Removed), (false, Fault::Noise)];

impl Settings {
    /// What an earlier call left in `folder`, or what a training now reaches, with the network.
    pub fn reached(
        &self,
        variant: Variant,
        seed: u64,
        folder: &Path,
        device: &Device,
    ) -> Result<(Reached, Option<FPro>), ExampleError> {
        let path = folder.join(format!("{}-{seed}.json", variant.name.replace([' ', ','], "-")));
        let earlier = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Reached>(&bytes).ok());
        if let Some(earlier) = earlier.filter(|earlier| earlier.settings == *self) {
            return Ok((earlier, None));
        }
        let start = Instant::now();
        let model = self.train(variant, seed, device)?;
        let seconds = start.elapsed().as_secs_f64() / self.steps as f64;
        let tests = Degradation::ALL.map(|degradation| self.test_images(degradation, seed));
        let mean = |fault| -> Result<[f64; 2], ExampleError> {
            Ok([measure(&model, &tests[0], fault, device)?, measure(&model, &tests[1], fault, device)?])
        };
        let psnr = mean(None)?;
        let mut faults = Vec::new();
        if variant.frequencies == Frequencies::Both {
            device.seed(seed);
            for fault in FAULTS {
                faults.push(mean(Some(fault))?.iter().sum::<f64>() / 2.0);
            }
        }
        let parameters = model.num_params();
        let reached = Reached { settings: self.clone(), psnr, faults, parameters, seconds };
        let text = serde_json::to_vec_pretty(&reached);
        let text = text.map_err(|error| ExampleError::unusable(&path, error.to_string()))?;
        // Nothing half-written is left: another name first.
        let unfinished = path.with_extension("unfinished");
        fs::write(&unfinished, text).map_err(ExampleError::io(&unfinished))?;
        fs::rename(&unfinished, &path).map_err(ExampleError::io(&path))?;
        Ok((reached, Some(model)))
    }
}

/// What happens to a prompt at test time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is 0.
    Removed,
    /// It is normal noise of the same mean square.
    Noise,
}

impl Fault {
    fn apply(self, prompt: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Removed => prompt.zeros_like(),
            Self::Noise => {
                let size = prompt.clone().square().mean().sqrt().unsqueeze::<4>();
                prompt.random_like(Distribution::Normal(0.0, 1.0)) * size
            }
        }
    }
}

/// Mean PSNR of restored pictures in dB; with a fault of the low (`true`) or high prompt.
fn measure(
    model: &FPro,
    pairs: &[Pair],
    fault: Option<(bool, Fault)>,
    device: &Device,
) -> Result<f64, ExampleError> {
    let mut sum = 0.0;
    for chunk in pairs.chunks(CHUNK) {
        let [spoilt, clean] = images::batch(chunk, model.image_size(), device);
        let output = model.forward_with(spoilt, BatchStatistics::Running, |_, prompts| match fault {
            None => prompts,
            Some((true, fault)) => Prompts { low: prompts.low.map(|low| fault.apply(low)), ..prompts },
            Some((false, fault)) => Prompts { high: prompts.high.map(|high| fault.apply(high)), ..prompts },
        })?;
        sum += psnr(output.image, clean).sum().into_scalar::<f64>();
    }
    Ok(sum / pairs.len() as f64)
}

/// Mean PSNR of pictures that nobody restored.
pub fn unrestored(pairs: &[Pair], size: usize, device: &Device) -> f64 {
    let [spoilt, clean] = images::batch(pairs, size, device);
    psnr(spoilt, clean).mean().into_scalar::<f64>()
}
