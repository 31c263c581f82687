//! The layer and its baselines.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{DType, Device, Tensor};
use gatekit_core::attention::{
    AttentionGateConfig, BiasCount, CausalAttention, CausalAttentionConfig, OutputGateKind, Positions,
    Projected, affine_row_mass, affine_shift, causal_mean,
};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::gate::GateActivation;
use gatekit_core::moving_average::{MovingAverage, MovingAverageConfig};
use gatekit_core::sequence::{Boundaries, Packing};
use gatekit_core::{ConfigError, InputError, ModuleConfig, init};
use serde::{Deserialize, Serialize};

use super::state::AffineCache;
use crate::backbone::{MixerContext, TokenMixer, check_shape};

/// What becomes of the softmax's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionVariant {
    /// They are scaled and shifted.
    Affine,
    /// Nothing: they sum to 1.
    Softmax,
    /// A learned logit a head takes its share of them.
    Sink,
}

/// How the scale is made of its logit z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleActivation {
    /// `clamp(z / (2 w) + 1 / 2, 0, 1)`: values between stay in play.
    LinearClipping,
    /// `sigmoid(z)`, which is driven to its ends: the paper's ablation.
    Sigmoid,
}

/// Configuration of [`AffineScaledAttention`].
#[derive(Config, Debug)]
pub struct AffineScaledAttentionConfig {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// Number of query heads `H`.
    pub num_heads: usize,
    /// Number of key and value heads `G`, each shared by consecutive query heads; `None`: `H`.
    pub num_kv_heads: Option<usize>,
    /// Channels of a head; `None`: `D / H`.
    pub head_dim: Option<usize>,
    /// Base of the rotary positions; `None`: no positions.
    #[config(default = "Some(10000.0)")]
    pub rope_theta: Option<f64>,
    /// What becomes of the softmax's weights.
    #[config(default = "AttentionVariant::Affine")]
    pub variant: AttentionVariant,
    /// How the scale is made.
    #[config(default = "ScaleActivation::LinearClipping")]
    pub alpha_activation: ScaleActivation,
    /// Width w of the clipping: the scale is 0 up to -w and 1 from w.
    #[config(default = 5.0)]
    pub clip_width: f64,
    /// Share of the old moving average in the new one, in [0, 1).
    #[config(default = 0.9)]
    pub momentum: f64,
    /// What the shift is spread over; `Sequence` is the paper's.
    #[config(default = "BiasCount::Sequence")]
    pub bias_count: BiasCount,
    /// A sigmoid gate behind the attention; elementwise in the paper's combined model.
    #[config(default = "OutputGateKind::None")]
    pub output_gate: OutputGateKind,
}

impl AffineScaledAttentionConfig {
    /// What other libraries would call the layer's tensors: Llama's names, with `alpha_proj`,
    /// `alpha_moving_average`, `sinks` and `gate_proj` beside them.
    pub fn layout() -> TensorLayout {
        TensorLayout::default()
            .with_prefix("alpha_moving_average.value", "alpha_moving_average")
            .with_prefix("attention.gate.", "")
            .with_prefix("attention.", "")
    }
}

impl ModuleConfig for AffineScaledAttentionConfig {
    type Module = AffineScaledAttention;

    fn try_init(&self, device: &Device) -> Result<AffineScaledAttention, ConfigError> {
        let activation = match self.alpha_activation {
            ScaleActivation::LinearClipping => GateActivation::LinearClipping(self.clip_width),
            ScaleActivation::Sigmoid => GateActivation::Sigmoid,
        };
        // The width is checked whether it is used or not.
        GateActivation::LinearClipping(self.clip_width).check("clip_width")?;
        let average = MovingAverageConfig::new(self.num_heads.max(1)).with_momentum(self.momentum);
        let average = average.try_init(device)?;
        let gate = self.output_gate.granularity();
        let gate = gate.map(|granularity| AttentionGateConfig::new().with_granularity(granularity));
        let attention = CausalAttentionConfig::new(self.hidden_size, self.num_heads)
            .with_num_kv_heads(self.num_kv_heads)
            .with_head_dim(self.head_dim)
            .with_rope_theta(self.rope_theta)
            .with_sinks(self.variant == AttentionVariant::Sink)
            .with_gate(gate)
            .try_init(device)?;
        let affine = self.variant == AttentionVariant::Affine;
        Ok(AffineScaledAttention {
            attention,
            alpha_proj: affine.then(|| init::linear(self.hidden_size, self.num_heads, false, device)),
            alpha_moving_average: affine.then_some(average),
            activation,
            count: self.bias_count,
        })
    }
}

