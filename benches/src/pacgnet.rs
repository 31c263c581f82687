//! The detector PACGNet, a training step of it, and its parts by themselves.

use std::hint::black_box;

use burn::{
    module::Module,
    optim::{GradientsParams, SgdConfig, decay::WeightDecayConfig, momentum::MomentumConfig},
    tensor::{Device, Distribution, Tensor, TensorData},
};
use gatekit::core::{
    ModuleConfig,
    batch_norm::BatchStatistics,
    checkpoint::{NamedTensors, load_tensors, named_parameters},
};
use gatekit::fusion::pacgnet::{DetectionTargets, PacgNet, PacgNetConfig};
use gatekit_kernels::convolution::{Finish, image_convolution};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    case::Case,
    op::{Op, Pass},
    shape::Shape,
    work::{Inputs, Work, bytes_of},
};

/// Classes of DroneVehicle.
const CLASSES: usize = 5;
/// Objects of an image in training.
const OBJECTS: usize = 8;
/// Small: a step is measured, many times on one batch.
const LEARNING_RATE: f64 = 1e-4;
/// Of SGD, as published.
const MOMENTUM: f64 = 0.937;
const WEIGHT_DECAY: f32 = 5e-4;

/// Height and width of the images.
fn side(shape: Shape) -> usize {
    shape.time.next_multiple_of(32)
}

pub(crate) fn prepare(case: Case, device: &Device) -> Work {
    let inputs = Inputs::new(case, device);
    match case.op {
        Op::PacgNetGates => gates(case.shape, inputs),
        Op::PacgNetConvolutions => convolutions(case.shape, inputs),
        _ if case.pass == Pass::ForwardBackward => training(case.shape, inputs),
        _ => inference(case.shape, inputs),
    }
}

fn images(shape: Shape, inputs: &mut Inputs) -> [Tensor<4>; 2] {
    let dims = [shape.batch, 3, side(shape), side(shape)];
    [(); 2].map(|()| inputs.draw(dims, Distribution::Uniform(0.0, 1.0)))
}

fn inference(shape: Shape, mut inputs: Inputs) -> Work {
    let [rgb, ir] = images(shape, &mut inputs);
    let model = inputs.module(|device| PacgNetConfig::nano(CLASSES).init(device).materialize());
    let result = |angle: &Tensor<3>| bytes_of(angle) * (4 * 16 + CLASSES + 1);
    let cells = (1..=3).map(|level| (side(shape) >> (2 + level)).pow(2)).sum();
    let bytes = result(&Tensor::zeros([shape.batch, 1, cells], &rgb.device()));
    inputs.over_sequences(bytes, move || {
        let output = model.forward(rgb.clone(), ir.clone(), None, BatchStatistics::Running);
        drop(black_box(output.detections.maps));
        output.detections.angle
    })
}

/// Forward pass with the batch's statistics, assignment and losses, backward pass, SGD with momentum.
fn training(shape: Shape, mut inputs: Inputs) -> Work {
    // Images are not differentiated.
    let device = inputs.module_device();
    let [rgb, ir] = images(shape, &mut inputs).map(|image| Tensor::from_data(image.into_data(), &device));
    let config = PacgNetConfig::nano(CLASSES);
    let mut model = Some(inputs.module(|device| config.init(device).materialize().train()));
    let mut optimizer = SgdConfig::new()
        .with_momentum(Some(MomentumConfig::new().with_momentum(MOMENTUM).with_dampening(0.0)))
        .with_weight_decay(Some(WeightDecayConfig::new(WEIGHT_DECAY)))
        .init();
    let targets = DetectionTargets::from_lists(&objects(shape), CLASSES).expect("objects of some size");
    let bytes = inputs.bytes();
    inputs.work(bytes, move || {
        let held = model.take().expect("it is put back");
        let output = held.forward(rgb.clone(), ir.clone(), None, BatchStatistics::Batch);
        let loss = config.loss(&held.head.decode(output.detections), &targets).total();
        let gradients = GradientsParams::from_grads(loss.backward(), &held);
        model = Some(optimizer.step(LEARNING_RATE, held, gradients));
    })
}

