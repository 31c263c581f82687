//! The algorithm, round by round.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use super::config::ContinualMoeConfig;
use super::experts::MinNormExperts;
use super::router::{TaskRouter, TaskRouting};
use super::terminator::GateTerminator;

/// What one round did.
#[derive(Debug, Clone)]
pub struct Round {
    /// Its number, from 1.
    pub round: usize,
    /// The decision.
    pub routing: TaskRouting,
    /// How far the chosen expert moved.
    pub drift: f64,
    /// Locality loss, before the gate's update.
    pub locality: f64,
    /// Load loss, before the gate's update.
    pub auxiliary: f64,
    /// The gate's gradient `[M, d]`; 0 once it is stopped.
    pub gradient: Tensor<2>,
    /// Whether the gate is stopped, in this round already.
    pub stopped: bool,
}

impl ModuleConfig for ContinualMoeConfig {
    type Module = ContinualMoe;

    fn try_init(&self, device: &Device) -> Result<ContinualMoe, ConfigError> {
        self.check()?;
        Ok(ContinualMoe {
            router: TaskRouter::new(self, device),
            experts: MinNormExperts::new(self.num_experts, self.input_dim, device),
            rounds: 0,
            terminator: self.termination().try_init()?,
        })
    }
}

/// A gate and linear experts that learn task after task.
///
/// A round routes its data set, moves the chosen expert, sets flags, moves the gate
/// (`Theta <- Theta - eta grad(L_loc + L_aux)`) unless it is stopped, and counts. Li et al. (arXiv 2406.16437),
/// Algorithm 1.
#[derive(Module, Debug)]
pub struct ContinualMoe {
    /// The gate.
    pub router: TaskRouter,
    /// The experts.
    pub experts: MinNormExperts,
    #[module(skip)]
    rounds: usize,
    #[module(skip)]
    terminator: GateTerminator,
}

impl ContinualMoe {
    /// One round on `x` `[s, d]`, `y` `[s]` with noise `[M]` from `[0, lambda]`.
    ///
    /// # Errors
    ///
    /// As [`MinNormExperts::fit`], and for noise outside its bounds; everything is then as before.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn round(&mut self, x: Tensor<2>, y: Tensor<1>, noise: Tensor<1>) -> Result<Round, InputError> {
        let bound = self.router.config().noise_bound;
        // The bound itself may have been rounded.
        let allowed = -1e-6 * bound..=bound * (1.0 + 1e-6);
        if let Some(value) = noise.to_data().iter::<f64>().find(|value| !allowed.contains(value)) {
            return Err(InputError::new("noise", value, format!("numbers from 0 to {bound}")));
        }
        let round = self.rounds + 1;
        let routing = self.router.route(x.clone(), noise);
        let drift = self.experts.fit(routing.expert, &x, &y)?;
        let tested: Vec<f64> = routing.tested.to_data().iter::<f64>().collect();
        let stopped = self.terminator.observe(round, &tested, routing.expert);
        let place = (&routing.pi.device(), routing.pi.dtype());
        let (locality, auxiliary) = self.router.losses(&routing, Tensor::from_data([drift], place), round);
        let gradient = match stopped {
            true => Tensor::zeros(self.router.theta.dims(), place),
            false => self.router.gradient(x, &routing, drift, round),
        };
        if !stopped {
            self.router.descend(gradient.clone());
        }
        self.router.count(&routing);
        self.rounds = round;
        Ok(Round {
            round,
            drift,
            locality: locality.into_scalar::<f64>(),
            auxiliary: auxiliary.into_scalar::<f64>(),
            gradient,
            stopped,
            routing,
        })
    }

    /// Noise `[M]` for one round, uniform in `[0, lambda]`, from the device's generator.
    pub fn draw_noise(&self) -> Tensor<1> {
        let theta = self.router.theta.val();
        let place = (&theta.device(), theta.dtype());
        let uniform = burn::tensor::Distribution::Uniform(0.0, 1.0);
        Tensor::random([self.router.counts.dims()[0]], uniform, place)
            .mul_scalar(self.router.config().noise_bound)
    }

    /// Rounds so far.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// Flags, and whether the gate is stopped.
    pub fn terminator(&self) -> &GateTerminator {
        &self.terminator
    }

    /// Goes on with round `round` (from 1) after gate, experts, counts and sums were loaded. Flags and end of a
    /// saved terminator are given as they were; none of them for a gate that has not finished exploring.
    ///
    /// # Errors
    ///
    /// [`InputError`] for counts that are not those of `round - 1` rounds, for another number of flags than
    /// experts, and for an end after the rounds so far.
    pub fn resume(
        mut self,
        round: usize,
        converged: &[bool],
        stopped_at: Option<usize>,
    ) -> Result<Self, InputError> {
        self.router.check_round(round)?;
        let experts = self.router.counts.dims()[0];
        if converged.len() != experts {
            return Err(InputError::new("converged", format!("{} flags", converged.len()), experts));
        }
        if let Some(end) = stopped_at.filter(|end| *end == 0 || *end >= round) {
            return Err(InputError::new("stopped_at", end, format!("a round from 1 to {}", round - 1)));
        }
        self.terminator.restore(converged, stopped_at);
        self.rounds = round - 1;
        self.freeze_state();
        Ok(self)
    }

    /// Loading may have switched gradients on for what has none.
    fn freeze_state(&mut self) {
        let frozen = |param: &Param<Tensor<1>>| param.clone().set_require_grad(false);
        self.router.counts = frozen(&self.router.counts);
        self.router.prob_sums = frozen(&self.router.prob_sums);
        self.experts.experts = self.experts.experts.clone().set_require_grad(false);
    }

    /// What published states call the tensors: `theta`, `counts`, `prob_sums`, `experts`.
    pub fn layout() -> TensorLayout {
        TensorLayout::default().with_prefix("router.", "").with_prefix("experts.experts", "experts")
    }
}
