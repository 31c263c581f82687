//! Generated touches: sequences of four sensors, of which two tell the material.

use std::f64::consts::TAU;

use burn::tensor::{Bool, Device, Distribution, Int, Tensor, TensorData};
use gatekit::core::cross_modal::ModalityMask;
use gatekit::fusion::touchformer::TouchBatch;
use rand::RngExt;
use rand::rngs::StdRng;

/// The sensors.
pub const SENSORS: [&str; 4] = ["sound", "normal force", "friction", "acceleration"];
/// Features of every sensor: bins of a spectrum.
pub const FEATURES: usize = 8;
/// Materials, two a pair.
pub const MATERIALS: usize = 6;
/// The sensors that tell the materials of a pair apart.
const TELLING: [[usize; 2]; 3] = [[0, 1], [2, 3], [0, 3]];
/// Frames of a sequence.
const FRAMES: std::ops::RangeInclusive<usize> = 20..=40;
/// Bins between the peaks of the two materials of a pair.
const BETWEEN: f64 = 1.0;
/// Largest shift of the peaks from touch to touch, in bins.
const JITTER: f64 = 0.5;

/// A touch: a sequence of spectra a sensor.
pub struct Touch {
    sequences: [Vec<[f64; FEATURES]>; 4],
    material: usize,
}

/// What happens to the sensors before a batch is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault<'a> {
    /// Nothing.
    None,
    /// These sensors are missing.
    Missing(&'a [usize]),
    /// This sensor gives normal noise, of a deviation that is drawn from 5 .. 10 touch by touch.
    Noise(usize),
}

/// `count` touches, of all materials alike.
pub fn touches(count: usize, random: &mut StdRng) -> Vec<Touch> {
    (0..count).map(|index| touch(index % MATERIALS, random)).collect()
}

/// Spectra of normal(0, 1) noise. In the sensors that tell, about half of the frames carry a peak besides, whose place is
/// the material's: 1.5 bins wide, as high as the touch is firm.
fn touch(material: usize, random: &mut StdRng) -> Touch {
    let (pair, member) = (material / 2, material % 2);
    let firmness = random.random_range(0.8..2.0);
    let shift = random.random_range(-JITTER..JITTER);
    let sequence = |sensor: usize, random: &mut StdRng| {
        let telling = TELLING[pair].iter().position(|of| *of == sensor);
        let peak =
            telling.map(|place| 1.0 + 2.0 * pair as f64 + place as f64 + BETWEEN * member as f64 + shift);
        (0..random.random_range(FRAMES))
            .map(|_| {
                let touching = random.random::<bool>();
                std::array::from_fn(|bin| {
                    let distance = |peak: f64| (bin as f64 - peak) / 0.75;
                    let height =
                        peak.filter(|_| touching).map_or(0.0, |peak| (-distance(peak).powi(2)).exp());
                    firmness * height + normal(random)
                })
            })
            .collect()
    };
    Touch { sequences: std::array::from_fn(|sensor| sequence(sensor, random)), material }
}

/// A draw of normal(0, 1), by Box and Muller.
fn normal(random: &mut StdRng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (TAU * random.random::<f64>()).cos()
}

/// Touches as one batch, padded at the end. Features of a missing sensor are NaN, to be sure that nobody looks.
pub fn batch(touches: &[&Touch], fault: Fault<'_>, device: &Device) -> TouchBatch {
    let count = touches.len();
    let there = |sensor: usize| !matches!(fault, Fault::Missing(missing) if missing.contains(&sensor));
    let (mut inputs, mut steps) = (Vec::new(), Vec::new());
    for sensor in 0..SENSORS.len() {
        let longest = touches.iter().map(|touch| touch.sequences[sensor].len()).max().unwrap_or(1);
        let (mut values, mut valid) = (Vec::new(), Vec::new());
        for touch in touches {
            let sequence = &touch.sequences[sensor];
            values.extend(sequence.iter().flatten());
            values.resize(values.len() + (longest - sequence.len()) * FEATURES, 0.0);
            valid.extend((0..longest).map(|step| step < sequence.len()));
        }
        let shape = [count, longest, FEATURES];
        let x = Tensor::<3>::from_data(TensorData::new(values, shape), device);
        inputs.push(match fault {
            Fault::Noise(of) if of == sensor => {
                let deviations = Tensor::<3>::random([count, 1, 1], Distribution::Uniform(5.0, 10.0), device);
                Tensor::random(shape, Distribution::Normal(0.0, 1.0), device) * deviations
            }
            _ if !there(sensor) => Tensor::full(shape, f64::NAN, device),
            _ => x,
        });
        steps.push(Tensor::<2, Bool>::from_data(TensorData::new(valid, [count, longest]), device));
    }
    let present: Vec<bool> = (0..count).flat_map(|_| (0..SENSORS.len()).map(there)).collect();
    let present = Tensor::from_data(TensorData::new(present, [count, SENSORS.len()]), device);
    let labels: Vec<i64> = touches.iter().map(|touch| touch.material as i64).collect();
    TouchBatch {
        inputs,
        mask: ModalityMask::new(present, steps).expect("a sensor is left, and padding is at the end"),
        labels: Tensor::<1, Int>::from_data(TensorData::new(labels, [count]), device),
    }
}

/// The material of every touch.
pub fn materials(touches: &[Touch]) -> Vec<usize> {
    touches.iter().map(|touch| touch.material).collect()
}