/// Objects somewhere in every image, the same for the same size.
fn objects(shape: Shape) -> Vec<Vec<([f64; 5], usize)>> {
    let mut random = StdRng::seed_from_u64(2);
    let side = side(shape) as f64;
    let mut object = || {
        let [x, y] = [(); 2].map(|()| random.random_range(0.1..0.9) * side);
        let [w, h] = [random.random_range(8.0..24.0), random.random_range(4.0..12.0)];
        ([x, y, w, h, random.random_range(-0.7..2.3)], random.random_range(0..CLASSES))
    };
    (0..shape.batch).map(|_| (0..OBJECTS).map(|_| object()).collect()).collect()
}

/// Cross-gating and pyramidal gating at all levels, on maps of their sizes.
fn gates(shape: Shape, mut inputs: Inputs) -> Work {
    let config = PacgNetConfig::nano(CLASSES);
    let map = |inputs: &mut Inputs, channels: usize, stride: usize| {
        let dims = [shape.batch, channels, side(shape) / stride, side(shape) / stride];
        inputs.draw(dims, Distribution::Normal(0.0, 1.0))
    };
    let levels: Vec<[Tensor<4>; 2]> =
        (1..5).map(|level| [(); 2].map(|()| map(&mut inputs, config.channels[level], 2 << level))).collect();
    let backbone = inputs.module(|device| config.init(device).materialize()).backbone;
    inputs.over_sequences(0, move || {
        for level in 1..4 {
            let [rgb, ir] = levels[level].clone();
            let (gating, running) = (&backbone.cross_gating[level - 1], BatchStatistics::Running);
            drop(black_box(gating.forward(rgb.clone(), ir.clone(), running)));
            let gating = &backbone.pyramidal_gating[level - 1];
            drop(black_box(gating.forward([rgb, ir], levels[level - 1].clone(), None, running)));
        }
        levels[0][0].clone().narrow(1, 0, 1)
    })
}

/// A convolution of the graph.
struct Convolution {
    /// `[out, in, k, k]`, or `[C, 1, k, k]` for one a channel.
    weight: [usize; 4],
    stride: usize,
    groups: usize,
    /// Pixels of the image for one of its input.
    pixels: usize,
}

impl Convolution {
    /// By the published name of its weight.
    fn new(name: &str, weight: [usize; 4]) -> Self {
        let mut parts = name.split('.').skip(1);
        let at: usize = parts.next().and_then(|at| at.parse().ok()).expect("a position of the graph");
        let guides = name.contains("spatial_gate.gate.0");
        let pixels = match at {
            0 | 4 => 1,
            1 | 5 => 2,
            2 | 3 | 6 | 7 => 4,
            8..=12 | 31 | 32 => 8,
            13..=17 | 28 | 34 | 35 => 16,
            23..=25 => (8 << (at - 23)) / if guides { 2 } else { 1 },
            38 => 8 << parts.nth(1).and_then(|level| level.parse::<usize>().ok()).expect("a level"),
            _ => 32,
        };
        let halves = guides || matches!(at, 0 | 1 | 3 | 4 | 5 | 7 | 10 | 12 | 15 | 17 | 32 | 35);
        let groups = if name.contains("depthwise") { weight[0] } else { 1 };
        Self { weight, stride: if halves { 2 } else { 1 }, groups, pixels }
    }
}

