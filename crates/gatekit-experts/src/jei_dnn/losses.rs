//! What gates and classifiers are trained on.

use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor, TensorData};
use gatekit_core::cross_entropy::{check_labels, cross_entropies};
use gatekit_core::decay::softplus_stable;
use gatekit_core::{InputError, widen};

use super::config::{GateObjective, JeiDnnConfig, ModuleWeighting};
use super::exits::check_numbers;

/// Probabilities below this leave a sample at no exit that has a classifier to train.
const NO_PROBABILITY: f64 = 1e-30;
/// Largest factor of a sample's loss. Beyond it the cross entropy of the likely exits is not resolved in
/// float32, while its gradient is not exactly 0.
const MAX_RESCALING: f64 = 1e7;
/// Least samples that count in [`positive_weights`], and their largest weight.
const LEAST_COUNT: f64 = 0.1;
const MAX_WEIGHT: f64 = 5.0;

/// The exit of every sample that is worth its cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BestExits {
    exits: usize,
    best: Vec<usize>,
}

impl BestExits {
    /// Of every sample, in 0 ..= L.
    pub fn as_slice(&self) -> &[usize] {
        &self.best
    }

    /// How many samples each exit 0 ..= L is the best for.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.exits + 1];
        self.best.iter().for_each(|best| counts[*best] += 1);
        counts
    }
}

/// The gates' loss and what it is made of.
#[derive(Debug, Clone)]
pub struct ExitGateLoss {
    /// Mean over samples and gates, `[1]`.
    pub loss: Tensor<1>,
    /// The best exits.
    pub best_exits: BestExits,
    /// Whether each gate should be open, `[batch, L]` of 0 and 1.
    pub targets: Tensor<2, Int>,
}

/// The cheapest good-enough exit of every sample: `l* = argmin_l e_l + lambda cost_l`, the first on ties.
///
/// `e_l` is what [`GateObjective`] says; `exit_logits` `[batch, L + 1, classes]`, `labels` `[batch]`.
///
/// # Errors
///
/// [`InputError`] for labels that are no classes, and names an exit whose logits hold NaN.
///
/// # Panics
///
/// When there are not the configuration's L + 1 exits.
pub fn best_exits(
    exit_logits: &Tensor<3>,
    labels: &Tensor<1, Int>,
    config: &JeiDnnConfig,
) -> Result<BestExits, InputError> {
    let [batch, exits, classes] = exit_logits.dims();
    assert!(exits == config.num_exits + 1, "best_exits: {exits} exits, need {}", config.num_exits + 1);
    check_labels(labels, batch, classes)?;
    check_numbers(exit_logits)?;
    if batch == 0 {
        return Ok(BestExits { exits: config.num_exits, best: Vec::new() });
    }
    let logits = widen(exit_logits.clone().detach());
    let errors = match config.gate_objective {
        GateObjective::CrossEntropy => exit_cross_entropies(logits, labels),
        GateObjective::ZeroOne => right(&logits, labels).neg(),
        GateObjective::Probability => {
            let sure = softmax(logits.clone(), 2).max_dim(2).squeeze_dim::<2>(2);
            (right(&logits, labels) * sure).neg()
        }
    };
    let errors: Vec<f64> = errors.into_data().iter::<f64>().collect();
    let best = |errors: &[f64]| {
        let costs = config.cost_per_exit.iter().map(|cost| config.cost_tradeoff * cost);
        let prices: Vec<f64> = errors.iter().zip(costs).map(|(error, cost)| error + cost).collect();
        (1..exits).fold(0, |best, exit| if prices[exit] < prices[best] { exit } else { best })
    };
    Ok(BestExits { exits: config.num_exits, best: errors.chunks(exits).map(best).collect() })
}

