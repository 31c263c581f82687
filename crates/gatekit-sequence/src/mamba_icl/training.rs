//! What is minimised, what is counted, and plain gradient descent on fresh prompts.

use burn::config::Config;
use burn::module::Module;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::{ConfigError, InputError};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::distribution::PromptDistribution;
use super::prompts::OutlierPrompts;
use crate::lm::float32;

/// A model that answers the last row of a prompt.
pub trait ContextLearner: Module {
    /// The score of the query's label, `[batch]`, from a prompt `[batch, l + 1, d + 1]`; its sign
    /// is the predicted label.
    fn score(&self, prompt: Tensor<3>) -> Tensor<1>;
}

/// `mean max(0, 1 - z F)`, `[1]`, in float32: the hinge loss of scores `F` against labels `z` of -1
/// or 1, both `[batch]`.
///
/// # Panics
///
/// When the two differ in length.
pub fn hinge_loss(score: Tensor<1>, labels: Tensor<1>) -> Tensor<1> {
    margins(score, labels).neg().add_scalar(1.0).clamp_min(0.0).mean()
}

/// The share of scores of the wrong sign, `[1]`: of `z F < 0`. A score of 0 is not counted, one that
/// is NaN is.
///
/// # Panics
///
/// When the two differ in length.
pub fn error_rate(score: Tensor<1>, labels: Tensor<1>) -> Tensor<1> {
    margins(score, labels).greater_equal_elem(0.0).bool_not().float().mean()
}

/// `z F`.
fn margins(score: Tensor<1>, labels: Tensor<1>) -> Tensor<1> {
    assert!(
        score.dims() == labels.dims(),
        "`score` {:?} and `labels` {:?} differ in length",
        score.dims(),
        labels.dims()
    );
    float32(score) * float32(labels)
}

/// Checks prompts `[batch, l + 1, width]` that come from outside; reads the labels back to the host.
///
/// # Errors
///
/// [`InputError`] for rows of another width, for a prompt without a query (no row at all, or a last
/// row whose label is not 0), and for an example whose label is neither -1 nor 1.
pub fn check_prompt(prompt: &Tensor<3>, width: usize) -> Result<(), InputError> {
    let [batch, rows, got] = prompt.dims();
    if got != width || width == 0 {
        let need = format!("{width}: the features and the label");
        return Err(InputError::new("prompt", format!("rows of {got} values"), need));
    }
    if rows == 0 || batch == 0 {
        return Err(InputError::new(
            "prompt",
            format!("shape {:?}", prompt.dims()),
            "a query in the last row",
        ));
    }
    let labels = prompt.clone().narrow(2, width - 1, 1).into_data();
    for (index, label) in labels.iter::<f64>().enumerate() {
        let (row, place) = (index / rows, index % rows);
        let (fits, need) = match place + 1 == rows {
            true => (label == 0.0, "0, the query's label is asked for"),
            false => (label == 1.0 || label == -1.0, "-1 or 1"),
        };
        if !fits {
            return Err(InputError::new("prompt", format!("label {label} at [{row}, {place}]"), need));
        }
    }
    Ok(())
}

/// Panics unless the prompt has rows of this width; in debug builds unless its labels are right.
pub(super) fn assert_prompt(prompt: &Tensor<3>, width: usize) {
    let [batch, rows, got] = prompt.dims();
    assert!(
        batch > 0 && rows > 0 && got == width,
        "`prompt` {:?} must be [batch, l + 1, {width}], with the query in the last row",
        prompt.dims()
    );
    if cfg!(debug_assertions) {
        check_prompt(prompt, width).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Plain gradient descent, a fresh batch of prompts every step.
#[derive(Config, Debug)]
pub struct IclTrainingConfig {
    /// Number of steps.
    #[config(default = 1000)]
    pub steps: usize,
    /// Prompts of a step.
    #[config(default = 128)]
    pub batch_size: usize,
    /// Size `eta` of a step, in (0, 1]. 0.5 suits the gated predictor, 0.05 the one without a gate.
    #[config(default = 0.5)]
    pub learning_rate: f64,
    /// Seed of the prompts.
    #[config(default = 0)]
    pub seed: u64,
}

impl IclTrainingConfig {
    fn check(&self) -> Result<(), ConfigError> {
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return Err(ConfigError::new("learning_rate", self.learning_rate, "a number in (0, 1]"));
        }
        match self.batch_size {
            0 => Err(ConfigError::new("batch_size", 0, "at least 1")),
            _ => Ok(()),
        }
    }
}

/// Trains `model` on the hinge loss of fresh prompts by plain gradient descent.
///
/// `device` is the model's, with autodiff. `after_step` is called after every step with its number,
/// the loss before it, and the model after it. A loss that is not finite ends the training: its
/// step is not taken.
///
/// # Errors
///
/// [`ConfigError`] for an unusable training or distribution.
pub fn train<M: ContextLearner>(
    mut model: M,
    config: &IclTrainingConfig,
    prompts: &OutlierPrompts,
    distribution: &PromptDistribution,
    device: &Device,
    mut after_step: impl FnMut(usize, f64, &M),
) -> Result<M, ConfigError> {
    config.check()?;
    let mut random = StdRng::seed_from_u64(config.seed);
    let mut optimizer = SgdConfig::new().init();
    for step in 0..config.steps {
        let batch = prompts.draw(distribution, config.batch_size, &mut random)?;
        let loss = hinge_loss(model.score(batch.prompt(device)), batch.labels(device));
        let value = loss.clone().into_scalar::<f64>();
        if value.is_finite() {
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(config.learning_rate, model, gradients);
        }
        after_step(step, value, &model);
        if !value.is_finite() {
            break;
        }
    }
    Ok(model)
}
