//! Contexts of new environments.

use burn::config::Config;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use gatekit_core::{ConfigError, InputError};

use super::adabelief::AdaBeliefConfig;
use super::contexts::ContextTable;
use super::expert::MetaExpert;
use super::field::MixerField;
use super::losses::environment_losses;
use super::solver::OdeSolver;
use super::trainer::{MixerError, check_observed};

/// Configuration of [`adapt`].
#[derive(Config, Debug)]
pub struct AdaptationConfig {
    /// Gradient steps. Default 1500.
    #[config(default = 1500)]
    pub steps: usize,
    /// AdaBelief's rate. Default 1e-3.
    #[config(default = 1e-3)]
    pub learning_rate: f64,
}

/// Contexts that were fitted.
#[derive(Debug, Clone)]
pub struct Adaptation {
    /// `[M, C]`, those of every environment's lowest loss on the way.
    pub contexts: ContextTable,
    /// That loss, `[M]`.
    pub losses: Vec<f64>,
}

/// Fits contexts to the few trajectories `observed` `[M, B, T, D]` of new environments, from 0, with gate and
/// experts as they are. The routing follows the contexts: an environment may change its expert on the way.
///
/// Losses are the environments' own, so they are adapted independently of one another; a step whose loss is not
/// finite ends the fitting. Nzoyem et al. (arXiv 2502.05335), section 3.
///
/// # Errors
///
/// [`MixerError`] for a learning rate that is none, for data without environments or with values that are not
/// finite, and from an adaptive solver that cannot go on.
pub fn adapt<X: MetaExpert, S: OdeSolver>(
    field: &MixerField<X>,
    observed: Tensor<4>,
    solver: &S,
    config: &AdaptationConfig,
    device: &Device,
) -> Result<Adaptation, MixerError> {
    if !(config.learning_rate.is_finite() && config.learning_rate > 0.0) {
        let need = "a finite number above 0";
        return Err(ConfigError::new("learning_rate", config.learning_rate, need).into());
    }
    let [environments, _, times, _] = observed.dims();
    if times == 0 {
        return Err(InputError::new("observed", "no state", "at least the first one").into());
    }
    check_observed(&observed, times - 1)?;
    let tracked = device.clone().autodiff();
    let field = field.clone().train().no_grad();
    let observed = Tensor::<4>::from_data(observed.to_data(), &tracked);
    let start = observed.clone().narrow(2, 0, 1).squeeze_dim::<3>(2);
    let mut contexts = ContextTable::new(environments, field.context_size(), &tracked);
    let mut best = (contexts.to_matrix(), vec![f64::INFINITY; environments]);
    let mut optimizer = AdaBeliefConfig::new().init();
    for step in 0..=config.steps {
        let present = contexts.contexts.val();
        let trajectory = field.rollout(start.clone(), present, solver)?;
        let losses = environment_losses(trajectory, observed.clone());
        let values: Vec<f64> = losses.to_data().iter::<f64>().collect();
        let present = contexts.to_matrix();
        for (environment, loss) in values.iter().enumerate().filter(|(_, loss)| loss.is_finite()) {
            if *loss < best.1[environment] {
                best.1[environment] = *loss;
                best.0.row_mut(environment).copy_from_slice(present.row(environment));
            }
        }
        if step == config.steps || !values.iter().all(|loss| loss.is_finite()) {
            break;
        }
        let gradients = GradientsParams::from_grads(losses.sum().backward(), &contexts);
        contexts = optimizer.step(config.learning_rate, contexts, gradients);
    }
    let mut contexts = contexts.valid();
    contexts.contexts = contexts.contexts.map(|old| best.0.to_tensor(&old.device(), old.dtype()));
    Ok(Adaptation { contexts, losses: best.1 })
}