/// The gates' loss: every gate from the best exit on should be open.
///
/// `t_l = 1` iff `l >= l*` ([`best_exits`]), and the loss is the mean over samples and gates of
/// `w_l(t) BCE(sigmoid(o_l), t_l)` with `w_l = pos_weights[l]` where t = 1, else 1. No gradient goes to
/// the classifiers. Regol et al. (arXiv 2310.09163), section 4.2.
///
/// # Shapes
///
/// - `gate_logits`: `[batch, L]`
/// - `exit_logits`: `[batch, L + 1, classes]`, the final head's last
/// - `labels`: `[batch]`
///
/// # Errors
///
/// As [`best_exits`]; and for an empty batch, which has no mean.
///
/// # Panics
///
/// When the shapes do not fit the configuration.
pub fn exit_gate_loss(
    gate_logits: Tensor<2>,
    exit_logits: &Tensor<3>,
    labels: &Tensor<1, Int>,
    config: &JeiDnnConfig,
) -> Result<ExitGateLoss, InputError> {
    let ([batch, gates], exits) = (gate_logits.dims(), config.num_exits);
    assert!(
        gates == exits && exit_logits.dims()[0] == batch,
        "exit_gate_loss: `gate_logits` {:?} for `exit_logits` {:?} and {exits} exits",
        [batch, gates],
        exit_logits.dims()
    );
    check_batch(batch)?;
    let best_exits = best_exits(exit_logits, labels, config)?;
    let open = |(best, gate): (usize, usize)| gate >= best;
    let places = || best_exits.best.iter().flat_map(|best| (0..gates).map(|gate| (*best, gate)));
    let weights = config.positive_weights();
    let weight = |place: (usize, usize)| if open(place) { weights[place.1] } else { 1.0 };
    let (device, shape) = (gate_logits.device(), [batch, gates]);
    let targets: Vec<i64> = places().map(|place| i64::from(open(place))).collect();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, shape), &device);
    let gate_logits = widen(gate_logits);
    let weights: Vec<f64> = places().map(weight).collect();
    let weights = Tensor::<2>::from_data(TensorData::new(weights, shape), (&device, gate_logits.dtype()));
    // BCE = softplus(o) where 0 is asked for and softplus(-o) where 1 is: the sign of o turns.
    let sign = targets.clone().float().cast(gate_logits.dtype()).mul_scalar(-2.0).add_scalar(1.0);
    let loss = (softplus_stable(gate_logits * sign) * weights).mean();
    Ok(ExitGateLoss { loss, best_exits, targets })
}

/// `min((n - n_l) / max(n_l, 0.1), 5)` for every exit l < L, from the samples whose best exit is l exactly.
///
/// For the next epoch's `pos_weights`. (The task's positives are all `l >= l*`; counted are those of the
/// released code.)
pub fn positive_weights(best_exits: &BestExits) -> Vec<f64> {
    let total = best_exits.best.len() as f64;
    let weight = |count: usize| ((total - count as f64) / (count as f64).max(LEAST_COUNT)).min(MAX_WEIGHT);
    best_exits.counts().into_iter().take(best_exits.exits).map(weight).collect()
}

