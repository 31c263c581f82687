//! The network that is trained first and then frozen.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use gatekit::core::cross_entropy::cross_entropies;
use gatekit::core::mlp::{Mlp, MlpConfig};
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::experts::jei_dnn::StagedBackbone;
use gatekit_examples::{Training, progress, tasks, train};

use crate::spiral::{CLASSES, Points};

/// Blocks, and the width of what goes between them.
pub const BLOCKS: usize = 6;
pub const WIDTH: usize = 64;
/// Inner width of a block.
const INNER: usize = WIDTH;
/// Weight of every early answer in the network's loss.
const EARLY_WEIGHT: f64 = 0.2;
/// Points of a step.
const BATCH: usize = 256;

/// One residual block: `x + mlp(LN(x))`.
#[derive(Module, Debug)]
struct Block {
    norm: LayerNorm,
    mlp: Mlp,
}

/// A residual network on points of the plane, without its classifier.
#[derive(Module, Debug)]
pub struct Backbone {
    input: Linear,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Backbone {
    fn new(device: &Device) -> Result<Self, ConfigError> {
        let norm = || LayerNormConfig::new(WIDTH).init(device);
        let block = |_| Ok(Block { norm: norm(), mlp: MlpConfig::new(WIDTH, INNER).try_init(device)? });
        Ok(Self {
            input: LinearConfig::new(2, WIDTH).init(device),
            blocks: (0..BLOCKS).map(block).collect::<Result<_, ConfigError>>()?,
            norm: norm(),
        })
    }

    /// Features `[rows, WIDTH]` of the whole network.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let last = (0..BLOCKS).fold(x, |x, index| self.stage(index, x));
        self.readout(BLOCKS - 1, &last)
    }
}

impl StagedBackbone for Backbone {
    type Hidden = Tensor<2>;

    fn stages(&self) -> usize {
        BLOCKS
    }

    fn stage(&self, index: usize, x: Tensor<2>) -> Tensor<2> {
        let x = if index == 0 { self.input.forward(x) } else { x };
        let block = &self.blocks[index];
        x.clone() + block.mlp.forward(block.norm.forward(x))
    }

    fn readout(&self, _index: usize, x: &Tensor<2>) -> Tensor<2> {
        self.norm.forward(x.clone())
    }

    fn cost(&self, index: usize) -> f64 {
        let input = if index == 0 { 2 * WIDTH } else { 0 };
        (input + 2 * WIDTH * INNER + WIDTH * CLASSES + 4) as f64
    }
}

/// The network with the classifier it is trained with.
#[derive(Module, Debug)]
pub struct Network {
    pub backbone: Backbone,
    pub head: Linear,
}

/// Trains the network as a whole: on its last answer, and with a small weight on what its norm and classifier would
/// answer behind the other blocks (deep supervision), without which early features are of no use to any classifier.
pub fn trained(seed: u64, steps: usize, device: &Device) -> Result<Network, ConfigError> {
    device.seed(seed);
    let network =
        Network { backbone: Backbone::new(device)?, head: LinearConfig::new(WIDTH, CLASSES).init(device) };
    let mut random = tasks::random(seed);
    let training = Training {
        steps,
        learning_rate: 3e-3,
        warmup: steps / 20,
        weight_decay: 0.01,
        ..Training::default()
    };
    let autodiff = device.clone().autodiff();
    let bar = progress(steps, "network");
    let (network, _) = train(network, &training, &bar, |network, _| {
        let points = Points::draw(BATCH, &mut random, &autodiff);
        let mut hidden = points.inputs;
        let losses = (0..BLOCKS).map(|index| {
            hidden = network.backbone.stage(index, hidden.clone());
            let logits = network.head.forward(network.backbone.readout(index, &hidden));
            let weight = if index + 1 == BLOCKS { 1.0 } else { EARLY_WEIGHT };
            cross_entropies(logits, points.labels.clone()).mean().mul_scalar(weight)
        });
        losses.reduce(|sum, loss| sum + loss).expect("there are blocks")
    });
    Ok(network)
}
