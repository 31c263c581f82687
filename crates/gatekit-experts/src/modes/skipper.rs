//! Which slots are skipped.

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::tensor::{Bool, Device, Tensor, TensorData};
use gatekit_core::host_values;
use gatekit_core::router::Routing;
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::{Modality, SkipCounts, TokenModalities};

/// Added to the sum of weights that shares divide by.
const SUM_EPSILON: f64 = 1e-20;

/// Below which score a slot is skipped, for text and for vision tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    text: f64,
    vision: f64,
}

impl Thresholds {
    /// Nothing is skipped.
    pub const ZERO: Self = Self { text: 0.0, vision: 0.0 };

    /// Scores lie within 0..1, so that a threshold above 1 skips all slots of its modality.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a negative threshold or NaN.
    pub fn new(text: f64, vision: f64) -> Result<Self, InputError> {
        for (field, value) in [("threshold_text", text), ("threshold_vision", vision)] {
            if value.is_nan() || value < 0.0 {
                return Err(InputError::new(field, value, "a number, at least 0"));
            }
        }
        Ok(Self { text, vision })
    }

    /// For text tokens.
    pub fn text(self) -> f64 {
        self.text
    }

    /// For vision tokens.
    pub fn vision(self) -> f64 {
        self.vision
    }

    /// By [`Modality::code`].
    fn by_code(self) -> [f64; 3] {
        [self.text, self.vision, 0.0]
    }
}

/// Whose routed experts are all off, for calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bypass {
    /// Nobody's.
    None,
    /// Those of text tokens.
    Text,
    /// Those of vision tokens.
    Vision,
}

impl Bypass {
    /// Of a modality; none of [`Modality::Other`].
    pub fn of(modality: Modality) -> Self {
        match modality {
            Modality::Text => Self::Text,
            Modality::Vision => Self::Vision,
            Modality::Other => Self::None,
        }
    }

    fn covers(self, modality: Modality) -> bool {
        self != Self::None && Self::of(modality) == self
    }
}

/// Configuration of [`ExpertSkipper`].
#[derive(Config, Debug)]
pub struct ExpertSkipperConfig {
    /// Experts E of the router.
    pub num_experts: usize,
    /// Slots of text tokens with a score below are skipped; at least 0. Default 0: none.
    #[config(default = 0.0)]
    pub threshold_text: f64,
    /// The same for vision tokens. Default 0: none.
    #[config(default = 0.0)]
    pub threshold_vision: f64,
    /// Whose routed experts are all off, for calibration. Default nobody's.
    #[config(default = "Bypass::None")]
    pub bypass: Bypass,
}

impl ModuleConfig for ExpertSkipperConfig {
    type Module = ExpertSkipper;

    /// Builds the skipper with importance 1 for both modalities: scores are shares.
    fn try_init(&self, device: &Device) -> Result<ExpertSkipper, ConfigError> {
        check_sizes(&[("num_experts", self.num_experts)])?;
        let thresholds = Thresholds::new(self.threshold_text, self.threshold_vision)
            .map_err(|error| ConfigError::new(error.field, error.got, error.need))?;
        let importance = Initializer::Ones.init([Modality::SKIPPABLE.len()], device).set_require_grad(false);
        Ok(ExpertSkipper { importance, num_experts: self.num_experts, thresholds, bypass: self.bypass })
    }
}

/// Skips the slots whose score, routing share times importance of the layer, is below the
/// threshold of the token's modality; the [module](super) has the equation.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct ExpertSkipper {
    /// Importance `alpha` of the layer for text and for vision tokens, `[2]`; not trained.
    pub importance: Param<Tensor<1>>,
    num_experts: usize,
    #[module(skip)]
    thresholds: Thresholds,
    #[module(skip)]
    bypass: Bypass,
}

impl ExpertSkipper {
    /// Number of experts E.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// The thresholds.
    pub fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// Sets the thresholds.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// Sets whose routed experts are all off.
    pub fn set_bypass(&mut self, bypass: Bypass) {
        self.bypass = bypass;
    }

    /// Sets the importance for text and vision tokens.
    ///
    /// # Errors
    ///
    /// [`InputError`] for one that is negative or not finite.
    pub fn set_importance(&mut self, importance: [f64; 2]) -> Result<(), InputError> {
        check_importance(importance, "")?;
        self.importance = self.importance.clone().map(|old| {
            let data = TensorData::new(importance.to_vec(), [importance.len()]);
            Tensor::from_data(data, (&old.device(), old.dtype()))
        });
        self.importance = self.importance.clone().set_require_grad(false);
        Ok(())
    }

    /// The importance for text and vision tokens.
    pub fn importance(&self) -> [f64; 2] {
        let data = self.importance.val().into_data();
        let mut values = data.iter::<f64>();
        std::array::from_fn(|_| values.next().expect("`importance` has 2 entries"))
    }

