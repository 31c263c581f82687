//! Classifiers and gates on the features of all stages.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Int, Tensor};
use gatekit_core::InputError;
use gatekit_core::gate::{ExitDistribution, SequentialExit};

use super::config::JeiDnnConfig;
use super::gate::{FEATURES, UncertaintyGate, uncertainty_features};

/// A classifier and a gate behind every stage of a network, and its final head.
///
/// Parameters are called as in the released code: `intermediate_heads.{l}`, `head`,
/// `gates.{l}.linear`.
#[derive(Module, Debug)]
pub struct EarlyExits {
    /// Classifiers of exits 0 .. L.
    pub intermediate_heads: Vec<Linear>,
    /// The network's own classifier, exit L; it is not trained here.
    pub head: Linear,
    /// Gates of exits 0 .. L.
    pub gates: Vec<UncertaintyGate>,
    #[module(skip)]
    config: JeiDnnConfig,
}

/// What all exits answer, from [`EarlyExits::forward`].
#[derive(Debug, Clone)]
pub struct ExitOutput {
    /// Answers `[batch, L + 1, classes]`, the final head's last.
    pub exit_logits: Tensor<3>,
    /// Gates' logits `[batch, L]`.
    pub gate_logits: Tensor<2>,
    /// Who leaves where.
    pub distribution: ExitDistribution,
}

/// The exits that are taken, from [`EarlyExits::decide`].
#[derive(Debug, Clone)]
pub struct ExitDecision {
    /// The exit of every sample, `[batch]`.
    pub exit_level: Tensor<1, Int>,
    /// Its answer, `[batch, classes]`.
    pub logits: Tensor<2>,
    /// Its cost, `[batch]`.
    pub cost: Tensor<1>,
    /// The cost that the exit distribution expects, `[batch]`; takes a gradient to the gates.
    pub expected_cost: Tensor<1>,
}

impl EarlyExits {
    /// The configuration has been checked.
    pub(super) fn new(
        intermediate_heads: Vec<Linear>,
        head: Linear,
        gates: Vec<UncertaintyGate>,
        config: &JeiDnnConfig,
    ) -> Self {
        Self { intermediate_heads, head, gates, config: config.clone() }
    }