/// All convolutions of the network, each over an input of its size.
fn convolutions(shape: Shape, mut inputs: Inputs) -> Work {
    let normal = Distribution::Normal(0.0, 0.1);
    let model = PacgNetConfig::nano(CLASSES).init(&inputs.module_device());
    let published = PacgNet::tensor_layout().to_published(named_parameters(&model));
    let all: Vec<_> = published
        .into_iter()
        .filter_map(|(name, data)| Some(Convolution::new(&name, data.shape().to_vec().try_into().ok()?)))
        .map(|convolution| {
            let [_, channels, ..] = convolution.weight;
            let size = side(shape) / convolution.pixels;
            let x = inputs.draw([shape.batch, channels * convolution.groups, size, size], normal);
            (inputs.draw(convolution.weight, normal), x, convolution)
        })
        .collect();
    let differentiate = inputs.differentiates();
    inputs.work(0, move || {
        for (weight, x, Convolution { stride, groups, .. }) in &all {
            let how = [*stride, weight.dims()[2] / 2, *groups];
            let y = image_convolution(x.clone(), weight.clone(), how, Finish::default());
            if differentiate {
                drop(black_box(y.sum().backward()));
            } else {
                drop(black_box(y));
            }
        }
    })
}

/// Weights that a peer makes by the same rule: a sequence that fills the unit interval evenly, begun for every tensor
/// where another one begins for its place in the order of the published names.
fn weights(published: NamedTensors) -> NamedTensors {
    let fill = |(index, (name, data)): (usize, (String, TensorData))| {
        let shape = data.shape().to_vec();
        let start = index as f64 * 0.754_877_666_246_692_7;
        let even = |place: usize| ((place + 1) as f64 * 0.618_033_988_749_894_9 + start).fract();
        let value = |u: f64| match shape[..] {
            [_, inner, height, width] => (2.0 * u - 1.0) * (3.0 / (inner * height * width) as f64).sqrt(),
            _ if name.ends_with("weight") => 0.75 + 0.5 * u,
            _ if name.ends_with("running_var") => 0.5 + u,
            _ => 0.4 * u - 0.2,
        };
        let values = (0..shape.iter().product()).map(|place| value(even(place)) as f32).collect();
        (name, TensorData::new::<f32, _>(values, shape))
    };
    published.into_iter().enumerate().map(fill).collect()
}

/// The maps of the three levels and the angles, for weights by their rule and given images.
pub fn output_of(case: Case, device: &Device, named: &[(&'static str, Vec<f32>)]) -> Vec<f32> {
    let model = PacgNetConfig::nano(CLASSES).init(device);
    let layout = PacgNet::tensor_layout();
    let published = weights(layout.to_published(named_parameters(&model)));
    let tensors = layout.to_module(&model, published).expect("its own names");
    let model = load_tensors(model, tensors).expect("its own shapes");
    let dims = [case.shape.batch, 3, side(case.shape), side(case.shape)];
    let image = |index: usize| {
        let (_, values) = &named[index];
        Tensor::<4>::from_data(TensorData::new(values.clone(), dims), device)
    };
    let output = model.forward(image(0), image(1), None, BatchStatistics::Running).detections;
    let maps = output.maps.map(|map| map.into_data()).into_iter().chain([output.angle.into_data()]);
    maps.flat_map(|data| data.convert::<f32>().try_into_vec::<f32>().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolutions_are_found_by_their_names() {
        let of = |name: &str| {
            let found = Convolution::new(name, [8, 4, 3, 3]);
            (found.stride, found.groups, found.pixels)
        };
        assert_eq!(of("model.0.conv.weight"), (2, 1, 1));
        assert_eq!(of("model.10.conv.weight"), (2, 1, 8));
        assert_eq!(of("model.24.spatial_gate.gate.0.weight"), (2, 1, 8));
        assert_eq!(of("model.24.softmax_gate.weight"), (1, 1, 16));
        assert_eq!(of("model.38.cv3.2.0.conv.weight"), (1, 1, 32));
        assert_eq!(of("model.8.fusion_layers.0.feat_extractor_ir.blocks.0.conv.depthwise.weight"), (1, 8, 8));
    }
}
