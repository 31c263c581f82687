//! Muon on the sphere.

use burn::config::Config;
use burn::optim::{LearningRate, ModuleOptimizer, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor};
use gatekit_core::ConfigError;

use super::guard::Guarded;
use super::sphere::{newton_schulz, sphere_step};

/// Configuration of [`MuonH`].
#[derive(Config, Debug)]
pub struct MuonHConfig {
    /// Momentum mu, in [0, 1). Default 0.95.
    #[config(default = 0.95)]
    pub momentum: f64,
    /// Whether the update looks ahead: `mu M + G` instead of M. Default true.
    #[config(default = true)]
    pub nesterov: bool,
    /// Decay of the weights before their norm is read, at least 0. Default 0: on the sphere it only moves
    /// the radius.
    #[config(default = 0.0)]
    pub weight_decay: f64,
    /// Least norm that is divided by, above 0. Default 1e-8.
    #[config(default = 1e-8)]
    pub epsilon: f64,
    /// Every matrix of a stack on a sphere of its own (the default), or one sphere for the stack.
    #[config(default = true)]
    pub per_matrix: bool,
}

impl MuonHConfig {
    /// Refuses what is no optimiser.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_rates(&[("momentum", self.momentum)], self.weight_decay, self.epsilon)
    }

    /// The optimiser of one group of parameters.
    ///
    /// # Panics
    ///
    /// With the text of the error that [`check`](Self::check) would return.
    pub fn build(&self) -> MuonH {
        self.check().unwrap_or_else(|error| panic!("{error}"));
        MuonH { config: self.clone() }
    }

    /// The optimiser of a module of matrices and stacks; steps with a gradient that is not finite are
    /// skipped, parameter by parameter. [`SphereOptimizer`](super::SphereOptimizer) also takes vectors.
    ///
    /// # Panics
    ///
    /// As [`build`](Self::build).
    pub fn init(&self) -> ModuleOptimizer {
        ModuleOptimizer::from(Guarded::new(self.build()))
    }
}

pub(super) fn check_rates(
    shares: &[(&str, f64)],
    weight_decay: f64,
    epsilon: f64,
) -> Result<(), ConfigError> {
    if let Some((field, share)) = shares.iter().find(|(_, share)| !(0.0..1.0).contains(share)) {
        return Err(ConfigError::new(*field, share, "a share in [0, 1)"));
    }
    if !(weight_decay.is_finite() && weight_decay >= 0.0) {
        return Err(ConfigError::new("weight_decay", weight_decay, "a finite number, at least 0"));
    }
    if !(epsilon.is_finite() && epsilon > 0.0) {
        return Err(ConfigError::new("epsilon", epsilon, "a finite number above 0"));
    }
    Ok(())
}

/// Muon whose weights stay on spheres of fixed Frobenius norm; the learning rate is the relative step.
///
/// ```text
/// M = mu M + G      U = NS(mu M + G) or NS(M)      W = W (1 - lr wd)      W = sphere_step(W, U, lr)
/// ```
///
/// For matrices `[out, in]` (or transposed, as Burn's `Linear` keeps them: the step commutes with that)
/// and stacks of them. No factor of the shape. A zero weight has no direction: see
/// [`SphereOptimizer`](super::SphereOptimizer), which refuses it. arXiv 2603.28743.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::nn::LinearConfig;
/// use burn::optim::GradientsParams;
/// use burn::tensor::{Device, Tensor};
/// use gatekit_experts::sqrtgate::{MuonHConfig, frobenius_norm};
///
/// let device = Device::flex().autodiff();
/// let layer = LinearConfig::new(4, 3).with_bias(false).init(&device);
/// let radius = |layer: &burn::nn::Linear| frobenius_norm(layer.weight.val(), true).into_scalar::<f64>();
/// let before = radius(&layer);
/// let loss = layer.forward(Tensor::<2>::ones([2, 4], &device)).square().mean();
/// let gradients = GradientsParams::from_grads(loss.backward(), &layer);
/// let mut optimizer = MuonHConfig::new().init();
/// let layer = optimizer.step(0.1, layer, gradients);
/// assert!((radius(&layer) - before).abs() < 1e-5);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MuonH {
    config: MuonHConfig,
}

/// The state of a parameter under [`MuonH`].
#[derive(Debug, Clone)]
pub struct MuonHState<const D: usize> {
    /// Momentum M, of the parameter's shape.
    pub momentum: Tensor<D>,
}

impl<const D: usize> RecordState for MuonHState<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_tensor(prefix, "momentum", self.momentum.to_data());
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        Some(Self { momentum: saved(prefix, "momentum", src, device)? })
    }
}

/// A tensor of a saved state, in the type in which it was saved.
pub(super) fn saved<const D: usize>(
    prefix: &str,
    name: &str,
    src: &mut StateSource,
    device: &Device,
) -> Option<Tensor<D>> {
    let data = src.take_tensor(prefix, name).filter(|data| data.rank() == D)?;
    let dtype = data.dtype();
    Some(Tensor::from_data(data, (device, dtype)))
}

impl MuonH {
    /// The orthogonalised update U and the new momentum M of a gradient.
    ///
    /// # Panics
    ///
    /// For a gradient of another shape than the momentum, or one that is no matrix or stack.
    pub fn update<const D: usize>(
        &self,
        gradient: Tensor<D>,
        momentum: Option<Tensor<D>>,
    ) -> (Tensor<D>, Tensor<D>) {
        let mu = self.config.momentum;
        let momentum = match momentum {
            Some(momentum) => {
                assert_same("MuonH", &gradient, ("momentum", &momentum));
                momentum.mul_scalar(mu) + gradient.clone()
            }
            None => gradient.clone(),
        };
        let update = match self.config.nesterov {
            true => momentum.clone().mul_scalar(mu) + gradient,
            false => momentum.clone(),
        };
        (newton_schulz(update, self.config.epsilon), momentum)
    }
}

impl Optimizer for MuonH {
    type State<const D: usize> = MuonHState<D>;

    /// One step of one parameter.
    ///
    /// # Panics
    ///
    /// For a gradient of another shape than the parameter, or a parameter that is no matrix or stack.
    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<MuonHState<D>>,
    ) -> (Tensor<D>, Option<MuonHState<D>>) {
        assert_same("MuonH", &grad, ("parameter", &tensor));
        let MuonHConfig { weight_decay, epsilon, per_matrix, .. } = self.config;
        let (update, momentum) = self.update(grad, state.map(|state| state.momentum));
        let tensor = decayed(tensor, lr, weight_decay);
        (sphere_step(tensor, update, lr, epsilon, per_matrix), Some(MuonHState { momentum }))
    }

    fn to_device<const D: usize>(state: MuonHState<D>, device: &Device) -> MuonHState<D> {
        MuonHState { momentum: state.momentum.to_device(device) }
    }
}

/// `W (1 - lr wd)`.
pub(super) fn decayed<const D: usize>(weight: Tensor<D>, lr: f64, weight_decay: f64) -> Tensor<D> {
    if weight_decay == 0.0 { weight } else { weight.mul_scalar(1.0 - lr * weight_decay) }
}

pub(super) fn assert_same<const D: usize>(
    optimizer: &str,
    gradient: &Tensor<D>,
    (name, of): (&str, &Tensor<D>),
) {
    assert!(
        gradient.dims() == of.dims(),
        "{optimizer}: the gradient has shape {:?}, the {name} {:?}",
        gradient.dims(),
        of.dims()
    );
}
