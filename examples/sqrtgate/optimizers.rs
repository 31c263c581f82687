//! The two ways to train: on the sphere, and with Muon and weight decay.

use burn::module::ParamGroup;
use burn::optim::{AdamConfig, GradientsParams, LearningRate, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};
use gatekit::core::ConfigError;
use gatekit::experts::sqrtgate::{MuonHState, SphereOptimizer, SphereOptimizerConfig, newton_schulz};

use super::model::ByteModel;

const MOMENTUM: f64 = 0.95;
const DECAY: f64 = 0.1;

/// Muon with decay, also for stacks: `M = mu M + G`, `W = W (1 - lr wd) - 0.2 lr sqrt(max(out, in)) NS(mu M + G)`, the
/// factor of "Muon is Scalable for LLM Training" (arXiv 2502.16982).
#[derive(Clone)]
struct Muon;

impl Optimizer for Muon {
    type State<const D: usize> = MuonHState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<MuonHState<D>>,
    ) -> (Tensor<D>, Option<MuonHState<D>>) {
        let dims = tensor.dims();
        let momentum = match state {
            Some(state) => state.momentum.mul_scalar(MOMENTUM) + grad.clone(),
            None => grad.clone(),
        };
        let update = newton_schulz(momentum.clone().mul_scalar(MOMENTUM) + grad, 1e-8);
        let factor = 0.2 * (dims[D - 2].max(dims[D - 1]) as f64).sqrt();
        let tensor = tensor.mul_scalar(1.0 - lr * DECAY) - update.mul_scalar(lr * factor);
        (tensor, Some(MuonHState { momentum }))
    }

    fn to_device<const D: usize>(state: MuonHState<D>, device: &Device) -> MuonHState<D> {
        MuonHState { momentum: state.momentum.to_device(device) }
    }
}

/// Either.
pub enum Steps {
    Sphere(Box<SphereOptimizer>),
    Muon(Box<ModuleOptimizer>),
}

impl Steps {
    pub fn sphere(model: &ByteModel) -> Result<Self, ConfigError> {
        let config = SphereOptimizerConfig::new()
            .with_heads(vec!["head".to_string()])
            .with_embeddings(vec!["embed".to_string()]);
        Ok(Self::Sphere(Box::new(config.try_init(model)?)))
    }

    /// Adam for embedding, head and norms.
    pub fn muon() -> Self {
        let adam = AdamConfig::new().with_beta_2(0.95).with_epsilon(1e-8).init();
        let matrices = ParamGroup::from_predicate("blocks").exclude(ParamGroup::from_predicate("norm"));
        Self::Muon(Box::new(adam.with_group(matrices, Muon, None)))
    }

    pub fn step(&mut self, lr: f64, model: ByteModel, gradients: GradientsParams) -> ByteModel {
        match self {
            Self::Sphere(optimizer) => {
                let (model, skipped) =
                    optimizer.step(lr, model, gradients).expect("gradients fit their model");
                skipped.iter().for_each(|skipped| eprintln!("{skipped}"));
                model
            }
            Self::Muon(optimizer) => optimizer.step(lr, model, gradients),
        }
    }
}