    /// Scores all slots and compares them with the thresholds, on the host.
    ///
    /// # Errors
    ///
    /// [`InputError`] when `modalities` has another number of tokens than `routing`, or the
    /// importance is negative or not finite.
    ///
    /// # Panics
    ///
    /// When `routing` has another number of experts.
    pub fn decide(
        &self,
        routing: &Routing,
        modalities: &TokenModalities,
    ) -> Result<SkipDecision, InputError> {
        let [tokens, per_token] = routing.weights.dims();
        let experts = routing.assignment.num_experts();
        assert!(
            experts == self.num_experts,
            "ExpertSkipper: `routing` has {experts} experts, the skipper {}",
            self.num_experts
        );
        if modalities.len() != tokens {
            let got = format!("{} tokens", modalities.len());
            return Err(InputError::new("modality", got, format!("{tokens}, as in the routing")));
        }
        let [text, vision] = check_importance(self.importance(), "")?;
        let (importance, thresholds) = ([text, vision, 1.0], self.thresholds.by_code());
        let weights: Vec<f64> = host_values(routing.weights.clone()).iter::<f64>().collect();
        let (mut scores, mut keep) = (Vec::with_capacity(weights.len()), Vec::with_capacity(weights.len()));
        let mut counts = SkipCounts::default();
        for (token, weights) in weights.chunks_exact(per_token).enumerate() {
            let modality = modalities.modalities()[token].code();
            let (factor, sum) = (importance[modality], weights.iter().sum::<f64>() + SUM_EPSILON);
            let before = keep.len();
            scores.extend(weights.iter().map(|weight| factor * (weight / sum)));
            // A NaN is not below anything, so its slot is kept.
            let passes = |score: &f64| score.is_nan() || *score >= thresholds[modality];
            keep.extend(scores[before..].iter().map(passes));
            if !modalities.is_padding(token) {
                counts.total[modality] += per_token;
                counts.skipped[modality] += keep[before..].iter().filter(|keep| !**keep).count();
            }
        }
        Ok(SkipDecision { per_token, scores, keep, counts })
    }

    /// The routing without the skipped slots, and those of bypassed tokens; and what was decided.
    ///
    /// # Errors
    ///
    /// As [`decide`](Self::decide).
    ///
    /// # Panics
    ///
    /// As [`decide`](Self::decide).
    pub fn prune(
        &self,
        routing: Routing,
        modalities: &TokenModalities,
    ) -> Result<(Routing, SkipDecision), InputError> {
        let decision = self.decide(&routing, modalities)?;
        if self.bypass == Bypass::None {
            return Ok((routing.prune(&decision.keep), decision));
        }
        let per_token = decision.per_token;
        let off = |slot: usize| self.bypass.covers(modalities.modalities()[slot / per_token]);
        let keep: Vec<bool> =
            decision.keep.iter().enumerate().map(|(slot, keep)| *keep && !off(slot)).collect();
        Ok((routing.prune(&keep), decision))
    }
}

/// Refuses an importance that is none; `place` says whose it is.
pub(super) fn check_importance(importance: [f64; 2], place: &str) -> Result<[f64; 2], InputError> {
    match importance.iter().find(|value| !(value.is_finite() && **value >= 0.0)) {
        None => Ok(importance),
        Some(value) => {
            Err(InputError::new("importance", format!("{value}{place}"), "finite numbers, at least 0"))
        }
    }
}

/// What the thresholds say of every slot, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct SkipDecision {
    per_token: usize,
    scores: Vec<f64>,
    keep: Vec<bool>,
    counts: SkipCounts,
}

impl SkipDecision {
    /// The score of every slot, `N K` entries, token by token.
    pub fn scores(&self) -> &[f64] {
        &self.scores
    }

    /// Whether the thresholds let a slot pass, `N K` entries. Those of bypassed tokens count like others.
    pub fn keep(&self) -> &[bool] {
        &self.keep
    }

    /// Skipped and all slots by modality, padding excluded.
    pub fn counts(&self) -> SkipCounts {
        self.counts
    }

    fn shape(&self) -> [usize; 2] {
        [self.keep.len() / self.per_token, self.per_token]
    }

    /// The scores on a device, `[N, K]`.
    pub fn scores_tensor(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.scores.clone(), self.shape()), device)
    }

    /// The slots that pass on a device, `[N, K]`.
    pub fn keep_mask(&self, device: &Device) -> Tensor<2, Bool> {
        Tensor::from_data(TensorData::new(self.keep.clone(), self.shape()), device)
    }
}

impl ModuleDisplay for ExpertSkipper {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("num_experts", &self.num_experts)
            .add("threshold_text", &self.thresholds.text)
            .add("threshold_vision", &self.thresholds.vision)
            .optional()
    }
}
