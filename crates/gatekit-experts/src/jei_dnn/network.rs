//! A network in stages that stops computing where a sample leaves.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use gatekit_core::dispatch::Rows;
use gatekit_core::{ConfigError, InputError};

use super::exits::{EarlyExits, ExitOutput, not_a_number};

/// A trained network that can be stopped after each of its stages.
pub trait StagedBackbone {
    /// What goes from stage to stage: a tensor, or several with the same number of rows.
    type Hidden: Rows + Clone;

    /// Number of stages, L + 1.
    fn stages(&self) -> usize;

    /// Stage `index`, 0 the first; the first takes the network's input.
    fn stage(&self, index: usize, x: Self::Hidden) -> Self::Hidden;

    /// What a classifier reads behind stage `index`, `[rows, embed_dim]`: the class token or the pooled
    /// features, through the network's own final norm.
    fn readout(&self, index: usize, x: &Self::Hidden) -> Tensor<2>;

    /// Multiply-adds of stage `index` for one sample, with its readout, classifier and gate.
    fn cost(&self, index: usize) -> f64;
}

/// Multiply-adds up to and with every stage, over those of the whole network: the `cost_per_exit` of
/// [`JeiDnnConfig`](super::JeiDnnConfig).
pub fn normalised_costs<B: StagedBackbone>(backbone: &B) -> Vec<f64> {
    let sums = (0..backbone.stages()).scan(0.0, |sum, stage| {
        *sum += backbone.cost(stage);
        Some(*sum)
    });
    let sums: Vec<f64> = sums.collect();
    let total = sums.last().copied().unwrap_or(1.0);
    sums.into_iter().map(|sum| sum / total).collect()
}

/// A network in stages with [`EarlyExits`] behind them.
///
/// Where both are frozen, `forward` computes all exits of all samples and [`infer`](Self::infer) each
/// sample up to the exit it takes, with the same answers.
#[derive(Module, Debug)]
pub struct DynamicNetwork<B> {
    /// The trained network without its classifier.
    pub backbone: B,
    /// Classifiers and gates.
    pub exits: EarlyExits,
}

/// What [`DynamicNetwork::infer`] answers, in the order of its input.
#[derive(Debug, Clone)]
pub struct ExitAnswers {
    /// `[batch, classes]`.
    pub logits: Tensor<2>,
    /// The exit of every sample.
    pub exit_levels: Vec<usize>,
    /// Its cost.
    pub costs: Vec<f64>,
    /// Samples that every stage computed.
    pub rows_per_stage: Vec<usize>,
}

impl ExitAnswers {
    /// The exits as a tensor `[batch]`.
    pub fn exit_level(&self) -> Tensor<1, Int> {
        let levels: Vec<i64> = self.exit_levels.iter().map(|level| *level as i64).collect();
        let count = levels.len();
        Tensor::from_data(TensorData::new(levels, [count]), &self.logits.device())
    }

    /// Mean cost of the exits taken; 0 without samples.
    pub fn mean_cost(&self) -> f64 {
        self.costs.iter().sum::<f64>() / self.costs.len().max(1) as f64
    }
}

impl<B: StagedBackbone> DynamicNetwork<B> {
    /// Puts exits behind the stages of a network.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] unless there is an exit less than stages.
    pub fn new(backbone: B, exits: EarlyExits) -> Result<Self, ConfigError> {
        let (stages, num_exits) = (backbone.stages(), exits.config().num_exits);
        match stages == num_exits + 1 {
            true => Ok(Self { backbone, exits }),
            false => {
                let need = format!("one less than the backbone's {stages} stages");
                Err(ConfigError::new("num_exits", num_exits, need))
            }
        }
    }

    /// The features of all stages, `[rows, L + 1, embed_dim]`: what [`EarlyExits`] are trained on.
    ///
    /// The network is frozen; computed on a device without autodiff, nothing is stored for a backward pass.
    pub fn features(&self, x: B::Hidden) -> Tensor<3> {
        let mut hidden = x;
        let features = (0..self.backbone.stages()).map(|stage| {
            hidden = self.backbone.stage(stage, hidden.clone());
            self.backbone.readout(stage, &hidden).unsqueeze_dim::<3>(1)
        });
        Tensor::cat(features.collect(), 1)
    }

    /// All exits of all samples.
    pub fn forward(&self, x: B::Hidden) -> ExitOutput {
        self.exits.forward(self.features(x))
    }

    /// Each sample up to the exit it takes: after every stage those that leave are answered, and the
    /// next stage computes the others alone. Answers return to the input's order.
    ///
    /// An empty batch has empty answers.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the first exit whose logits or gate are NaN.
    pub fn infer(&self, x: B::Hidden) -> Result<ExitAnswers, InputError> {
        let (batch, device, config) = (x.rows(), x.device(), self.exits.config());
        let (last, classes) = (config.num_exits, config.num_classes);
        let rule = self.exits.sequential_exit();
        let mut answers = ExitAnswers {
            logits: Tensor::zeros([0, classes], &device),
            exit_levels: vec![last; batch],
            costs: Vec::new(),
            rows_per_stage: vec![0; last + 1],
        };
        let mut going: Vec<usize> = (0..batch).collect();
        let (mut hidden, mut spent) = (x, None::<Tensor<2>>);
        let (mut parts, mut order) = (Vec::new(), Vec::with_capacity(batch));
        for exit in 0..=last {
            if going.is_empty() {
                break;
            }
            answers.rows_per_stage[exit] = going.len();
            hidden = self.backbone.stage(exit, hidden);
            let logits = self.exits.answer(exit, self.backbone.readout(exit, &hidden));
            if exit == last {
                check_rows(&logits, exit, last)?;
                parts.push(logits);
                order.append(&mut going);
                break;
            }
            let gate_logits = self.exits.gates[exit].forward(logits.clone());
            let before = spent.take().unwrap_or_else(|| gate_logits.zeros_like());
            let step = rule.step(gate_logits, before);
            let hazards: Vec<f64> = step.hazard.into_data().iter::<f64>().collect();
            if hazards.iter().any(|hazard| hazard.is_nan()) {
                return Err(not_a_number(exit, last + 1, classes));
            }
            let leaves = |row: &usize| hazards[*row] >= rule.exit_threshold();
            let (leaving, staying): (Vec<usize>, Vec<usize>) = (0..going.len()).partition(leaves);
            if leaving.is_empty() {
                spent = Some(step.spent);
                continue;
            }
            leaving.iter().for_each(|row| answers.exit_levels[going[*row]] = exit);
            order.extend(leaving.iter().map(|row| going[*row]));
            parts.push(match staying.is_empty() {
                true => logits,
                false => logits.select_rows(&leaving),
            });
            if !staying.is_empty() {
                hidden = hidden.select_rows(&staying);
                spent = Some(step.spent.select_rows(&staying));
            }
            going = staying.into_iter().map(|row| going[row]).collect();
        }
        answers.costs = answers.exit_levels.iter().map(|level| config.cost_per_exit[*level]).collect();
        if batch > 0 {
            let mut place = vec![0; batch];
            order.iter().enumerate().for_each(|(row, sample)| place[*sample] = row);
            answers.logits = Tensor::cat(parts, 0).select_rows(&place);
        }
        Ok(answers)
    }
}

fn check_rows(logits: &Tensor<2>, exit: usize, last: usize) -> Result<(), InputError> {
    let [_, classes] = logits.dims();
    match logits.clone().is_nan().any().into_scalar::<bool>() {
        false => Ok(()),
        true => Err(not_a_number(exit, last + 1, classes)),
    }
}
