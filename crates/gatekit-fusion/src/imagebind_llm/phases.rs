//! The two phases of training: which parameters move, and how.

use std::f64::consts::PI;

use burn::config::Config;
use burn::module::{Module, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use gatekit_core::ConfigError;
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::parameters::{ParameterInfo, parameters, set_trained};
use serde::{Deserialize, Serialize};

use super::model::ImageBindLlm;

/// A phase of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// On image-caption pairs: bind network, prefixes and gates move.
    Pretrain,
    /// On instructions, with text alone (and an embedding of nothing) or with an image: norms, biases and low-rank
    /// deltas of the language model move.
    Finetune,
}

impl Phase {
    /// Whether the parameter of this published name moves.
    pub fn trains(self, published: &str) -> bool {
        let of_language_model = published.strip_prefix("llama.");
        match (self, of_language_model) {
            (Self::Pretrain, Some(name)) => name.ends_with("attention.gate"),
            (Self::Pretrain, None) => {
                published.starts_with("image_bind_") || published.starts_with("prefix_query.")
            }
            (Self::Finetune, Some(name)) => {
                name.contains("norm") || name.ends_with(".bias") || name.contains("lora_")
            }
            (Self::Finetune, None) => false,
        }
    }
}

/// How a phase is trained: AdamW under a linear warm-up from 0 and half a cosine, set every step.
///
/// [`pretrain`](Self::pretrain) and [`finetune`](Self::finetune) are the paper's.
#[derive(Config, Debug)]
pub struct PhaseConfig {
    /// What moves.
    pub phase: Phase,
    /// Highest rate for 256 samples a step; with fewer it is lower in proportion. Default 1e-4.
    #[config(default = 1e-4)]
    pub base_rate: f64,
    /// AdamW's decay of matrices; biases and vectors have none. Default 0.05.
    #[config(default = 0.05)]
    pub weight_decay: f64,
    /// Epochs, at the end of which the cosine has fallen. Default 150.
    #[config(default = 150)]
    pub epochs: usize,
    /// Epochs of them in which the rate rises. Default 5.
    #[config(default = 5)]
    pub warmup_epochs: usize,
    /// Samples a step, over all devices and accumulated steps. Default 32.
    #[config(default = 32)]
    pub effective_batch: usize,
    /// Rate at the end. Default 0.
    #[config(default = 0.0)]
    pub min_rate: f64,
    /// Shares of the moments that stay. Default (0.9, 0.95).
    #[config(default = "(0.9, 0.95)")]
    pub betas: (f64, f64),
}

impl PhaseConfig {
    /// Pre-training: rate 1e-4, decay 0.05, 150 epochs of which 5 warm up. An epoch is 1/50 of the data, so that the
    /// whole is three passes.
    pub fn pretrain() -> Self {
        Self::new(Phase::Pretrain)
    }

    /// Fine-tuning: rate 1e-3, decay 0.02, 4 epochs of which 1 warms up.
    pub fn finetune() -> Self {
        Self::new(Phase::Finetune)
            .with_base_rate(1e-3)
            .with_weight_decay(0.02)
            .with_epochs(4)
            .with_warmup_epochs(1)
    }

    /// The highest rate: `base_rate * effective_batch / 256`.
    pub fn peak(&self) -> f64 {
        self.base_rate * self.effective_batch as f64 / 256.0
    }

    /// The rate at an epoch, counted with fractions from 0: `peak * epoch / warmup` while it warms up, then
    /// `min + (peak - min) (1 + cos(pi (epoch - warmup) / (epochs - warmup))) / 2`.
    pub fn rate(&self, epoch: f64) -> f64 {
        let warmup = self.warmup_epochs as f64;
        if epoch < warmup {
            return self.peak() * epoch / warmup;
        }
        let done = ((epoch - warmup) / (self.epochs as f64 - warmup)).min(1.0);
        self.min_rate + (self.peak() - self.min_rate) * 0.5 * (1.0 + (PI * done).cos())
    }

    /// The model with what the phase trains, and all else frozen. `layout` is that of its configuration.
    pub fn prepare(&self, model: ImageBindLlm, layout: &TensorLayout) -> ImageBindLlm {
        set_trained(model, |name, shape| {
            layout.published_names(name, shape).iter().all(|published| self.phase.trains(published))
        })
    }

