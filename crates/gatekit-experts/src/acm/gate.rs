//! How many learners a token needs.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{DType, Int, Tensor, activation::softmax};
use gatekit_core::InputError;
use gatekit_core::dispatch::narrow_matmul;
use gatekit_core::gate::{first_argmax, gumbel_softmax, one_hot, straight_through_one_hot};
use gatekit_core::router::Phase;

use super::config::AcmGateKind;
use super::cost::linear_cost;

/// A choice between `min_choice ..= N` learners, made of the token.
///
/// ```text
/// logits = W_L .. W_1 x (with biases, no activation between)         C = N + 1 - min_choice classes
/// training:    p = softmax((logits + g) / tau), z = onehot(argmax p) - stopgrad(p) + p
/// evaluation:  p = softmax(logits), z = onehot(argmax logits)
/// soft:        z = p = softmax(logits) in both
/// ```
///
/// with standard Gumbel noise g; without `gs_hard`, z = p in training. `min_choice` zeros stand in front of both.
/// Wójcik et al. (arXiv 2312.10193), section 3.2; maps as released.
#[derive(Module, Debug)]
pub struct AcmGate {
    /// The map of a gate that has one.
    pub fc: Option<Linear>,
    /// The maps of a gate that has several, in their order.
    pub net: Vec<Linear>,
    pub(super) num_blocks: usize,
    pub(super) min_choice: usize,
    #[module(skip)]
    pub(super) kind: AcmGateKind,
    pub(super) tau: f64,
    pub(super) hard: bool,
}

/// What a gate said.
#[derive(Debug, Clone)]
pub struct AcmGateOutput {
    /// Probabilities p, `[batch, time, N + 1]`, 0 for forbidden choices.
    pub probs: Tensor<3>,
    /// The gate z, `[batch, time, N + 1]`.
    pub gate: Tensor<3>,
    /// Learners of every token, `argmax z`, `[batch, time]`.
    pub choice: Tensor<2, Int>,
}

impl AcmGate {
    /// Learners N that are chosen from.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Fewest learners that are chosen.
    pub fn min_choice(&self) -> usize {
        self.min_choice
    }

    /// Choices C there are.
    pub fn classes(&self) -> usize {
        self.num_blocks + 1 - self.min_choice
    }

    /// What the gate costs, in FLOPs a token.
    pub fn cost(&self) -> f64 {
        self.maps().map(|map| linear_cost(map.weight.dims(), map.bias.is_some())).sum()
    }

    /// Whether the gate needs noise in training.
    pub fn samples(&self) -> bool {
        self.kind == AcmGateKind::Gumbel
    }

    /// The gate of `x` `[batch, time, d]`, with Gumbel `noise` `[batch, time, C]` where the gate samples in training.
    ///
    /// # Errors
    ///
    /// [`InputError`] when noise is needed and missing, or of another shape.
    ///
    /// # Panics
    ///
    /// When `x` does not have d channels.
    pub fn forward(
        &self,
        x: Tensor<3>,
        noise: Option<Tensor<3>>,
        phase: Phase,
    ) -> Result<AcmGateOutput, InputError> {
        let logits = self.logits(x);
        let logits = match logits.dtype() {
            DType::F16 | DType::BF16 => logits.cast(DType::F32),
            _ => logits,
        };
        let (probs, gate) = match (self.kind, phase) {
            (AcmGateKind::Soft, _) => {
                let probs = softmax(logits, 2);
                (probs.clone(), probs)
            }
            (AcmGateKind::Gumbel, Phase::Inference) => {
                let choice = first_argmax(logits.clone()).add_scalar(self.min_choice as i64);
                let gate = one_hot(choice.clone(), self.num_blocks + 1).cast(logits.dtype());
                let probs = self.padded(softmax(logits, 2));
                return Ok(AcmGateOutput { probs, gate, choice: choice.squeeze_dim(2) });
            }
            (AcmGateKind::Gumbel, Phase::Training) => {
                let need = || format!("standard Gumbel noise {:?} in training", logits.dims());
                let noise = noise.ok_or_else(|| InputError::new("gumbel", "none", need()))?;
                if noise.dims() != logits.dims() {
                    return Err(InputError::new("gumbel", format!("{:?}", noise.dims()), need()));
                }
                let probs = gumbel_softmax(logits, noise, self.tau, false);
                (probs.clone(), if self.hard { straight_through_one_hot(probs) } else { probs })
            }
        };
        let gate = self.padded(gate);
        let choice = first_argmax(gate.clone()).squeeze_dim(2);
        Ok(AcmGateOutput { probs: self.padded(probs), gate, choice })
    }

    /// `[batch, time, d]` to `[batch, time, C]`.
    fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, time, d] = x.dims();
        if batch * time == 0 {
            return Tensor::zeros([batch, time, self.classes()], (&x.device(), x.dtype()));
        }
        let logits = self.maps().fold(x.reshape([batch * time, d]), |x, map| {
            let y = narrow_matmul(x, map.weight.val().transpose());
            match &map.bias {
                Some(bias) => y + bias.val().unsqueeze_dim(0),
                None => y,
            }
        });
        logits.reshape([batch, time, self.classes()])
    }

    fn maps(&self) -> impl Iterator<Item = &Linear> {
        self.fc.iter().chain(&self.net)
    }

    /// With zeros for the choices that are forbidden.
    fn padded(&self, classes: Tensor<3>) -> Tensor<3> {
        let [batch, time, _] = classes.dims();
        if self.min_choice == 0 {
            return classes;
        }
        let zeros = Tensor::zeros([batch, time, self.min_choice], (&classes.device(), classes.dtype()));
        Tensor::cat(vec![zeros, classes], 2)
    }
}
