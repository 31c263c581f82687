//! How much a detector finds.

use burn::prelude::Device;
use burn::tensor::{Distribution, Tensor};
use gatekit::core::batch_norm::BatchStatistics;
use gatekit::fusion::pacgnet::evaluation::{
    BoxList, average_precision, match_detections, mean_average_precision,
};
use gatekit::fusion::pacgnet::{Condition, Modality, NightScene, NightScenes, PacgNet, night_scenes};
use gatekit_examples::ExampleError;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::run::{Run, name};

/// Scenes looked at together.
const BATCH: usize = 20;
/// Deviations of the noise that is added to one sensor at test time.
pub const NOISE: [f64; 4] = [0.05, 0.1, 0.2, 0.4];

/// What a run measured; a precision is mAP50 in [0, 1].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The variant.
    pub variant: String,
    /// Its seed.
    pub seed: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Over all scenes.
    pub overall: f64,
    /// By day, night, crossover.
    pub by_condition: [f64; 3],
    /// With noise of the deviations of [`NOISE`] in RGB, and in infrared.
    pub noisy: [[f64; 4]; 2],
    /// With RGB, and infrared, replaced by zeros.
    pub missing: [f64; 2],
    /// With RGB, and infrared, replaced by uniform noise. Runs that were finished before this was measured lack it; it
    /// is then measured with the detector that they left.
    #[serde(default)]
    pub replaced: Option<[f64; 2]>,
}

/// What happens to a sensor at test time.
#[derive(Clone, Copy)]
enum Fault {
    None,
    Noise(Modality, f64),
    Missing(Modality),
    Replaced(Modality),
}

const SENSORS: [Modality; 2] = [Modality::Rgb, Modality::Ir];

/// The scenes that a run measures on.
fn scenes(run: &Run) -> Result<Vec<NightScene>, ExampleError> {
    let scenes = NightScenes::new(run.settings.size, run.test_seed())?;
    Ok((0..run.settings.test).map(|index| scenes.scene(index)).collect())
}

/// Measures on scenes that were not trained on.
pub fn measure(model: &PacgNet, run: &Run, device: &Device, seconds: f64) -> Result<Measured, ExampleError> {
    let scenes = scenes(run)?;
    let judge = Judge { model, run, scenes: &scenes, device };
    let clean = judge.detect(Fault::None)?;
    let noisy = |sensor| judge.under(NOISE.map(|sigma| Fault::Noise(sensor, sigma)));
    let by_condition = Condition::ALL.map(|condition| judge.precision(&clean, Some(condition)));
    let [day, night, crossover] = by_condition;
    Ok(Measured {
        variant: name(run.ablation).to_string(),
        seed: run.seed,
        seconds,
        overall: judge.precision(&clean, None)?,
        by_condition: [day?, night?, crossover?],
        noisy: [noisy(Modality::Rgb)?, noisy(Modality::Ir)?],
        missing: judge.under(SENSORS.map(Fault::Missing))?,
        replaced: Some(judge.under(SENSORS.map(Fault::Replaced))?),
    })
}

/// [`Measured::replaced`] of a detector that was measured before.
pub fn replaced(model: &PacgNet, run: &Run, device: &Device) -> Result<[f64; 2], ExampleError> {
    let scenes = scenes(run)?;
    Judge { model, run, scenes: &scenes, device }.under(SENSORS.map(Fault::Replaced))
}

struct Judge<'a> {
    model: &'a PacgNet,
    run: &'a Run,
    scenes: &'a [NightScene],
    device: &'a Device,
}

impl Judge<'_> {
    /// mAP50 under each of the faults.
    fn under<const N: usize>(&self, faults: [Fault; N]) -> Result<[f64; N], ExampleError> {
        let mut values = [0.0; N];
        for (value, fault) in values.iter_mut().zip(faults) {
            *value = self.precision(&self.detect(fault)?, None)?;
        }
        Ok(values)
    }

    fn detect(&self, fault: Fault) -> Result<BoxList, ExampleError> {
        let config = config(self.run.ablation, self.run.settings.quick);
        // The same noise for every variant.
        self.device.seed(self.run.test_seed());
        let mut found = BoxList::default();
        for (index, scenes) in self.scenes.chunks(BATCH).enumerate() {
            let (rgb, ir) = night_scenes::batch(&scenes.iter().collect::<Vec<_>>(), self.device);
            let [rgb, ir] = broken([rgb, ir], fault);
            let output = self.model.forward(rgb, ir, None, BatchStatistics::Running);
            let decoded = self.model.head.decode(output.detections);
            found.extend(config.detect(&decoded, index * BATCH)?);
        }
        Ok(found)
    }

    /// mAP50 over the scenes of a condition, or all.
    fn precision(&self, found: &BoxList, condition: Option<Condition>) -> Result<f64, ExampleError> {
        let config = config(self.run.ablation, self.run.settings.quick);
        let counts = |image: usize| condition.is_none_or(|wanted| self.scenes[image].condition == wanted);
        let mut objects = BoxList::default();
        for (image, scene) in self.scenes.iter().enumerate().filter(|(image, _)| counts(*image)) {
            for (wanted, label) in &scene.objects {
                objects.boxes.push(*wanted);
                objects.labels.push(*label);
                objects.image.push(image);
            }
        }
        let kept: Vec<bool> = found.image.iter().map(|&image| counts(image)).collect();
        let found = found.retain(&kept);
        let matched = match_detections(&found, &objects, config.match_threshold)?;
        Ok(mean_average_precision(&average_precision(&found, &matched, &objects, config.num_classes)?))
    }
}

fn broken(images: [Tensor<4>; 2], fault: Fault) -> [Tensor<4>; 2] {
    let [rgb, ir] = images;
    let of = |modality, image: Tensor<4>| match fault {
        Fault::Noise(sensor, sigma) if sensor == modality => {
            let noise = image.random_like(Distribution::Normal(0.0, sigma));
            (image + noise).clamp(0.0, 1.0)
        }
        Fault::Missing(sensor) if sensor == modality => image.zeros_like(),
        Fault::Replaced(sensor) if sensor == modality => image.random_like(Distribution::Uniform(0.0, 1.0)),
        _ => image,
    };
    [of(Modality::Rgb, rgb), of(Modality::Ir, ir)]
}