/// Attention whose weights are scaled and shifted, with an optional output gate.
///
/// ```text
/// alpha = phi(W_a x)                  one a query and head; phi clips linearly or is a sigmoid
/// a_tj = alpha_t P_tj + (m - alpha_t) / N_t     P the softmax, for visible keys j
/// y = W_o ((a v) * sigmoid(W_g x))
/// ```
///
/// In training (on a device with autodiff, as batch normalisation does) every call first moves the
/// average, `m <- rho m + (1 - rho) mean(alpha)` over the batch's real tokens, then uses it; elsewhere,
/// when streaming and after [`set_training(false)`](Self::set_training) m stands still. Weights start
/// normal(0, 0.02), so alpha near 0.5, and m at 0. Bae et al. (arXiv 2602.23057), eq. 6 to 11.
#[derive(Module, Debug)]
pub struct AffineScaledAttention {
    /// Projections, positions, softmax, sinks and output gate.
    pub attention: CausalAttention,
    /// Logits of the scale, `D -> H`.
    pub alpha_proj: Option<Linear>,
    /// The average of the scale of every head.
    pub alpha_moving_average: Option<MovingAverage>,
    #[module(skip)]
    activation: GateActivation,
    #[module(skip)]
    count: BiasCount,
}

/// What the scale of a layer did.
#[derive(Debug, Clone)]
pub struct ScaleValues {
    /// The scale, `[batch, time, H]`, in at least float32.
    pub alpha: Tensor<3>,
    /// Sums of the rows of weights, `[batch, H, time]`.
    pub row_mass: Tensor<3>,
    /// The weights themselves, `[batch, H, time, time]`.
    pub weights: Tensor<4>,
}

impl AffineScaledAttention {
    /// A whole batch.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, D]`
    /// - `packing`: from a mask `[batch, time]`; padded tokens are removed, the output is 0 there. Made
    ///   by [`Packing::from_mask_with_empty_rows`], it may have rows without a token
    /// - output: `[batch, time, D]`
    ///
    /// # Panics
    ///
    /// When `x` has no time step or its width is not `D`, or its batch and time are not those of the
    /// packing; in debug builds also when the moving average would not be finite.
    pub fn forward(&self, x: Tensor<3>, packing: Option<&Packing>) -> Tensor<3> {
        match packing {
            Some(packing) => packing.unpack(self.whole(packing.pack(x), Some(packing.boundaries()))),
            None => self.whole(x, None),
        }
    }

    fn whole(&self, x: Tensor<3>, boundaries: Option<&Boundaries>) -> Tensor<3> {
        let positions = boundaries.map_or(Positions::From(0), Positions::Packed);
        let Projected { q, k, v, gate_logits } = self.attention.project(x.clone(), positions);
        let mut o = self.attention.attend(q, k, v.clone(), boundaries);
        if let Some((alpha, average)) = self.scale(x, true) {
            let (mean, _) = causal_mean(v, None, boundaries);
            o = affine_shift(o, mean, alpha, average, self.count, positions);
        }
        self.attention.output(o, gate_logits)
    }

    /// The scale of `x` and its average, which moves if this is training and `moves` is set.
    fn scale(&self, x: Tensor<3>, moves: bool) -> Option<(Tensor<3>, Tensor<1>)> {
        let (projection, average) = (self.alpha_proj.as_ref()?, self.alpha_moving_average.as_ref()?);
        let logits = projection.forward(x);
        let half = matches!(logits.dtype(), DType::F16 | DType::BF16);
        let alpha = self.activation.apply(if half { logits.cast(DType::F32) } else { logits });
        let average = match moves {
            true => {
                let [batch, time, heads] = alpha.dims();
                let alphas = alpha.clone().detach().reshape([batch * time, heads]);
                average.forward(alphas.mean_dim(0).squeeze_dim(0))
            }
            false => average.average(),
        };
        Some((alpha, average))
    }