    /// Begins the phase with `steps_per_epoch` steps an epoch: the model on its device's autodiff form, with what the
    /// phase trains. `layout` is that of its configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for rates, decay or moments that are none, a warm-up as long as the training, epochs without a
    /// step, and a model that has nothing for the phase to train.
    pub fn try_init(
        &self,
        model: ImageBindLlm,
        layout: &TensorLayout,
        steps_per_epoch: usize,
    ) -> Result<PhaseTrainer, ConfigError> {
        self.check()?;
        if steps_per_epoch == 0 {
            return Err(ConfigError::new("steps_per_epoch", 0, "at least 1"));
        }
        let model = self.prepare(model, layout).train();
        let trained: Vec<ParameterInfo> =
            parameters(&model).into_iter().filter(|parameter| parameter.trained).collect();
        if trained.is_empty() {
            return Err(ConfigError::new("phase", format!("{:?}", self.phase), "a parameter that it trains"));
        }
        let plain: Vec<String> =
            trained.iter().filter(|p| is_plain(layout, p)).map(|p| p.path.clone()).collect();
        let adam = |decay: f64| {
            AdamWConfig::new()
                .with_beta_1(self.betas.0 as f32)
                .with_beta_2(self.betas.1 as f32)
                .with_epsilon(1e-8)
                .with_weight_decay(decay as f32)
                .build()
        };
        let optimizer = ModuleOptimizer::from(adam(self.weight_decay)).with_group(
            ParamGroup::from_paths(plain),
            adam(0.0),
            None,
        );
        Ok(PhaseTrainer { model, optimizer, config: self.clone(), steps_per_epoch, steps: 0 })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let positive = |field: &str, value: f64| match value.is_finite() && value >= 0.0 {
            true => Ok(()),
            false => Err(ConfigError::new(field, value, "a finite number of at least 0")),
        };
        positive("base_rate", self.base_rate)?;
        positive("min_rate", self.min_rate)?;
        positive("weight_decay", self.weight_decay)?;
        for beta in [self.betas.0, self.betas.1] {
            if !(0.0..1.0).contains(&beta) {
                return Err(ConfigError::new("betas", beta, "at least 0, less than 1"));
            }
        }
        if self.effective_batch == 0 {
            return Err(ConfigError::new("effective_batch", 0, "at least 1"));
        }
        if self.warmup_epochs >= self.epochs {
            let need = format!("less than the {} epochs", self.epochs);
            return Err(ConfigError::new("warmup_epochs", self.warmup_epochs, need));
        }
        Ok(())
    }
}

/// Whether a parameter has no weight decay: biases, and vectors in their published shape. A gate, published as
/// `[1, H, 1, 1]`, is none of these: it decays in the release.
fn is_plain(layout: &TensorLayout, parameter: &ParameterInfo) -> bool {
    let published = layout.published_names(&parameter.name, &parameter.shape);
    let is_gate = published.iter().any(|name| name.ends_with("gate"));
    published.iter().any(|name| name.ends_with(".bias")) || (parameter.shape.len() <= 1 && !is_gate)
}

/// A model in a phase of training, one step at a time.
pub struct PhaseTrainer {
    /// The model, on a device with autodiff.
    pub model: ImageBindLlm,
    optimizer: ModuleOptimizer,
    config: PhaseConfig,
    steps_per_epoch: usize,
    steps: usize,
}

impl PhaseTrainer {
    /// The rate of the next step.
    pub fn rate(&self) -> f64 {
        self.config.rate(self.steps as f64 / self.steps_per_epoch as f64)
    }

    /// Steps of the whole phase.
    pub fn steps(&self) -> usize {
        self.config.epochs * self.steps_per_epoch
    }

    /// One step down the gradient of `loss` `[1]`, which was computed with [`model`](Self::model); returns its value.
    ///
    /// A loss that is not finite leaves the model as it is.
    pub fn step(&mut self, loss: Tensor<1>) -> f64 {
        let value = loss.clone().into_scalar::<f64>();
        if value.is_finite() {
            let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
            self.model = self.optimizer.step(self.rate(), self.model.clone(), gradients);
        }
        self.steps += 1;
        value
    }

    /// The model without autodiff.
    pub fn into_model(self) -> ImageBindLlm {
        self.model.valid()
    }
}
