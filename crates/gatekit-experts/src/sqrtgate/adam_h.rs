//! Adam on the sphere.

use burn::config::Config;
use burn::optim::{LearningRate, ModuleOptimizer, Optimizer, RecordState, StateSink, StateSource};
use burn::store::burn_pack::Scalar;
use burn::tensor::{Device, Tensor};
use gatekit_core::ConfigError;

use super::guard::Guarded;
use super::muon_h::{assert_same, check_rates, decayed, saved};
use super::sphere::sphere_step;

/// Configuration of [`AdamH`].
#[derive(Config, Debug)]
pub struct AdamHConfig {
    /// Share of the first moment that stays, in [0, 1). Default 0.9.
    #[config(default = 0.9)]
    pub beta1: f64,
    /// Share of the second moment that stays, in [0, 1). Default 0.95.
    #[config(default = 0.95)]
    pub beta2: f64,
    /// Decay of the weights before their norm is read, at least 0. Default 0.
    #[config(default = 0.0)]
    pub weight_decay: f64,
    /// Added to the root of the second moment, and the least norm that is divided by; above 0. Default 1e-8.
    #[config(default = 1e-8)]
    pub epsilon: f64,
    /// Every matrix of a stack on a sphere of its own (the default), or one sphere for the stack.
    #[config(default = true)]
    pub per_matrix: bool,
}

impl AdamHConfig {
    /// Refuses what is no optimiser.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_rates(&[("beta1", self.beta1), ("beta2", self.beta2)], self.weight_decay, self.epsilon)
    }

    /// The optimiser of one group of parameters.
    ///
    /// # Panics
    ///
    /// With the text of the error that [`check`](Self::check) would return.
    pub fn build(&self) -> AdamH {
        self.check().unwrap_or_else(|error| panic!("{error}"));
        AdamH { config: self.clone() }
    }

    /// The optimiser of a module; steps with a gradient that is not finite are skipped, parameter by
    /// parameter.
    ///
    /// # Panics
    ///
    /// As [`build`](Self::build).
    pub fn init(&self) -> ModuleOptimizer {
        ModuleOptimizer::from(Guarded::new(self.build()))
    }
}

/// Adam whose weights stay on spheres of fixed Frobenius norm; for the output head.
///
/// ```text
/// m = b1 m + (1 - b1) G      v = b2 v + (1 - b2) G^2
/// U = (m / (1 - b1^t)) / (sqrt(v) / sqrt(1 - b2^t) + eps)      W = sphere_step(W (1 - lr wd), U, lr)
/// ```
///
/// As with [`MuonH`](super::MuonH), the learning rate is the relative step. arXiv 2603.28743.
#[derive(Debug, Clone)]
pub struct AdamH {
    config: AdamHConfig,
}

/// The state of a parameter under [`AdamH`].
#[derive(Debug, Clone)]
pub struct AdamHState<const D: usize> {
    /// Steps taken.
    pub step: usize,
    /// First moment m, of the parameter's shape.
    pub first_moment: Tensor<D>,
    /// Second moment v, of the parameter's shape.
    pub second_moment: Tensor<D>,
}

impl<const D: usize> RecordState for AdamHState<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_scalar(prefix, "step", Scalar::from(self.step));
        out.push_tensor(prefix, "first_moment", self.first_moment.to_data());
        out.push_tensor(prefix, "second_moment", self.second_moment.to_data());
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        Some(Self {
            step: usize::try_from(src.take_scalar(prefix, "step")?).ok()?,
            first_moment: saved(prefix, "first_moment", src, device)?,
            second_moment: saved(prefix, "second_moment", src, device)?,
        })
    }
}

impl AdamH {
    /// The update U of a gradient, and the new state.
    ///
    /// # Panics
    ///
    /// For a gradient of another shape than the state's.
    pub fn update<const D: usize>(
        &self,
        gradient: Tensor<D>,
        state: Option<AdamHState<D>>,
    ) -> (Tensor<D>, AdamHState<D>) {
        let AdamHConfig { beta1, beta2, epsilon, .. } = self.config;
        let (step, first, second) = match state {
            Some(state) => {
                assert_same("AdamH", &gradient, ("first moment", &state.first_moment));
                (state.step, state.first_moment.mul_scalar(beta1), state.second_moment.mul_scalar(beta2))
            }
            None => (0, gradient.zeros_like(), gradient.zeros_like()),
        };
        let step = step + 1;
        let first = first + gradient.clone().mul_scalar(1.0 - beta1);
        let second = second + gradient.square().mul_scalar(1.0 - beta2);
        // With a share of 0 the power underflows to 0 and the correction is 1.
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let root = second.clone().sqrt().div_scalar(correction(beta2).sqrt()).add_scalar(epsilon);
        let update = first.clone().div_scalar(correction(beta1)) / root;
        (update, AdamHState { step, first_moment: first, second_moment: second })
    }
}

impl Optimizer for AdamH {
    type State<const D: usize> = AdamHState<D>;

    /// One step of one parameter.
    ///
    /// # Panics
    ///
    /// For a gradient of another shape than the parameter.
    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdamHState<D>>,
    ) -> (Tensor<D>, Option<AdamHState<D>>) {
        assert_same("AdamH", &grad, ("parameter", &tensor));
        let AdamHConfig { weight_decay, epsilon, per_matrix, .. } = self.config;
        let (update, state) = self.update(grad, state);
        let tensor = decayed(tensor, lr, weight_decay);
        (sphere_step(tensor, update, lr, epsilon, per_matrix), Some(state))
    }

    fn to_device<const D: usize>(state: AdamHState<D>, device: &Device) -> AdamHState<D> {
        AdamHState {
            first_moment: state.first_moment.to_device(device),
            second_moment: state.second_moment.to_device(device),
            ..state
        }
    }
}
