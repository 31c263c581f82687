//! One detector, trained and measured, or found finished.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::module::Module;
use burn::prelude::Device;
use burn::store::ModuleRecord;
use burn::tensor::Bytes;
use gatekit::core::ModuleConfig;
use gatekit::core::batch_norm::BatchStatistics;
use gatekit::fusion::pacgnet::{Ablation, DetectionTargets, NightScene, NightScenes, PacgNet, night_scenes};
use gatekit_examples::{ExampleError, Trainer, Training, progress, say, tasks};
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::measure::{Measured, measure, replaced};

/// Highest learning rate; it falls linearly to a hundredth.
const LEARNING_RATE: f64 = 2e-3;

/// What a run depends on besides variant and seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Optimiser steps.
    pub steps: usize,
    /// Pairs of images a step.
    pub batch: usize,
    /// Pixels of a side.
    pub size: usize,
    /// Scenes to train on.
    pub train: usize,
    /// Scenes to measure on.
    pub test: usize,
    /// The small model.
    pub quick: bool,
}

/// A variant and a seed.
#[derive(Clone, Debug)]
pub struct Run {
    /// What of the network is there.
    pub ablation: Ablation,
    /// Of scenes, weights and batches.
    pub seed: u64,
    /// The rest.
    pub settings: Settings,
}

/// A finished run on disk.
#[derive(Serialize, Deserialize)]
struct Finished {
    settings: Settings,
    measured: Measured,
}

/// What a variant is called in tables and files.
pub fn name(ablation: Ablation) -> &'static str {
    match ablation {
        Ablation::Full => "PACGNet",
        Ablation::CrossGating => "SCG only",
        Ablation::PyramidalGating => "PFMG only",
        Ablation::Added => "added streams",
        Ablation::Rgb => "RGB alone",
        Ablation::Ir => "infrared alone",
    }
}

impl Run {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        name(self.ablation)
    }

    /// The seed of the scenes that are measured on.
    pub fn test_seed(&self) -> u64 {
        self.seed.wrapping_mul(2).wrapping_add(1)
    }

    fn file(&self, out: &Path, extension: &str) -> PathBuf {
        let name = self.name().replace(' ', "-").to_lowercase();
        out.join("runs").join(format!("{name}-{}.{extension}", self.seed))
    }

    /// The measurements of an earlier call with the same settings, or of a training now.
    pub fn finished_or(
        &self,
        out: &Path,
        fresh: bool,
        device: &Device,
        label: &str,
    ) -> Result<Measured, ExampleError> {
        let path = self.file(out, "json");
        if !fresh && let Some(mut measured) = self.finished(&path) {
            say(format!("{label}: finished earlier, mAP50 {:.3}", measured.overall));
            if measured.replaced.is_none() {
                match self.model(out, device).and_then(|model| replaced(&model, self, device)) {
                    Ok(values) => {
                        measured.replaced = Some(values);
                        self.keep(&path, &measured)?;
                    }
                    Err(error) => say(format!("{label}: no noise instead of a sensor, for {error}")),
                }
            }
            return Ok(measured);
        }
        let start = Instant::now();
        let model = self.train(device, label)?;
        let trained = start.elapsed().as_secs_f64();
        let measured = measure(&model, self, device, trained)?;
        say(format!("{label}: mAP50 {:.3}, trained in {trained:.0} s", measured.overall));
        fs::create_dir_all(out.join("runs")).map_err(ExampleError::io(out))?;
        let weights = self.file(out, "bpk");
        let bytes = model.into_record().into_bytes();
        let bytes = bytes.map_err(|error| ExampleError::unusable(&weights, error.to_string()))?;
        write_whole(&weights, &bytes)?;
        self.keep(&path, &measured)?;
        Ok(measured)
    }

    /// Writes what was measured, for later calls.
    fn keep(&self, path: &Path, measured: &Measured) -> Result<(), ExampleError> {
        let finished = Finished { settings: self.settings.clone(), measured: measured.clone() };
        let text = serde_json::to_vec_pretty(&finished)
            .map_err(|error| ExampleError::unusable(path, error.to_string()))?;
        write_whole(path, &text)
    }

    /// A damaged or foreign file is as good as none: the run is done again.
    fn finished(&self, path: &Path) -> Option<Measured> {
        let finished: Finished = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (finished.settings == self.settings).then_some(finished.measured)
    }

    /// The detector that the run left behind.
    pub fn model(&self, out: &Path, device: &Device) -> Result<PacgNet, ExampleError> {
        let path = self.file(out, "bpk");
        let bytes = fs::read(&path).map_err(ExampleError::io(&path))?;
        let unusable = |error: burn::store::RecordError| ExampleError::unusable(&path, error.to_string());
        let record = ModuleRecord::from_bytes(Bytes::from_bytes_vec(bytes)).map_err(unusable)?;
        let model = config(self.ablation, self.settings.quick).try_init(device)?;
        model.try_load_record(record).map_err(unusable)
    }

    /// AdamW, linearly falling, over scenes that are mirrored at random.
    fn train(&self, device: &Device, label: &str) -> Result<PacgNet, ExampleError> {
        let Settings { steps, batch, size, train, quick, .. } = self.settings;
        let training =
            Training { steps, learning_rate: LEARNING_RATE, warmup: 0, weight_decay: 5e-4, clip: 10.0 };
        device.seed(self.seed);
        let config = config(self.ablation, quick);
        let scheduler = LinearLrSchedulerConfig::new(LEARNING_RATE, LEARNING_RATE / 100.0, steps).init();
        let scheduler = scheduler.map_err(|reason| ExampleError::unusable("the schedule", reason))?;
        let mut trainer = Trainer::new(config.try_init(device)?, &training)?.with_scheduler(scheduler);
        let scenes = NightScenes::new(size, self.seed.wrapping_mul(2))?;
        let scenes: Vec<NightScene> = (0..train).map(|index| scenes.scene(index)).collect();
        let autodiff = device.clone().autodiff();
        let mut random = tasks::random(self.seed);
        let bar = progress(steps, label);
        let mut order: Vec<usize> = Vec::new();
        for _ in 0..steps {
            let chosen: Vec<NightScene> = (0..batch)
                .map(|_| {
                    if order.is_empty() {
                        order = (0..train).collect();
                        order.shuffle(&mut random);
                    }
                    let mut scene = scenes[order.pop().unwrap_or_default()].clone();
                    for horizontally in [true, false] {
                        if random.random() {
                            scene = scene.mirrored(horizontally);
                        }
                    }
                    scene
                })
                .collect();
            let (rgb, ir) = night_scenes::batch(&chosen.iter().collect::<Vec<_>>(), &autodiff);
            let objects: Vec<_> = chosen.into_iter().map(|scene| scene.objects).collect();
            let targets = DetectionTargets::from_lists(&objects, config.num_classes)?;
            let dropped = trainer.model.drop_modality(&mut random);
            let output = trainer.model.forward(rgb, ir, dropped, BatchStatistics::Batch);
            let loss = config.loss(&trainer.model.head.decode(output.detections), &targets).total();
            let value = trainer.step(loss);
            bar.set_message(format!("loss {value:.2}"));
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(trainer.model.valid())
    }
}

/// Nothing half-written is left: another name first.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ExampleError> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, bytes).map_err(ExampleError::io(&unfinished))?;
    fs::rename(&unfinished, path).map_err(ExampleError::io(path))
}