    /// The scale, the sums of the rows of weights and the weights of whole sequences `x` `[batch, time,
    /// D]`, for probes; `None` in the variants without a scale. The average stands still.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn scale_values(&self, x: Tensor<3>) -> Option<ScaleValues> {
        let (alpha, average) = self.scale(x.clone(), false)?;
        let weights = self.attention.weights(x);
        let [batch, heads, time, _] = weights.dims();
        let visible = Tensor::<2>::ones([time, time], &weights.device()).tril(0);
        let counts = match self.count {
            BiasCount::Visible => visible.clone().sum_dim(1),
            BiasCount::Sequence => visible.clone().sum_dim(1).full_like(time as f64),
            BiasCount::None => visible.clone().sum_dim(1).full_like(f64::INFINITY),
        };
        let spread = (visible / counts).cast(alpha.dtype()).unsqueeze::<4>();
        let scale = alpha.clone().swap_dims(1, 2).reshape([batch, heads, time, 1]);
        let shift = average.clone().reshape([1, heads, 1, 1]) - scale.clone();
        Some(ScaleValues {
            row_mass: affine_row_mass(alpha.clone(), average, self.count, None),
            weights: weights.cast(alpha.dtype()) * scale + shift * spread,
            alpha,
        })
    }

    /// Whether the moving average moves on a device with autodiff.
    pub fn set_training(&mut self, training: bool) {
        if let Some(average) = &mut self.alpha_moving_average {
            average.set_training(training);
        }
    }
}

impl TokenMixer for AffineScaledAttention {
    type State = AffineCache;

    fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3> {
        Self::forward(self, x, context.packing)
    }

    /// With [`BiasCount::Sequence`] the tokens so far are the sequence: the output is that of a whole
    /// pass over them, for the tokens of this call.
    fn prefill(&self, x: Tensor<3>, state: AffineCache, _: &MixerContext<'_>) -> (Tensor<3>, AffineCache) {
        let AffineCache { cache, value_sum } = state;
        let position = cache.position;
        let positions = Positions::From(position);
        let Projected { q, k, v, gate_logits } = self.attention.project(x.clone(), positions);
        let cache = cache.extended(k, v.clone());
        let mut o = self.attention.attend(q, cache.keys.clone(), cache.values.clone(), None);
        let mut value_sum = value_sum;
        if let Some((alpha, average)) = self.scale(x, false) {
            let (mean, sum) = causal_mean(v, value_sum.map(|sum| (sum, position)), None);
            o = affine_shift(o, mean, alpha, average, self.count, positions);
            value_sum = Some(sum);
        }
        (self.attention.output(o, gate_logits), AffineCache { cache, value_sum })
    }

    fn step(&self, x: Tensor<2>, state: AffineCache, context: &MixerContext<'_>) -> (Tensor<2>, AffineCache) {
        let (y, state) = self.prefill(x.unsqueeze_dim(1), state, context);
        (y.squeeze_dim(1), state)
    }

    fn empty_state(&self, batch: usize, device: &Device) -> AffineCache {
        let [_, groups] = self.attention.heads();
        let sum = || Tensor::zeros([batch, groups, self.attention.head_dim()], (device, DType::F32));
        AffineCache {
            cache: self.attention.empty_cache(batch, device),
            value_sum: self.alpha_proj.is_some().then(sum),
        }
    }

    fn check_state(&self, state: &AffineCache, batch: usize) -> Result<(), InputError> {
        TokenMixer::check_state(&self.attention, &state.cache, batch)?;
        let [_, groups] = self.attention.heads();
        match (&state.value_sum, &self.alpha_proj) {
            (Some(sum), Some(_)) => {
                check_shape("value_sum", &sum.dims(), &[batch, groups, self.attention.head_dim()])
            }
            (None, None) => Ok(()),
            (Some(_), None) => Err(InputError::new("value_sum", "a tensor", "none without a scale")),
            (None, Some(_)) => Err(InputError::new("value_sum", "none", "the sum of the values so far")),
        }
    }
}
