//! AdamW under a linear warm-up and a cosine.

use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::lr_scheduler::sequential::SequentialLrSchedulerConfig;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use gatekit::core::ConfigError;

use crate::progress::ProgressBar;

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Optimiser steps.
    pub steps: usize,
    /// Highest learning rate, reached after the warm-up; a cosine goes down to a tenth of it at the last step.
    pub learning_rate: f64,
    /// Steps of linear warm-up; less than all steps.
    pub warmup: usize,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Largest norm of one parameter's gradient.
    pub clip: f64,
}

impl Default for Training {
    fn default() -> Self {
        Self { steps: 500, learning_rate: 3e-3, warmup: 20, weight_decay: 0.1, clip: 1.0 }
    }
}

/// A model in training, one step at a time, for loops that do more than [`train`] does.
pub struct Trainer<M> {
    /// The model, on a device with autodiff.
    pub model: M,
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
}

impl<M: Module> Trainer<M> {
    /// Begins with `model`, moved to its device's autodiff form. Parameters that Burn would initialise later are
    /// initialised now, so that they depend on the device's seed alone.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a warm-up as long as the training, or a learning rate, weight decay or clipping norm that
    /// is none.
    pub fn new(model: M, training: &Training) -> Result<Self, ConfigError> {
        if !(training.weight_decay >= 0.0 && training.weight_decay.is_finite()) {
            return Err(ConfigError::new("weight_decay", training.weight_decay, "zero or positive"));
        }
        if !(training.clip.is_finite() && training.clip > 0.0) {
            return Err(ConfigError::new("clip", training.clip, "a positive number"));
        }
        let optimizer = AdamWConfig::new()
            .with_beta_2(0.99)
            .with_epsilon(1e-8)
            .with_weight_decay(training.weight_decay as f32)
            .with_grad_clipping(Some(GradientClippingConfig::Norm(training.clip as f32)))
            .init();
        let scheduler = schedule(training.learning_rate, training.warmup, training.steps)?;
        Ok(Self { model: model.materialize().train(), optimizer, scheduler })
    }

    /// Another schedule than the warm-up and cosine.
    pub fn with_scheduler(self, scheduler: ModuleLrScheduler) -> Self {
        Self { scheduler, ..self }
    }

    /// One step down the gradient of `loss` `[1]`, which was computed with [`model`](Self::model); returns its value.
    ///
    /// After a loss that is not finite the model is left as it is.
    pub fn step(&mut self, loss: Tensor<1>) -> f64 {
        let value = loss.clone().into_scalar::<f64>();
        let rates = self.scheduler.step();
        if value.is_finite() {
            let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
            self.model = self.optimizer.step(rates, self.model.clone(), gradients);
        }
        value
    }
}

/// Trains `model` on the losses `[1]` that `loss` makes of the model and the step (from 0). Returns the model without
/// autodiff, and every step's loss before its update.
///
/// The tensors in `loss` must be made on the device's autodiff form (`device.clone().autodiff()`). A loss that is not
/// finite ends the training and is the last of the losses.
///
/// # Panics
///
/// When `training` describes no training; see [`Trainer::new`].
pub fn train<M: Module>(
    model: M,
    training: &Training,
    bar: &ProgressBar,
    mut loss: impl FnMut(&M, usize) -> Tensor<1>,
) -> (M, Vec<f64>) {
    let mut trainer = Trainer::new(model, training).unwrap_or_else(|error| panic!("{error}"));
    let mut losses = Vec::with_capacity(training.steps);
    for step in 0..training.steps {
        let loss = loss(&trainer.model, step);
        let value = trainer.step(loss);
        losses.push(value);
        bar.set_message(format!("loss {value:.3}"));
        bar.inc(1);
        if !value.is_finite() {
            break;
        }
    }
    bar.finish_and_clear();
    (trainer.model.valid(), losses)
}

/// A linear warm-up to `peak`, then a cosine down to a tenth of it at the last step.
///
/// # Errors
///
/// [`ConfigError`] for a warm-up as long as the training, or a peak outside (0, 1].
pub fn schedule(peak: f64, warmup: usize, steps: usize) -> Result<ModuleLrScheduler, ConfigError> {
    if warmup >= steps {
        return Err(ConfigError::new("warmup", warmup, format!("less than {steps} steps")));
    }
    if !(peak > 0.0 && peak <= 1.0) {
        return Err(ConfigError::new("learning_rate", peak, "above 0, at most 1"));
    }
    let cosine = CosineAnnealingLrSchedulerConfig::new(peak, steps - warmup).with_min_lr(0.1 * peak);
    let scheduler = if warmup == 0 {
        cosine.init()
    } else {
        let linear = LinearLrSchedulerConfig::new(peak / warmup as f64, peak, warmup);
        SequentialLrSchedulerConfig::new(vec![linear.into(), cosine.into()], vec![warmup]).init()
    };
    scheduler.map_err(|reason| ConfigError::new("learning_rate", peak, reason))
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::prelude::*;

    use super::*;

    #[test]
    fn training_lowers_the_loss_and_returns_the_trained_model() {
        let device = Device::default();
        let model = LinearConfig::new(2, 1).init(&device);
        let training = Training { steps: 200, learning_rate: 0.05, warmup: 5, weight_decay: 0.0, clip: 1.0 };
        let inner = device.clone().autodiff();
        let x = Tensor::<2>::from_data([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], &inner);
        let y = Tensor::<2>::from_data([[2.0], [-1.0], [1.0]], &inner);
        let bar = ProgressBar::hidden();
        let (model, losses) = train(model, &training, &bar, |model, _| {
            (model.forward(x.clone()) - y.clone()).powf_scalar(2.0).mean()
        });
        assert_eq!(losses.len(), 200);
        assert!(losses[199] < 0.01 * losses[0], "{} {}", losses[0], losses[199]);
        assert!(!model.weight.val().device().is_autodiff());
    }

    #[test]
    fn a_loss_that_is_not_finite_ends_the_training() {
        let model = LinearConfig::new(2, 1).init(&Device::default());
        let device = Device::default().autodiff();
        let (_, losses) = train(model, &Training::default(), &ProgressBar::hidden(), |model, step| {
            let loss = model.forward(Tensor::<2>::ones([1, 2], &device)).sum();
            if step == 3 { loss * f32::NAN } else { loss }
        });
        assert_eq!(losses.len(), 4);
        assert!(losses[3].is_nan());
    }

    #[test]
    fn trainings_that_are_none_are_refused() {
        let model = || LinearConfig::new(2, 1).init(&Device::default());
        let refused = |change: fn(&mut Training)| {
            let mut training = Training::default();
            change(&mut training);
            Trainer::new(model(), &training).err().expect("refused").field
        };
        assert_eq!(refused(|t| t.steps = 20), "warmup");
        assert_eq!(refused(|t| t.clip = 0.0), "clip");
        assert_eq!(refused(|t| t.weight_decay = -1.0), "weight_decay");
        assert_eq!(refused(|t| t.learning_rate = f64::NAN), "learning_rate");
    }
}
