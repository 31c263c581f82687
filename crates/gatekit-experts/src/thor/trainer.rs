//! A training step.

use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Int, Tensor};
use gatekit_core::{ConfigError, InputError};

use super::assignment::ExpertDraw;
use super::loss::ConsistencyLoss;
use super::model::{ThorExperts, ThorModel};

/// Sentence pairs, checked.
#[derive(Debug, Clone)]
pub struct ThorBatch {
    source: Tensor<2, Int>,
    target_input: Tensor<2, Int>,
    target: Tensor<2, Int>,
    real: usize,
}

impl ThorBatch {
    /// `source` `[batch, source]`, `target_input` and `target` `[batch, time]`: the target, and the same one
    /// place later behind the token that begins it. All padded behind with the model's padding token.
    ///
    /// # Errors
    ///
    /// [`InputError`] for shapes that do not fit, a token that the model does not know, and a source or
    /// target input that begins with padding (there would be nothing to attend to).
    pub fn new(
        source: Tensor<2, Int>,
        target_input: Tensor<2, Int>,
        target: Tensor<2, Int>,
        model: &ThorModel,
    ) -> Result<Self, InputError> {
        let (dims, padding) = (target_input.dims(), model.padding_idx() as i64);
        if target.dims() != dims || source.dims()[0] != dims[0] || source.dims()[1] == 0 || dims[1] == 0 {
            let got = format!("{:?}, {:?} and {:?}", source.dims(), dims, target.dims());
            let need = "[batch, source], [batch, time] and [batch, time], no row empty";
            return Err(InputError::new("source, target_input, target", got, need));
        }
        let mut real = 0;
        for (name, tokens) in [("source", &source), ("target_input", &target_input), ("target", &target)] {
            let time = tokens.dims()[1];
            let values: Vec<i64> = tokens.to_data().iter::<i64>().collect();
            let vocabulary = model.vocab_size();
            let unknown =
                values.iter().position(|token| usize::try_from(*token).map_or(true, |id| id >= vocabulary));
            if let Some(index) = unknown {
                let got = format!("{} at [{}, {}]", values[index], index / time, index % time);
                return Err(InputError::new(name, got, format!("0 .. {vocabulary}")));
            }
            if name == "target" {
                real = values.iter().filter(|token| **token != padding).count();
            } else if let Some(row) = values.chunks(time).position(|row| row[0] == padding) {
                let got = format!("padding at [{row}, 0]");
                return Err(InputError::new(name, got, "padding behind the tokens of every row"));
            }
        }
        Ok(Self { source, target_input, target, real })
    }

    /// Target positions that are no padding.
    pub fn real_targets(&self) -> usize {
        self.real
    }
}

/// What a training step did, per real target position.
#[derive(Debug, Clone, PartialEq)]
pub struct ThorStep {
    /// `CE_a + CE_b + alpha CR`.
    pub loss: f64,
    /// Cross entropies of the two passes.
    pub cross_entropy: [f64; 2],
    /// The consistency term, not weighted.
    pub consistency: f64,
    /// Real target positions.
    pub sample_size: usize,
    /// The experts of both passes, of every batch.
    pub experts: Vec<[ThorExperts; 2]>,
}

/// Trains a [`ThorModel`]: two forward passes a batch with experts that are drawn independently, and one
/// backward pass.
///
/// The trainer owns the generator and advances it: passes that began in the same state would draw the same
/// experts, and the consistency term would vanish. Dropout is drawn afresh in each pass too.
///
/// The paper trains with Adam (0.9, 0.98), weight decay 1e-4, and the inverse square root schedule to 1e-3
/// after 4000 steps (Burn's Noam schedule with factor `1e-3 * sqrt(D * 4000)`), 8 batches of 4096 tokens a
/// step. Section 3.2 and appendix.
pub struct ThorTrainer {
    /// The model, on a device with autodiff.
    pub model: ThorModel,
    optimizer: ModuleOptimizer,
    loss: ConsistencyLoss,
    draw: ExpertDraw,
}

impl ThorTrainer {
    /// Begins with `model`, moved to its device's autodiff form.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a loss that is none, and when `draw` draws among another number of experts than
    /// the model has.
    pub fn new(
        model: ThorModel,
        optimizer: ModuleOptimizer,
        loss: ConsistencyLoss,
        draw: ExpertDraw,
    ) -> Result<Self, ConfigError> {
        loss.check()?;
        if let Some(experts) = model.num_experts().filter(|experts| *experts != draw.num_experts()) {
            return Err(ConfigError::new(
                "num_experts",
                draw.num_experts(),
                format!("the model's {experts}"),
            ));
        }
        Ok(Self { model: model.train(), optimizer, loss, draw })
    }

    /// One step of the optimiser on `batches`, whose gradients are added up and divided by the number of all
    /// their real target positions. Tensors are on the device's autodiff form.
    ///
    /// After a loss that is not finite the model is left as it is.
    ///
    /// # Errors
    ///
    /// [`InputError`] when no batch has a real target position: there is nothing to divide by.
    ///
    /// # Panics
    ///
    /// When a batch was made for another model.
    pub fn step(
        &mut self,
        rates: impl Into<ModuleLearningRate>,
        batches: &[ThorBatch],
    ) -> Result<ThorStep, InputError> {
        let sample_size: usize = batches.iter().map(ThorBatch::real_targets).sum();
        if sample_size == 0 {
            let got = format!("{} batches of padding", batches.len());
            return Err(InputError::new("target", got, "a real target position to divide by"));
        }
        let per_token = 1.0 / sample_size as f64;
        let mut report = ThorStep {
            loss: 0.0,
            cross_entropy: [0.0; 2],
            consistency: 0.0,
            sample_size,
            experts: Vec::new(),
        };
        let mut gradients = GradientsAccumulator::new();
        for batch in batches.iter().filter(|batch| batch.real > 0) {
            let experts = [self.next_experts(batch), self.next_experts(batch)];
            let pass =
                |experts| self.model.forward(batch.source.clone(), batch.target_input.clone(), experts);
            let logits = [pass(&experts[0])?, pass(&experts[1])?];
            let parts = self.loss.forward(logits, &batch.target)?;
            let loss = parts.loss.mul_scalar(per_token);
            report.loss += loss.clone().into_scalar::<f64>();
            report.consistency += parts.consistency.into_scalar::<f64>() * per_token;
            let cross_entropy = parts.cross_entropy.into_data();
            for (sum, value) in report.cross_entropy.iter_mut().zip(cross_entropy.iter::<f64>()) {
                *sum += value * per_token;
            }
            report.experts.push(experts);
            if !report.loss.is_finite() {
                return Ok(report);
            }
            gradients.accumulate(&self.model, GradientsParams::from_grads(loss.backward(), &self.model));
        }
        self.model = self.optimizer.step(rates, self.model.clone(), gradients.grads());
        Ok(report)
    }

    fn next_experts(&mut self, batch: &ThorBatch) -> ThorExperts {
        let [rows, source] = batch.source.dims();
        self.model.draw(&mut self.draw, rows, source, batch.target.dims()[1])
    }
}
