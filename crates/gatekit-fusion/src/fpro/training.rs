//! How an FPro is trained.

use burn::config::Config;
use burn::lr_scheduler::LrSchedulerConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::lr_scheduler::sequential::SequentialLrSchedulerConfig;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use gatekit_core::batch_norm::BatchStatistics;
use gatekit_core::{ConfigError, InputError, check_sizes};
use rand::{Rng, RngExt};

use super::config::FProConfig;
use super::model::FPro;

/// The published training: AdamW, a constant rate and then a cosine, gradients clipped.
#[derive(Config, Debug)]
pub struct FProTraining {
    /// Optimiser steps, at least 2. Default 300,000; published for deblurring 600,000.
    #[config(default = 300_000)]
    pub steps: usize,
    /// Learning rate at first, in (0, 1]. Default 3e-4.
    #[config(default = 3e-4)]
    pub learning_rate: f64,
    /// Learning rate at the end, at least 0 and at most the first. Default 1e-6.
    #[config(default = 1e-6)]
    pub min_learning_rate: f64,
    /// Share of the steps at the first rate, in [0, 1). Default 0.31.
    #[config(default = 0.31)]
    pub constant_share: f64,
    /// AdamW's weight decay. Default 1e-4.
    #[config(default = 1e-4)]
    pub weight_decay: f64,
    /// Largest norm of all gradients together, above 0. Default 0.01.
    #[config(default = 0.01)]
    pub max_gradient_norm: f64,
    /// Images a step, at least 2. Default 2.
    #[config(default = 2)]
    pub batch_size: usize,
}

impl FProTraining {
    /// Refuses what describes no training.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[("steps", self.steps), ("batch_size", self.batch_size)])?;
        if self.steps < 2 {
            return Err(ConfigError::new("steps", self.steps, "at least 2"));
        }
        if self.batch_size < 2 {
            let need = "at least 2: the filter's batch normalisation compares the images of a batch";
            return Err(ConfigError::new("batch_size", self.batch_size, need));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return Err(ConfigError::new("learning_rate", self.learning_rate, "above 0, at most 1"));
        }
        if !(0.0..=self.learning_rate).contains(&self.min_learning_rate) {
            let need = format!("from 0 to learning_rate = {}", self.learning_rate);
            return Err(ConfigError::new("min_learning_rate", self.min_learning_rate, need));
        }
        if !(0.0..1.0).contains(&self.constant_share) {
            return Err(ConfigError::new("constant_share", self.constant_share, "a number in [0, 1)"));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return Err(ConfigError::new("weight_decay", self.weight_decay, "a finite number, at least 0"));
        }
        if !(self.max_gradient_norm.is_finite() && self.max_gradient_norm > 0.0) {
            return Err(ConfigError::new(
                "max_gradient_norm",
                self.max_gradient_norm,
                "a finite number above 0",
            ));
        }
        Ok(())
    }

    /// Steps at the first rate.
    pub fn constant_steps(&self) -> usize {
        ((self.constant_share * self.steps as f64).round() as usize).min(self.steps - 1)
    }

    /// The learning rates: constant, then down a cosine.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    pub fn scheduler(&self) -> Result<ModuleLrScheduler, ConfigError> {
        self.check()?;
        let constant = self.constant_steps();
        let cosine = CosineAnnealingLrSchedulerConfig::new(self.learning_rate, self.steps - constant)
            .with_min_lr(self.min_learning_rate);
        let scheduler = match constant {
            0 => cosine.init(),
            _ => {
                let parts = vec![LrSchedulerConfig::Constant(self.learning_rate), cosine.into()];
                SequentialLrSchedulerConfig::new(parts, vec![constant]).init()
            }
        };
        scheduler.map_err(|reason| ConfigError::new("learning_rate", self.learning_rate, reason))
    }

    /// AdamW with betas 0.9 and 0.999.
    pub fn optimizer(&self) -> ModuleOptimizer {
        AdamWConfig::new()
            .with_beta_1(0.9)
            .with_beta_2(0.999)
            .with_epsilon(1e-8)
            .with_weight_decay(self.weight_decay as f32)
            .init()
    }
}

/// A network in training.
pub struct FProTrainer {
    /// The network, on a device with autodiff.
    pub model: FPro,
    config: FProConfig,
    training: FProTraining,
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
}

impl FProTrainer {
    /// Begins with `model`, which `config` describes, moved to its device's autodiff form.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for what is no network or no training.
    pub fn new(model: FPro, config: &FProConfig, training: &FProTraining) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            scheduler: training.scheduler()?,
            optimizer: training.optimizer(),
            model: model.materialize().train(),
            config: config.clone(),
            training: training.clone(),
        })
    }

    /// One step towards `targets` from `images`, both `[B, C, S, S]` on the device's autodiff form, B at least 2; returns
    /// the loss before it. After a loss or a gradient that is not finite the network is left as it is.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a batch of one.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn step(&mut self, images: Tensor<4>, targets: Tensor<4>) -> Result<f64, InputError> {
        let restored = self.model.forward(images, BatchStatistics::Batch)?.image;
        let loss = self.config.loss(restored, targets);
        let value = loss.clone().into_scalar::<f64>();
        let rates = self.scheduler.step();
        if value.is_finite() {
            let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
            let (gradients, norm) = clipped(&self.model, gradients, self.training.max_gradient_norm);
            if norm.is_finite() {
                self.model = self.optimizer.step(rates, self.model.clone(), gradients);
            }
        }
        Ok(value)
    }
}

/// Scales all gradients of `module` by one factor so that their norm together is at most `max_norm`; returns them and the
/// norm before.
pub fn clipped<M: Module>(module: &M, gradients: GradientsParams, max_norm: f64) -> (GradientsParams, f64) {
    let mut squares = Squares { gradients: &gradients, sum: None };
    module.visit(&mut squares);
    let norm = squares.sum.map_or(0.0, |sum| sum.into_scalar::<f64>().sqrt());
    // As PyTorch's clip_grad_norm_.
    let factor = max_norm / (norm + 1e-6);
    if factor >= 1.0 {
        return (gradients, norm);
    }
    let mut scaled = Scaled { from: gradients, to: GradientsParams::new(), factor };
    module.visit(&mut scaled);
    (scaled.to, norm)
}

struct Squares<'a> {
    gradients: &'a GradientsParams,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let square = gatekit_core::widen(gradient).square().sum();
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + square,
                None => square,
            });
        }
    }
}

struct Scaled {
    from: GradientsParams,
    to: GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scaled {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.from.remove::<D>(param.id) {
            self.to.register(param.id, gradient.mul_scalar(self.factor));
        }
    }
}

/// One of the eight flips and quarter turns of a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orientation(u8);

impl Orientation {
    /// All eight, the identity first.
    pub const ALL: [Self; 8] = [Self(0), Self(1), Self(2), Self(3), Self(4), Self(5), Self(6), Self(7)];

    /// One at random.
    pub fn random(random: &mut impl Rng) -> Self {
        Self::ALL[random.random_range(0..8)]
    }

    /// Images `[B, C, S, S']` turned so; a quarter turn swaps their sides. An image and its target are to be turned alike.
    pub fn apply(self, mut images: Tensor<4>) -> Tensor<4> {
        if self.0 & 1 != 0 {
            images = images.flip([2]);
        }
        if self.0 & 2 != 0 {
            images = images.flip([3]);
        }
        if self.0 & 4 != 0 { images.swap_dims(2, 3) } else { images }
    }
}
