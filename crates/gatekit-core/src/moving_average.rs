//! A moving average that a layer updates while it trains.

use burn::config::Config;
use burn::module::{Flag, Module, Param, RunningState};
use burn::tensor::{Device, Tensor};

use crate::common::widen;
use crate::config::ModuleConfig;
use crate::error::ConfigError;

/// Configuration of [`MovingAverage`].
#[derive(Config, Debug)]
pub struct MovingAverageConfig {
    /// Number of averages, at least 1.
    pub size: usize,
    /// Share of the old average in the new one, in [0, 1). Default 0.9.
    #[config(default = 0.9)]
    pub momentum: f64,
}

impl ModuleConfig for MovingAverageConfig {
    type Module = MovingAverage;

    fn try_init(&self, device: &Device) -> Result<MovingAverage, ConfigError> {
        if self.size == 0 {
            return Err(ConfigError::new("size", 0, "at least 1"));
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return Err(ConfigError::new("momentum", self.momentum, "at least 0 and below 1"));
        }
        Ok(MovingAverage {
            value: RunningState::new(Tensor::zeros([self.size], device)),
            training: Param::from_bool(true),
            momentum: self.momentum,
        })
    }
}

/// `m <- rho m + (1 - rho) x`, from 0 on: a buffer that is saved with the weights and not trained.
///
/// It moves in training, that is on a device with autodiff (as Burn's batch normalisation does), and
/// stands still elsewhere and after [`freeze`](Module::freeze). A module and its clones share it until
/// the optimiser makes a new module of them.
#[derive(Module, Debug)]
pub struct MovingAverage {
    /// The average, `[size]`, in at least float32.
    pub value: RunningState<Tensor<1>>,
    /// Whether it moves on a device with autodiff.
    pub training: Param<Flag>,
    /// Share of the old average in the new one.
    pub momentum: f64,
}

impl MovingAverage {
    /// Moves the average towards `x` `[size]` if this is training. Returns it, without a gradient.
    ///
    /// # Panics
    ///
    /// When `x` is not `[size]`; in debug builds also when the average would not be finite.
    pub fn forward(&self, x: Tensor<1>) -> Tensor<1> {
        let old = self.value.value_sync();
        assert!(x.dims() == old.dims(), "MovingAverage: `x` {:?}, the average {:?}", x.dims(), old.dims());
        let average = match x.device().is_autodiff() && self.training.is_enabled() {
            true => {
                let x = widen(x.detach()).cast(old.dtype());
                let new = (old.mul_scalar(self.momentum) + x.mul_scalar(1.0 - self.momentum)).detach();
                self.value.update(new);
                // At once, so that what is saved now is not one update behind.
                self.value.value_sync()
            }
            false => old,
        };
        if cfg!(debug_assertions) {
            let finite = average.to_data().iter::<f64>().all(f64::is_finite);
            assert!(finite, "MovingAverage: the average is not finite: {average}");
        }
        average
    }

    /// The average now, `[size]`.
    pub fn average(&self) -> Tensor<1> {
        self.value.value_sync().detach()
    }

    /// Whether it moves on a device with autodiff.
    pub fn set_training(&mut self, training: bool) {
        self.training = Param::from_bool(training);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{load_tensors, named_parameters};
    use crate::test_util::{assert_close, devices, float32, values};

    #[test]
    fn it_moves_in_training_alone() {
        for device in devices() {
            let training = device.clone().autodiff();
            let average = MovingAverageConfig::new(2).with_momentum(0.75).init(&training);
            let x = float32(&[4.0, -8.0], [2], &training).require_grad();
            assert_close(&values(average.forward(x.clone())), &[1.0, -2.0], 1e-6);
            assert_close(&values(average.forward(x.clone())), &[1.75, -3.5], 1e-6);
            assert!(!average.forward(x.clone()).is_tracked());
            let mut still = average.valid();
            let expected = values(average.average());
            assert_close(&values(still.forward(x.clone().inner())), &expected, 1e-6);
            assert_close(&values(still.forward(x.clone().inner())), &expected, 1e-6);
            still = still.train();
            still.set_training(false);
            assert_close(&values(still.forward(x.clone())), &expected, 1e-6);
            assert_close(&values(average.freeze().forward(x)), &expected, 1e-6);
        }
    }

    #[test]
    fn it_is_saved_with_the_parameters() {
        for device in devices() {
            let device = device.autodiff();
            let average = MovingAverageConfig::new(2).init(&device);
            average.forward(float32(&[1.0, 2.0], [2], &device));
            let saved = named_parameters(&average);
            assert_eq!(saved.keys().collect::<Vec<_>>(), ["value"]);
            let loaded = load_tensors(MovingAverageConfig::new(2).init(&device), saved).unwrap();
            assert_close(&values(loaded.average()), &[0.1, 0.2], 1e-6);
        }
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        let field = |config: MovingAverageConfig| config.try_init(&device).unwrap_err().field;
        assert_eq!(field(MovingAverageConfig::new(0)), "size");
        for momentum in [-0.1, 1.0, f64::NAN] {
            assert_eq!(field(MovingAverageConfig::new(2).with_momentum(momentum)), "momentum");
        }
    }
}