/// The classifiers' loss, `[1]`: cross entropies `c_l` of the exits before the final head, weighed by
/// who leaves there.
///
/// - [`ModuleWeighting::ExitProbability`]: `mean_b sum_l P_l c_l`
/// - [`ModuleWeighting::Rescaled`]: `mean_{b,l} P_l c_l rho_b` with `rho_b = sum_l c_l / sum_l P_l c_l`
///   held constant: every sample keeps its total loss, and P decides which exits it trains. A sample
///   that leaves nowhere before the final head (all P below 1e-30) trains them equally.
/// - [`ModuleWeighting::Uniform`]: `mean_{b,l} c_l`
///
/// No gradient goes to P (`exit_probs` `[batch, L + 1]`), none to the final head. Shapes otherwise as
/// [`exit_gate_loss`]. Regol et al. (arXiv 2310.09163), section 4.3. (The released code lets the
/// gradient through rho, where P cancels and every weighting becomes the uniform one.)
///
/// # Errors
///
/// [`InputError`] for labels that are no classes, and for an empty batch.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn inference_module_loss(
    exit_logits: Tensor<3>,
    exit_probs: Tensor<2>,
    labels: &Tensor<1, Int>,
    weighting: ModuleWeighting,
) -> Result<Tensor<1>, InputError> {
    let [batch, exits, classes] = exit_logits.dims();
    assert!(
        exit_probs.dims() == [batch, exits] && exits > 1,
        "inference_module_loss: `exit_probs` {:?} for `exit_logits` {:?}",
        exit_probs.dims(),
        exit_logits.dims()
    );
    check_batch(batch)?;
    check_labels(labels, batch, classes)?;
    let errors = exit_cross_entropies(widen(exit_logits.narrow(1, 0, exits - 1)), labels);
    let probs = widen(exit_probs.narrow(1, 0, exits - 1).detach()).cast(errors.dtype());
    Ok(match weighting {
        ModuleWeighting::Uniform => errors.mean(),
        ModuleWeighting::ExitProbability => (errors * probs).sum().div_scalar(batch as f64),
        ModuleWeighting::Rescaled => {
            let largest = probs.clone().max_dim(1);
            let none = largest.clone().lower_elem(NO_PROBABILITY).expand([batch, exits - 1]);
            let shares = (probs / largest.clamp_min(NO_PROBABILITY)).mask_fill(none, 1.0);
            let constant = errors.clone().detach();
            let weighted = (constant.clone() * shares.clone()).sum_dim(1);
            let total = constant.sum_dim(1);
            let least = total.clone().div_scalar(MAX_RESCALING).clamp_min(f64::from(f32::MIN_POSITIVE));
            let rho = total / weighted.max_pair(least);
            (errors * shares * rho).mean()
        }
    })
}

/// The warm-up's loss, `[1]`: `CE_L + sum_l (L + 1 - l) CE_l` over l < L, means over the batch.
///
/// Early exits weigh most. Shapes and errors as [`inference_module_loss`].
///
/// # Errors
///
/// [`InputError`] for labels that are no classes, and for an empty batch.
pub fn warmup_loss(exit_logits: Tensor<3>, labels: &Tensor<1, Int>) -> Result<Tensor<1>, InputError> {
    let [batch, exits, classes] = exit_logits.dims();
    check_batch(batch)?;
    check_labels(labels, batch, classes)?;
    let errors = exit_cross_entropies(widen(exit_logits), labels);
    // L + 1 - l, and 1 for the final head l = L.
    let weights: Vec<f64> = (0..exits).map(|exit| (exits - exit) as f64).collect();
    let weights = Tensor::<1>::from_data(&weights[..], (&errors.device(), errors.dtype()));
    Ok((errors * weights.unsqueeze_dim(0)).sum().div_scalar(batch as f64))
}

/// `[batch, exits]` from `[batch, exits, classes]`.
fn exit_cross_entropies(logits: Tensor<3>, labels: &Tensor<1, Int>) -> Tensor<2> {
    let [batch, exits, classes] = logits.dims();
    let labels = labels.clone().unsqueeze_dim::<2>(1).expand([batch, exits]).reshape([batch * exits]);
    cross_entropies(logits.reshape([batch * exits, classes]), labels).reshape([batch, exits])
}

/// 1 where the likeliest class is the label, `[batch, exits]`.
fn right(logits: &Tensor<3>, labels: &Tensor<1, Int>) -> Tensor<2> {
    let [batch, exits, _] = logits.dims();
    let answers = logits.clone().argmax(2).squeeze_dim::<2>(2);
    let labels = labels.clone().unsqueeze_dim::<2>(1).expand([batch, exits]);
    answers.equal(labels).float().cast(logits.dtype())
}

fn check_batch(batch: usize) -> Result<(), InputError> {
    match batch {
        0 => Err(InputError::new("labels", "an empty batch", "at least one sample")),
        _ => Ok(()),
    }
}
