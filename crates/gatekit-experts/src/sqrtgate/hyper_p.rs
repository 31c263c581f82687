//! The learning rate of a run, from the rate that was tuned at the smallest scale.

use burn::config::Config;
use burn::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn::optim::{LearningRate, RecordState, StateSink, StateSource};
use burn::store::burn_pack::Scalar;
use burn::tensor::Device;
use gatekit_core::ConfigError;
use serde::{Deserialize, Serialize};

/// How the learning rate falls after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// A straight line to the floor.
    Linear,
    /// Half a cosine to the floor.
    Cosine,
    /// Flat for five sevenths of the way, then a straight line to the floor.
    Wsd,
}

/// Configuration of [`HyperP`].
#[derive(Config, Debug)]
pub struct HyperPConfig {
    /// Layers of the run, at least 1.
    pub depth: usize,
    /// Tokens of the run, above 0.
    pub tokens: f64,
    /// Tokens of a step, above 0.
    pub batch_tokens: f64,
    /// Steps of the run; more than those of the warm-up.
    pub total_iters: usize,
    /// Highest rate of the base run, where it was tuned. Default 0.014.
    #[config(default = 0.014)]
    pub base_lr: f64,
    /// Layers of the base run. Default 8.
    #[config(default = 8)]
    pub base_depth: usize,
    /// Tokens of the base run. Default 10.4e9.
    #[config(default = 10.4e9)]
    pub base_tokens: f64,
    /// Tokens of a step of the base run. Default 2^21.
    #[config(default = 2097152.0)]
    pub base_batch_tokens: f64,
    /// Power with which the rate falls with the tokens. Default 0.32.
    #[config(default = 0.32)]
    pub data_exponent: f64,
    /// How the rate falls. Default linear.
    #[config(default = "Schedule::Linear")]
    pub schedule: Schedule,
    /// The floor as a share of the highest rate, in [0, 1]. Default 0.1.
    #[config(default = 0.1)]
    pub min_lr_mult: f64,
    /// Steps of linear warm-up from 0. Default 0.
    #[config(default = 0)]
    pub warmup_iters: usize,
}

impl HyperPConfig {
    /// The rules of this run.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that is not positive, and a warm-up as long as the run.
    pub fn try_init(&self) -> Result<HyperP, ConfigError> {
        for (field, value) in [
            ("depth", self.depth as f64),
            ("tokens", self.tokens),
            ("batch_tokens", self.batch_tokens),
            ("base_lr", self.base_lr),
            ("base_depth", self.base_depth as f64),
            ("base_tokens", self.base_tokens),
            ("base_batch_tokens", self.base_batch_tokens),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(ConfigError::new(field, value, "a finite number above 0"));
            }
        }
        if !self.data_exponent.is_finite() {
            return Err(ConfigError::new("data_exponent", self.data_exponent, "a finite number"));
        }
        if !(0.0..=1.0).contains(&self.min_lr_mult) {
            return Err(ConfigError::new("min_lr_mult", self.min_lr_mult, "a share in [0, 1]"));
        }
        if self.warmup_iters >= self.total_iters {
            let need = format!("less than total_iters = {}", self.total_iters);
            return Err(ConfigError::new("warmup_iters", self.warmup_iters, need));
        }
        Ok(HyperP { config: self.clone() })
    }
}

/// The learning rate and the residual scale of a run:
///
/// ```text
/// peak = base_lr sqrt(batch / base_batch) sqrt(base_depth / depth) (tokens / base_tokens)^-0.32
/// residual_scale = 1 / sqrt(2 depth)
/// ```
///
/// Nothing for the width, nothing for the number of experts. The rate is a relative step: it belongs to
/// optimisers on the sphere. arXiv 2603.28743.
///
/// ```
/// use gatekit_experts::sqrtgate::HyperPConfig;
///
/// // Twice as deep, four times the tokens.
/// let base = HyperPConfig::new(8, 10.4e9, 2097152.0, 1000).try_init().unwrap();
/// let larger = HyperPConfig::new(16, 41.6e9, 2097152.0, 4000).try_init().unwrap();
/// assert_eq!(base.peak_lr(), 0.014);
/// assert!((larger.peak_lr() / base.peak_lr() - 0.5f64.sqrt() * 4f64.powf(-0.32)).abs() < 1e-12);
/// ```
#[derive(Debug, Clone)]
pub struct HyperP {
    config: HyperPConfig,
}

impl HyperP {
    /// The highest learning rate of the run.
    pub fn peak_lr(&self) -> f64 {
        let run = &self.config;
        run.base_lr
            * (run.batch_tokens / run.base_batch_tokens).sqrt()
            * (run.base_depth as f64 / run.depth as f64).sqrt()
            * (run.tokens / run.base_tokens).powf(-run.data_exponent)
    }

    /// What attention and feed-forward branches are multiplied by, `1 / sqrt(2 depth)`.
    pub fn residual_scale(&self) -> f64 {
        (2.0 * self.config.depth as f64).powf(-0.5)
    }

    /// The learning rate of step `iteration`, counted from 0. After the last step it is the floor.
    pub fn lr(&self, iteration: usize) -> f64 {
        let HyperPConfig { warmup_iters, total_iters, min_lr_mult, schedule, .. } = self.config;
        let peak = self.peak_lr();
        if iteration < warmup_iters {
            return peak * iteration as f64 / warmup_iters as f64;
        }
        if iteration >= total_iters {
            return peak * min_lr_mult;
        }
        let (passed, span) = ((iteration - warmup_iters) as f64, (total_iters - warmup_iters) as f64);
        let share = match schedule {
            Schedule::Linear => 1.0 - passed / span,
            Schedule::Cosine => 0.5 + 0.5 * (std::f64::consts::PI * passed / span).cos(),
            Schedule::Wsd => {
                let flat = (5.0 / 7.0 * span).floor();
                if passed <= flat { 1.0 } else { 1.0 - (passed - flat) / (span - flat) }
            }
        };
        peak * (min_lr_mult + (1.0 - min_lr_mult) * share)
    }

    /// The schedule as one of Burn's, beginning at step 0.
    pub fn scheduler(&self) -> HyperPScheduler {
        HyperPScheduler { rules: self.clone(), iteration: 0 }
    }
}

/// [`HyperP::lr`] step by step, as a schedule of Burn: it goes to `ModuleLrScheduler::new`, so to the learner.
#[derive(Debug, Clone)]
pub struct HyperPScheduler {
    rules: HyperP,
    iteration: usize,
}

/// What a [`HyperPScheduler`] saves.
#[derive(Debug, Clone)]
struct HyperPState {
    iteration: usize,
}

impl RecordState for HyperPState {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_scalar(prefix, "iteration", Scalar::from(self.iteration));
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, _device: &Device) -> Option<Self> {
        Some(Self { iteration: usize::try_from(src.take_scalar(prefix, "iteration")?).ok()? })
    }
}

impl LrScheduler for HyperPScheduler {
    fn step(&mut self) -> LearningRate {
        let rate = self.rules.lr(self.iteration);
        self.iteration += 1;
        rate
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::from_state(&HyperPState { iteration: self.iteration })
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        if let Some(state) = record.into_state::<HyperPState>() {
            self.iteration = state.iteration;
        }
    }
}
