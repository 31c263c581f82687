//! Two predictions of one batch: each should be right, and both should agree.

use burn::config::Config;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use gatekit_core::divergence::symmetric_kl;
use gatekit_core::{ConfigError, InputError};

/// The loss of two passes over the same batch, with logits a and b `[batch, time, V]`:
///
/// ```text
/// CE = sum ((1 - eps - eps / (V - 1)) nll + eps / (V - 1) sum_v(-log p_v))           of each pass
/// CR = 1/2 sum (KL(p_a || p_b) + KL(p_b || p_a))
/// L  = CE_a + CE_b + alpha CR
/// ```
///
/// All sums run over the real target positions; divide by their number when the optimiser steps.
/// Gradients flow into both passes. Arithmetic is in at least float32, from log-softmax, so it stays
/// finite however far the two predictions lie apart. Section 3.2, eq. 4 and 5; smoothing as in fairseq.
#[derive(Config, Debug)]
pub struct ConsistencyLoss {
    /// Weight alpha of the consistency term; 5 in the released script (its default), 1 in the code.
    #[config(default = 5.0)]
    pub consistency_alpha: f64,
    /// Probability eps that is spread over the other tokens, in [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub label_smoothing: f64,
    /// Target that does not count. Default 1, as in fairseq.
    #[config(default = 1)]
    pub padding_idx: i64,
}

/// The parts of a [`ConsistencyLoss`], sums over the real positions.
#[derive(Debug, Clone)]
pub struct Consistency {
    /// `CE_a + CE_b + alpha CR`, `[1]`.
    pub loss: Tensor<1>,
    /// `CE_a` and `CE_b`, `[2]`.
    pub cross_entropy: Tensor<1>,
    /// `CR`, `[1]`.
    pub consistency: Tensor<1>,
    /// Real target positions; 0 when all are padding, and then the loss is 0.
    pub sample_size: usize,
}

impl ConsistencyLoss {
    /// Refuses what is no loss.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a weight that is no number or below 0, and smoothing outside [0, 1).
    pub fn check(&self) -> Result<(), ConfigError> {
        let alpha = self.consistency_alpha;
        if !(alpha.is_finite() && alpha >= 0.0) {
            return Err(ConfigError::new("consistency_alpha", alpha, "a finite number, at least 0"));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Err(ConfigError::new("label_smoothing", self.label_smoothing, "a share in [0, 1)"));
        }
        Ok(())
    }

    /// The loss of logits `[batch, time, V]` of two passes against targets `[batch, time]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a target that is neither padding nor one of the V tokens, with its position,
    /// and for a vocabulary of one token with smoothing, which has no other token to spread to.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(
        &self,
        logits: [Tensor<3>; 2],
        target: &Tensor<2, Int>,
    ) -> Result<Consistency, InputError> {
        let [batch, time, vocabulary] = logits[0].dims();
        assert!(
            logits[1].dims() == logits[0].dims() && target.dims() == [batch, time],
            "ConsistencyLoss: `logits` {:?} and {:?} and `target` {:?} do not fit",
            logits[0].dims(),
            logits[1].dims(),
            target.dims()
        );
        if vocabulary <= 1 && self.label_smoothing > 0.0 {
            let need = "at least 2 tokens: smoothing spreads over the others";
            return Err(InputError::new("logits", format!("{vocabulary} tokens"), need));
        }
        let targets: Vec<i64> = target.to_data().iter::<i64>().collect();
        let real: Vec<bool> = targets.iter().map(|token| *token != self.padding_idx).collect();
        let unknown = |token: i64| usize::try_from(token).is_ok_and(|token| token < vocabulary);
        if let Some(index) = targets.iter().zip(&real).position(|(token, real)| *real && !unknown(*token)) {
            let got = format!("{} at [{}, {}]", targets[index], index / time, index % time);
            let need = format!("0 .. {vocabulary}, or {} for padding", self.padding_idx);
            return Err(InputError::new("target", got, need));
        }
        let sample_size = real.iter().filter(|real| **real).count();
        let device = logits[0].device();
        if sample_size == 0 {
            let zeros = |size| Tensor::zeros([size], (&device, wide(logits[0].dtype())));
            let (loss, cross_entropy, consistency) = (zeros(1), zeros(2), zeros(1));
            return Ok(Consistency { loss, cross_entropy, consistency, sample_size });
        }
        let rows = batch * time;
        // What is padding may name no token of the vocabulary.
        let tokens = targets.iter().zip(&real).map(|(token, real)| if *real { *token } else { 0 }).collect();
        let tokens = Tensor::<2, Int>::from_data(TensorData::new::<i64, _>(tokens, [rows, 1]), &device);
        let mask = Tensor::<2, Bool>::from_data(TensorData::new(real, [rows, 1]), &device);
        let [a, b] = logits.map(|logits| logits.reshape([rows, vocabulary]));
        let cross_entropy = Tensor::cat(
            [&a, &b].map(|logits| self.cross_entropy(logits.clone(), tokens.clone(), &mask)).to_vec(),
            0,
        );
        let consistency = symmetric_kl(a, b, Some(&mask), 1.0).sum().mul_scalar(0.5);
        let loss = cross_entropy.clone().sum() + consistency.clone().mul_scalar(self.consistency_alpha);
        Ok(Consistency { loss, cross_entropy, consistency, sample_size })
    }

    /// The smoothed cross entropy of logits `[N, V]`, summed over the rows that count, `[1]`.
    fn cross_entropy(&self, logits: Tensor<2>, tokens: Tensor<2, Int>, mask: &Tensor<2, Bool>) -> Tensor<1> {
        let [rows, vocabulary] = logits.dims();
        let hidden = mask.clone().bool_not();
        let dtype = wide(logits.dtype());
        let logits = logits.cast(dtype).mask_fill(hidden.clone().expand([rows, vocabulary]), 0.0);
        let log_p = log_softmax(logits, 1);
        let likelihood = log_p.clone().gather(1, tokens);
        let eps = self.label_smoothing;
        let per_row = match eps {
            0.0 => likelihood,
            _ => {
                let other = eps / (vocabulary as f64 - 1.0);
                likelihood.mul_scalar(1.0 - eps - other) + log_p.sum_dim(1).mul_scalar(other)
            }
        };
        per_row.mask_fill(hidden, 0.0).sum().neg()
    }
}

fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    }
}
