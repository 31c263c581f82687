//! A small vision transformer, dense and of adaptive computation modules, and a narrower one made of the dense one.

use burn::module::{Initializer, Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::core::mlp::Mlp;
use gatekit::core::{ConfigError, InputError, ModuleConfig};
use gatekit::experts::acm::{
    Acm, AcmBlock, AcmMode, Acmize, AcmizeConfig, DenseAttention, DenseBlock, DenseBlockConfig, HasAcms,
    ModelCost, Recorded, linear_cost,
};
use gatekit_examples::ExampleError;

use crate::shapes::{CLASSES, PIXELS, TOKENS};

pub const WIDTH: usize = 64;
pub const LAYERS: usize = 3;
const HEADS: usize = 4;
const MLP: usize = 4 * WIDTH;

/// What stands before and behind the layers.
#[derive(Module, Debug)]
pub struct Frame {
    embed: Linear,
    positions: Param<Tensor<2>>,
    norm: LayerNorm,
    head: Linear,
}

impl Frame {
    fn new(device: &Device) -> Self {
        Self {
            embed: LinearConfig::new(PIXELS, WIDTH).init(device),
            positions: Initializer::Normal { mean: 0.0, std: 0.1 }.init([TOKENS, WIDTH], device),
            norm: LayerNormConfig::new(WIDTH).init(device),
            head: LinearConfig::new(WIDTH, CLASSES).init(device),
        }
    }

    fn open(&self, patches: Tensor<3>) -> Tensor<3> {
        self.embed.forward(patches) + self.positions.val().unsqueeze()
    }

    /// Logits `[batch, CLASSES]` of the tokens' mean.
    fn close(&self, x: Tensor<3>) -> Tensor<2> {
        self.head.forward(self.norm.forward(x).mean_dim(1).squeeze_dim(1))
    }

    /// FLOPs a picture.
    fn cost(&self) -> f64 {
        TOKENS as f64 * linear_cost([PIXELS, WIDTH], true) + linear_cost([WIDTH, CLASSES], true)
    }
}

/// The dense model, or a narrower one.
#[derive(Module, Debug)]
pub struct Vit {
    frame: Frame,
    layers: Vec<DenseBlock>,
}

impl Vit {
    pub fn new(device: &Device) -> Result<Self, ConfigError> {
        let block = DenseBlockConfig::new(WIDTH, MLP).with_num_heads(HEADS);
        let layers = (0..LAYERS).map(|_| block.try_init(device)).collect::<Result<_, _>>()?;
        Ok(Self { frame: Frame::new(device), layers })
    }

    pub fn forward(&self, patches: Tensor<3>) -> Tensor<2> {
        let x = self.layers.iter().fold(self.frame.open(patches), |x, layer| layer.forward(x));
        self.frame.close(x)
    }

    /// FLOPs a picture.
    pub fn cost(&self) -> f64 {
        self.frame.cost() + self.layers.iter().map(|layer| layer.cost(1, TOKENS)).sum::<f64>()
    }

    /// The same model without its least important inner channels: of every head and MLP a `share` stays, by the norms
    /// of the weights into a channel and out of it.
    pub fn pruned(&self, share: f64) -> Self {
        let layers = self.layers.iter().map(|layer| {
            let attention = &layer.self_attention;
            let scores = |into: &Linear, out: &Linear| {
                let (into, out) = (norms(into.weight.val(), 0), norms(out.weight.val(), 1));
                into.into_iter().zip(out).map(|(into, out)| into * out).collect::<Vec<_>>()
            };
            let by_key = norms(attention.q_proj.weight.val(), 0).into_iter();
            let by_key =
                by_key.zip(norms(attention.k_proj.weight.val(), 0)).map(|(q, k)| q * k).collect::<Vec<_>>();
            let (keys, kept) = kept_a_head(&by_key, share);
            let (values, _) = kept_a_head(&scores(&attention.v_proj, &attention.o_proj), share);
            // Scores are divided by the root of a smaller head.
            let mut q_proj = columns(&attention.q_proj, &keys);
            let scale = (kept as f64 / (WIDTH / HEADS) as f64).sqrt();
            q_proj.weight = Param::from_tensor(q_proj.weight.val().mul_scalar(scale));
            q_proj.bias = q_proj.bias.map(|bias| Param::from_tensor(bias.val().mul_scalar(scale)));
            let neurons =
                best(&scores(&layer.mlp.up, &layer.mlp.down), (MLP as f64 * share).round() as usize);
            DenseBlock {
                ln_1: layer.ln_1.clone(),
                self_attention: DenseAttention {
                    q_proj,
                    k_proj: columns(&attention.k_proj, &keys),
                    v_proj: columns(&attention.v_proj, &values),
                    o_proj: rows(&attention.o_proj, &values),
                    num_heads: HEADS,
                },
                ln_2: layer.ln_2.clone(),
                mlp: Mlp {
                    up: columns(&layer.mlp.up, &neurons),
                    down: rows(&layer.mlp.down, &neurons),
                    dropout: layer.mlp.dropout.clone(),
                },
            }
        });
        Self { frame: self.frame.clone(), layers: layers.collect() }
    }
}

/// Norms of the weights along an axis.
fn norms(weight: Tensor<2>, axis: usize) -> Vec<f64> {
    weight.powi_scalar(2).sum_dim(axis).sqrt().into_data().iter::<f64>().collect()
}

/// The `count` largest, in their order.
fn best(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(count.max(1));
    order.sort_unstable();
    order
}

/// As many channels of every head, and how many.
fn kept_a_head(scores: &[f64], share: f64) -> (Vec<usize>, usize) {
    let size = WIDTH / HEADS;
    let count = ((size as f64 * share).round() as usize).max(1);
    let of_head = |(head, scores): (usize, &[f64])| {
        best(scores, count).into_iter().map(move |channel| head * size + channel).collect::<Vec<_>>()
    };
    (scores.chunks_exact(size).enumerate().flat_map(of_head).collect(), count)
}

fn index(channels: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = channels.iter().map(|channel| *channel as i64).collect();
    Tensor::from_data(TensorData::new(values, [channels.len()]), device)
}

/// A map to some of its outputs.
fn columns(map: &Linear, channels: &[usize]) -> Linear {
    let weight = map.weight.val();
    let index = index(channels, &weight.device());
    let bias = map.bias.as_ref().map(|bias| Param::from_tensor(bias.val().select(0, index.clone()).detach()));
    Linear { weight: Param::from_tensor(weight.select(1, index).detach()), bias }
}

/// A map from some of its inputs.
fn rows(map: &Linear, channels: &[usize]) -> Linear {
    let weight = map.weight.val();
    let index = index(channels, &weight.device());
    Linear { weight: Param::from_tensor(weight.select(0, index).detach()), ..map.clone() }
}

/// The model of adaptive computation modules.
#[derive(Module, Debug)]
pub struct AcmVit {
    frame: Frame,
    layers: Vec<AcmBlock>,
}

/// What it computed, modules in the order of the layers.
pub struct AcmVitOutput {
    pub logits: Tensor<2>,
    pub gates: Vec<Tensor<3>>,
    /// `[batch, TOKENS, modules]`.
    pub choices: Tensor<3, Int>,
}

impl AcmVit {
    pub fn forward(&self, patches: Tensor<3>) -> Result<AcmVitOutput, InputError> {
        self.run(patches, |_, layer, x| layer.forward(x, AcmMode::Gated))
    }

    /// With given choices `[batch, TOKENS, modules]`.
    pub fn forward_given(
        &self,
        patches: Tensor<3>,
        choices: &Tensor<3, Int>,
    ) -> Result<AcmVitOutput, InputError> {
        self.run(patches, |index, layer, x| layer.forward_given(x, choices.clone().narrow(2, 5 * index, 5)))
    }

    fn run(
        &self,
        patches: Tensor<3>,
        apply: impl Fn(usize, &AcmBlock, Tensor<3>) -> Result<gatekit::experts::acm::AcmBlockOutput, InputError>,
    ) -> Result<AcmVitOutput, InputError> {
        let mut x = self.frame.open(patches);
        let (mut gates, mut choices) = (Vec::new(), Vec::new());
        for (index, layer) in self.layers.iter().enumerate() {
            let out = apply(index, layer, x)?;
            x = out.y;
            gates.extend(out.gates);
            choices.push(out.choices);
        }
        Ok(AcmVitOutput { logits: self.frame.close(x), gates, choices: Tensor::cat(choices, 2) })
    }

    /// FLOPs of a picture.
    pub fn cost(&self) -> ModelCost {
        let rest = self.layers.iter().map(|layer| layer.rest_cost(1, TOKENS)).sum::<f64>();
        let modules = self.acms().into_iter().map(Acm::cost).collect();
        ModelCost { rest: self.frame.cost() + rest, tokens: TOKENS, modules }
    }
}

impl HasAcms for AcmVit {
    fn acms(&self) -> Vec<&Acm> {
        self.layers.acms()
    }
}

impl Acmize for Vit {
    type Acmized = AcmVit;

    fn acmize(&self, config: &AcmizeConfig, device: &Device) -> Result<AcmVit, ConfigError> {
        Ok(AcmVit { frame: self.frame.clone(), layers: self.layers.acmize(config, device)? })
    }

    fn record(&self, patches: Tensor<3>, records: &mut Vec<Recorded>) -> Tensor<3> {
        self.layers.record(self.frame.open(patches), records)
    }
}

/// Share of pictures whose largest logit is their class.
pub fn right(logits: Tensor<2>, classes: Tensor<1, Int>) -> Result<Vec<bool>, ExampleError> {
    let likeliest: Vec<i64> = logits.argmax(1).into_data().iter::<i64>().collect();
    let classes: Vec<i64> = classes.into_data().iter::<i64>().collect();
    Ok(likeliest.iter().zip(&classes).map(|(got, class)| got == class).collect())
}