    /// The same exits before another final head, the one that a network was trained with.
    ///
    /// # Panics
    ///
    /// When it does not go from `embed_dim` to `num_classes` channels.
    pub fn with_head(mut self, head: Linear) -> Self {
        let [got_in, got_out] = head.weight.shape().dims();
        let need = [self.config.embed_dim, self.config.num_classes];
        assert!([got_in, got_out] == need, "EarlyExits: `head` is {:?}, need {need:?}", [got_in, got_out]);
        self.head = head;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &JeiDnnConfig {
        &self.config
    }

    /// The same exits with other settings: threshold, price, weights, training.
    ///
    /// # Errors
    ///
    /// [`ConfigError`](gatekit_core::ConfigError) for settings that cannot be used.
    ///
    /// # Panics
    ///
    /// When the number of exits, the width or the classes differ: those are the modules'.
    pub fn with_config(mut self, config: JeiDnnConfig) -> Result<Self, gatekit_core::ConfigError> {
        config.check()?;
        let sizes = |config: &JeiDnnConfig| [config.num_exits, config.embed_dim, config.num_classes];
        assert!(
            sizes(&config) == sizes(&self.config),
            "EarlyExits: the modules are of sizes {:?}, the configuration of {:?}",
            sizes(&self.config),
            sizes(&config)
        );
        self.config = config;
        Ok(self)
    }

    pub(super) fn sequential_exit(&self) -> SequentialExit {
        self.config.sequential_exit().expect("the configuration was checked")
    }

    /// The answer `[batch, classes]` of an exit to the features `[batch, embed_dim]` of its stage; L is
    /// the final head.
    ///
    /// # Panics
    ///
    /// When there is no such exit.
    pub fn answer(&self, exit: usize, features: Tensor<2>) -> Tensor<2> {
        match exit == self.config.num_exits {
            true => self.head.forward(features),
            false => self.intermediate_heads[exit].forward(features),
        }
    }

    /// All exits.
    ///
    /// # Shapes
    ///
    /// - `features`: `[batch, L + 1, embed_dim]`, of every stage what its classifier reads: through the
    ///   network's own final norm
    /// - output: see [`ExitOutput`]
    ///
    /// # Panics
    ///
    /// When the shape of `features` is another.
    pub fn forward(&self, features: Tensor<3>) -> ExitOutput {
        let [batch, stages, width] = features.dims();
        let (exits, need) = (self.config.num_exits, self.config.embed_dim);
        assert!(
            stages == exits + 1 && width == need,
            "EarlyExits: `features` {:?}, need [batch, {}, {need}]",
            [batch, stages, width],
            exits + 1
        );
        let exit_logits = self.exit_logits(features);
        let gate_logits = self.gate_logits(exit_logits.clone());
        let distribution = self.sequential_exit().forward(gate_logits.clone());
        ExitOutput { exit_logits, gate_logits, distribution }
    }

    /// The answers `[batch, L + 1, classes]` alone, all classifiers in one product.
    pub(super) fn exit_logits(&self, features: Tensor<3>) -> Tensor<3> {
        let [batch, stages, _] = features.dims();
        if batch == 0 {
            let shape = [0, stages, self.config.num_classes];
            return Tensor::zeros(shape, (&features.device(), features.dtype()));
        }
        let heads = || self.intermediate_heads.iter().chain([&self.head]);
        let weights = Tensor::stack::<3>(heads().map(|head| head.weight.val()).collect(), 0);
        let answers = features.swap_dims(0, 1).matmul(weights).swap_dims(0, 1);
        let biases = heads().map(|head| match &head.bias {
            Some(bias) => bias.val(),
            None => Tensor::zeros([self.config.num_classes], (&answers.device(), answers.dtype())),
        });
        answers.clone() + Tensor::stack::<2>(biases.collect(), 0).unsqueeze_dim(0)
    }

    /// The gates' logits `[batch, L]` for answers `[batch, L + 1, classes]`, to which no gradient goes.
    pub(super) fn gate_logits(&self, exit_logits: Tensor<3>) -> Tensor<2> {
        let [batch, exits, classes] = exit_logits.dims();
        let gates = exits - 1;
        if batch == 0 {
            return Tensor::zeros([0, gates], (&exit_logits.device(), exit_logits.dtype()));
        }
        let answers = exit_logits.narrow(1, 0, gates).reshape([batch * gates, classes]);
        let measures = uncertainty_features(answers).reshape([batch, gates, FEATURES]);
        let weights = self.gates.iter().map(|gate| gate.linear.weight.val().squeeze_dim::<1>(1));
        let weights = Tensor::stack::<2>(weights.collect(), 0);
        let biases = self.gates.iter().filter_map(|gate| gate.linear.bias.as_ref()).map(|bias| bias.val());
        let biases = Tensor::cat(biases.collect::<Vec<_>>(), 0);
        let logits = (measures.cast(weights.dtype()) * weights.unsqueeze_dim(0)).sum_dim(2);
        logits.squeeze_dim::<2>(2) + biases.unsqueeze_dim(0)
    }

    /// Which exit every sample takes, what it answers and what that costs.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the first exit whose logits hold NaN: that compares false, and samples
    /// would run to the end in silence.
    pub fn decide(&self, output: &ExitOutput) -> Result<ExitDecision, InputError> {
        check_numbers(&output.exit_logits)?;
        let exit_level = output.distribution.levels();
        let [batch, _, classes] = output.exit_logits.dims();
        let device = output.exit_logits.device();
        let costs =
            Tensor::<1>::from_data(&self.config.cost_per_exit[..], (&device, output.exit_logits.dtype()));
        let (logits, cost) = match batch {
            0 => {
                let none = Tensor::zeros([0, classes], (&device, output.exit_logits.dtype()));
                (none, Tensor::zeros([0], (&device, output.exit_logits.dtype())))
            }
            _ => {
                let rows = exit_level.clone().reshape([batch, 1, 1]).expand([batch, 1, classes]);
                (
                    output.exit_logits.clone().gather(1, rows).squeeze_dim(1),
                    costs.select(0, exit_level.clone()),
                )
            }
        };
        let expected_cost = output.distribution.expectation(&self.config.cost_per_exit);
        Ok(ExitDecision { exit_level, logits, cost, expected_cost })
    }
}

/// Refuses exits' logits `[batch, exits, classes]` with a NaN, and names the exit.
pub(super) fn check_numbers(exit_logits: &Tensor<3>) -> Result<(), InputError> {
    let [batch, exits, classes] = exit_logits.dims();
    if batch == 0 {
        return Ok(());
    }
    let sums = (exit_logits.clone().detach().is_nan().int()).sum_dim(2).sum_dim(0).into_data();
    match sums.iter::<i64>().position(|count| count > 0) {
        None => Ok(()),
        Some(exit) => Err(not_a_number(exit, exits, classes)),
    }
}

pub(super) fn not_a_number(exit: usize, exits: usize, classes: usize) -> InputError {
    let name = if exit + 1 == exits { "the final head" } else { "an exit before it" };
    InputError::new(
        format!("exit_logits[{exit}]"),
        "NaN",
        format!("{classes} numbers from exit {exit} ({name})"),
    )
}
