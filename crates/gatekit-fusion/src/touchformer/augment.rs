//! Training and tests with sensors that fail.

use burn::config::Config;
use burn::tensor::{Distribution, Tensor, TensorData};
use gatekit_core::ConfigError;
use gatekit_core::cross_modal::{ModalityMask, zero_masked};
use rand::RngExt;
use rand::rngs::StdRng;

use super::gating::assert_sequences;

/// Takes a sensor away: in every instance, with this probability, one of those present at random, unless it is the last.
#[derive(Config, Debug)]
pub struct ModalityDropout {
    /// In [0, 1]. Default 0.2.
    #[config(default = 0.2)]
    pub probability: f64,
}

impl ModalityDropout {
    /// The mask with sensors taken away.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a probability outside [0, 1].
    pub fn apply(&self, mask: &ModalityMask, random: &mut StdRng) -> Result<ModalityMask, ConfigError> {
        let struck = struck(self.probability, 2, mask, random)?;
        let removed: Vec<Vec<bool>> = (struck.into_iter())
            .map(|sensor| (0..mask.num_modalities()).map(|m| sensor == Some(m)).collect())
            .collect();
        Ok(mask.without(&removed).expect("a sensor is taken only where another remains"))
    }
}

/// Puts noise in a sensor's place: in every instance, with this probability, one of those present at random gives normal
/// noise instead of its features, of a standard deviation drawn uniformly from a range.
///
/// The paper's test of robustness.
#[derive(Config, Debug)]
pub struct SensorNoise {
    /// In [0, 1]. Default 0.2.
    #[config(default = 0.2)]
    pub probability: f64,
    /// Smallest standard deviation, at least 0. Default 5.
    #[config(default = 5.0)]
    pub low: f64,
    /// Largest. Default 10.
    #[config(default = 10.0)]
    pub high: f64,
}

impl SensorNoise {
    /// The sequences `[B, T_m, d_m]` with noise in place of some, and which sensor it was in every instance. Instances and
    /// sensors are drawn from `random`, the noise from the device's generator.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a probability outside [0, 1], and deviations that are no range.
    ///
    /// # Panics
    ///
    /// When inputs and mask do not fit.
    pub fn apply(
        &self,
        inputs: Vec<Tensor<3>>,
        mask: &ModalityMask,
        random: &mut StdRng,
    ) -> Result<(Vec<Tensor<3>>, Vec<Option<usize>>), ConfigError> {
        let struck = struck(self.probability, 1, mask, random)?;
        if !(self.low >= 0.0 && self.low.is_finite()) {
            return Err(ConfigError::new("low", self.low, "a finite number, at least 0"));
        }
        if !(self.high >= self.low && self.high.is_finite()) {
            return Err(ConfigError::new(
                "high",
                self.high,
                format!("a finite number, at least {}", self.low),
            ));
        }
        assert_sequences("SensorNoise", &inputs, mask);
        let deviations: Vec<f64> =
            struck.iter().map(|_| self.low + (self.high - self.low) * random.random::<f64>()).collect();
        let noisy = inputs.into_iter().enumerate().map(|(m, x)| {
            if !struck.contains(&Some(m)) {
                return x;
            }
            let ([batch, ..], device) = (x.dims(), x.device());
            let here = struck.iter().map(|sensor| *sensor == Some(m)).collect::<Vec<_>>();
            let here = Tensor::<1, burn::tensor::Bool>::from_data(TensorData::new(here, [batch]), &device);
            let scale = TensorData::new(deviations.clone(), [batch, 1, 1]);
            let scale = Tensor::<3>::from_data(scale, (&device, x.dtype()));
            let noise =
                Tensor::random(x.dims(), Distribution::Normal(0.0, 1.0), (&device, x.dtype())) * scale;
            let here = here.reshape([batch, 1, 1]).expand(x.dims());
            x.mask_where(here, noise)
        });
        Ok((noisy.collect(), struck))
    }
}

/// Adds white noise of a given ratio of signal to noise: `x + n sqrt(P / 10^(snr / 10))` with n normal(0, 1) and P the mean
/// square over an instance's valid steps and features of one sensor.
#[derive(Config, Debug)]
pub struct WhiteNoise {
    /// In decibels. Default 5, as in the paper's training sets.
    #[config(default = 5.0)]
    pub snr_db: f64,
}

impl WhiteNoise {
    /// The sequences `[B, T_m, d_m]` with noise on their valid steps, 0 elsewhere; drawn from the device's generator.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a ratio that is not finite.
    ///
    /// # Panics
    ///
    /// When inputs and mask do not fit.
    pub fn apply(&self, inputs: Vec<Tensor<3>>, mask: &ModalityMask) -> Result<Vec<Tensor<3>>, ConfigError> {
        if !self.snr_db.is_finite() {
            return Err(ConfigError::new("snr_db", self.snr_db, "a finite number of decibels"));
        }
        assert_sequences("WhiteNoise", &inputs, mask);
        let share = 10f64.powf(-self.snr_db / 10.0);
        let noisy = inputs.into_iter().enumerate().map(|(m, x)| {
            let [batch, _, width] = x.dims();
            let x = zero_masked(x, mask.steps(m));
            let counts = mask.lengths(m).iter().map(|length| (length.max(&1) * width) as f64);
            let counts = TensorData::new(counts.collect::<Vec<_>>(), [batch, 1, 1]);
            let counts = Tensor::<3>::from_data(counts, (&x.device(), x.dtype()));
            let power = x.clone().square().sum_dim(2).sum_dim(1) / counts;
            let noise = Tensor::random(x.dims(), Distribution::Normal(0.0, 1.0), (&x.device(), x.dtype()));
            zero_masked(x + noise * (power * share).sqrt(), mask.steps(m))
        });
        Ok(noisy.collect())
    }
}

/// A sensor at random in every instance that fate strikes and that has at least `least` sensors.
fn struck(
    probability: f64,
    least: usize,
    mask: &ModalityMask,
    random: &mut StdRng,
) -> Result<Vec<Option<usize>>, ConfigError> {
    if !(0.0..=1.0).contains(&probability) {
        return Err(ConfigError::new("probability", probability, "a number in [0, 1]"));
    }
    let instance = |instance: usize| {
        let present: Vec<usize> =
            (0..mask.num_modalities()).filter(|&m| mask.lengths(m)[instance] > 0).collect();
        // Both are drawn in any case, so that one instance does not shift the draws of the next.
        let (fate, choice) = (random.random::<f64>(), random.random_range(0..present.len().max(1)));
        (fate < probability && present.len() >= least).then(|| present[choice])
    };
    Ok((0..mask.batch()).map(instance).collect())
}
