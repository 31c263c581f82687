//! Learners and gate together.

use burn::module::Module;
use burn::tensor::{Distribution, Int, Tensor};
use gatekit_core::dispatch::PrefixPlan;
use gatekit_core::gate::gumbel_noise;
use gatekit_core::router::Phase;
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use super::config::{AcmGateConfig, AcmGateKind};
use super::cost::AcmCost;
use super::gate::{AcmGate, AcmGateOutput};
use super::learners::AcmLearners;

/// How many learners run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmMode {
    /// All of them.
    All,
    /// The first so many, for every token.
    Fixed(usize),
    /// As many as the gate says, for every token.
    Gated,
}

/// An adaptive computation module in place of a layer on a residual branch.
///
/// `y = sum_k z_k h_k` with the partial sums h of [`AcmLearners`] and the gate z of [`AcmGate`], in value `h_choice`.
/// In evaluation tokens are sorted by falling choice and learner i runs on those alone whose choice is at least i. In
/// training with `task_gradient` z multiplies h, so that the task's loss trains the gate, and every learner runs;
/// without it the chosen ones alone run and the gate learns from what is asked of z itself. Wójcik et al.
/// (arXiv 2312.10193), section 3.
#[derive(Module, Debug)]
pub struct Acm {
    /// The chain of learners.
    pub learners: AcmLearners,
    /// The gate; `None` before one was added.
    pub gating_network: Option<AcmGate>,
    pub(super) task_gradient: bool,
}

/// What a module computed, and for whom how much of it.
#[derive(Debug, Clone)]
pub struct AcmOutput {
    /// The output, `[batch, time, d]`.
    pub y: Tensor<3>,
    /// The gate z, `[batch, time, N + 1]`; a constant one-hot of the mode unless it is `Gated`.
    pub gate: Tensor<3>,
    /// Learners that every token used, `[batch, time]`.
    pub choice: Tensor<2, Int>,
}

impl Acm {
    /// In the phase of the device: training with autodiff, where noise is drawn, else evaluation.
    ///
    /// # Errors
    ///
    /// [`InputError`] for `Fixed(k)` with k above N, and for `Gated` before a gate was added.
    ///
    /// # Panics
    ///
    /// When `x` `[batch, time, d]` does not have d channels.
    pub fn forward(&self, x: Tensor<3>, mode: AcmMode) -> Result<AcmOutput, InputError> {
        let phase = Phase::of(&x.device());
        let noise = match (&self.gating_network, mode, phase) {
            (Some(gate), AcmMode::Gated, Phase::Training) => gate.draw(&x),
            _ => None,
        };
        self.forward_with(x, mode, noise, phase)
    }

    /// As [`forward`](Self::forward), with given Gumbel noise `[batch, time, C]` and in a given phase. In evaluation
    /// noise is not used.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), and for noise that is missing in training or of another shape.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_with(
        &self,
        x: Tensor<3>,
        mode: AcmMode,
        noise: Option<Tensor<3>>,
        phase: Phase,
    ) -> Result<AcmOutput, InputError> {
        let blocks = self.learners.num_blocks();
        let fixed = match mode {
            AcmMode::All => blocks,
            AcmMode::Fixed(k) => k,
            AcmMode::Gated => return self.gated(x, noise, phase),
        };
        let y = self.learners.forward_first(x, fixed)?;
        let [batch, time, _] = y.dims();
        let choice = Tensor::<2, Int>::full([batch, time], fixed as i64, &y.device());
        let gate = self.constant_gate(&choice, &y);
        Ok(AcmOutput { y, gate, choice })
    }

    fn gated(&self, x: Tensor<3>, noise: Option<Tensor<3>>, phase: Phase) -> Result<AcmOutput, InputError> {
        let AcmGateOutput { gate, choice, .. } = self.gate_of(x.clone(), noise, phase)?;
        let y = if phase == Phase::Training && self.task_gradient {
            self.learners.forward_mixed(x, gate.clone())
        } else {
            let plan = PrefixPlan::from_tensor(&choice, self.learners.num_blocks())?;
            self.learners.forward_chosen(x, &plan)
        };
        Ok(AcmOutput { y, gate, choice })
    }

    /// With a given number of learners for every token, `choice` `[batch, time]`: those of another gate, or of none. Runs
    /// what is asked for and no more, in either phase.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a choice of another shape, below 0 or above N.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_given(&self, x: Tensor<3>, choice: Tensor<2, Int>) -> Result<AcmOutput, InputError> {
        let ([batch, time, _], blocks) = (x.dims(), self.learners.num_blocks());
        if choice.dims() != [batch, time] {
            let got = format!("{:?}", choice.dims());
            return Err(InputError::new("choice", got, format!("[{batch}, {time}]")));
        }
        let plan = PrefixPlan::from_tensor(&choice, blocks)
            .map_err(|error| InputError { field: "choice".into(), ..error })?;
        let y = self.learners.forward_chosen(x, &plan);
        let gate = self.constant_gate(&choice, &y);
        Ok(AcmOutput { y, gate, choice })
    }

    /// One-hot `[batch, time, N + 1]`.
    fn constant_gate(&self, choice: &Tensor<2, Int>, like: &Tensor<3>) -> Tensor<3> {
        let ([batch, time], classes) = (choice.dims(), self.learners.num_blocks() + 1);
        if batch * time == 0 {
            return Tensor::zeros([batch, time, classes], (&like.device(), like.dtype()));
        }
        let positions = Tensor::<1, Int>::arange(0..classes as i64, &like.device()).reshape([1, 1, classes]);
        let choice = choice.clone().unsqueeze_dim::<3>(2).expand([batch, time, classes]);
        positions.expand([batch, time, classes]).equal(choice).float().cast(like.dtype())
    }

    /// What the gate alone says of `x`; see [`AcmGate::forward`].
    ///
    /// # Errors
    ///
    /// [`InputError`] before a gate was added, and as [`AcmGate::forward`].
    pub fn gate_of(
        &self,
        x: Tensor<3>,
        noise: Option<Tensor<3>>,
        phase: Phase,
    ) -> Result<AcmGateOutput, InputError> {
        let gate = (self.gating_network.as_ref()).ok_or_else(|| {
            InputError::new("mode", "Gated on a module without a gate", "a gate: see add_gate")
        })?;
        gate.forward(x, noise, phase)
    }

    /// Gives the module a fresh gate, in place of one that it has.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a configuration that is none, or that is of another width or number of learners.
    pub fn add_gate(self, config: &AcmGateConfig) -> Result<Self, ConfigError> {
        let (d, blocks) = (self.learners.hidden_dim(), self.learners.num_blocks());
        for (field, got, need) in
            [("hidden_dim", config.hidden_dim, d), ("num_blocks", config.num_blocks, blocks)]
        {
            if got != need {
                return Err(ConfigError::new(field, got, format!("{need}, as the learners have")));
            }
        }
        let device = self.learners.w1.val().device();
        Ok(Self { gating_network: Some(config.try_init(&device)?), ..self })
    }

    /// What the module costs.
    pub fn cost(&self) -> AcmCost {
        AcmCost {
            learner: self.learners.cost(),
            gate: self.gating_network.as_ref().map_or(0.0, AcmGate::cost),
            num_blocks: self.learners.num_blocks(),
        }
    }
}

impl AcmGate {
    /// Gumbel noise for the tokens of `x`, `None` where the gate does not sample.
    pub fn draw(&self, x: &Tensor<3>) -> Option<Tensor<3>> {
        let [batch, time, _] = x.dims();
        let shape = [batch, time, self.classes()];
        let uniform = || match batch * time {
            0 => Tensor::zeros(shape, &x.device()),
            _ => Tensor::random(shape, Distribution::Uniform(0.0, 1.0), &x.device()),
        };
        (self.kind == AcmGateKind::Gumbel).then(|| gumbel_noise(uniform()))
    }
}
