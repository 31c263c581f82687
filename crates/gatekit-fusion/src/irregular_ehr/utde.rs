//! A series on the grid, twice, and the gate between.

use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv1d, Conv1dConfig};
use burn::tensor::{Bool, Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::gate::{ConvexGate, ConvexGateConfig, GateLevel};
use gatekit_core::time_embedding::{TimeEmbedding, TimeEmbeddingConfig};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::config::SeriesMixing;
use super::time_attention::{MultiTimeAttention, MultiTimeAttentionConfig};

/// Configuration of [`Utde`].
#[derive(Config, Debug)]
pub struct UtdeConfig {
    /// Measured channels d.
    pub d_in: usize,
    /// Points of the grid Q. Default 48.
    #[config(default = 48)]
    pub grid: usize,
    /// Width of the time embedding E, at least 2 and a multiple of `time_heads`. Default 64.
    #[config(default = 64)]
    pub embed_time: usize,
    /// Heads of the time attention. Default 8.
    #[config(default = 8)]
    pub time_heads: usize,
    /// Channels of the embedding D. Default 128.
    #[config(default = 128)]
    pub d_model: usize,
    /// What has a gate of its own. Default a step and channel.
    #[config(default = "GateLevel::BatchSeqFeature")]
    pub gate_level: GateLevel,
    /// How the two embeddings are mixed. Default by the gate.
    #[config(default = "SeriesMixing::Gated")]
    pub mixing: SeriesMixing,
    /// Share of the attention weights and of what the gate sees that is dropped in training, in [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub dropout: f64,
}

impl UtdeConfig {
    /// What published files call the tensors of a [`Utde`] whose names begin with `prefix`.
    pub fn tensor_layout(prefix: &str) -> TensorLayout {
        let published =
            [("time.", ""), ("moe.inner.", "moe.gate.1."), ("moe.outer.", "moe.gate.3."), ("", "")];
        published.into_iter().fold(TensorLayout::default(), |layout, (name, published)| {
            layout.with_prefix(&format!("{prefix}{name}"), published)
        })
    }
}

impl ModuleConfig for UtdeConfig {
    type Module = Utde;

    fn try_init(&self, device: &Device) -> Result<Utde, ConfigError> {
        check_sizes(&[("d_in", self.d_in), ("d_model", self.d_model)])?;
        let attention = MultiTimeAttentionConfig::new(2 * self.d_in, self.d_model)
            .with_grid(self.grid)
            .with_embed_time(self.embed_time)
            .with_time_heads(self.time_heads)
            .with_dropout(self.dropout);
        let gate = ConvexGateConfig::new(self.d_model)
            .with_level(self.gate_level)
            .with_hidden(Some(self.d_model))
            .with_dropout(self.dropout);
        Ok(Utde {
            time: TimeEmbeddingConfig::new(self.embed_time).try_init(device)?,
            time_attn_ts: attention.try_init(device)?,
            proj_ts: Conv1dConfig::new(2 * self.d_in, self.d_model, 1).with_bias(false).init(device),
            moe: (self.mixing == SeriesMixing::Gated).then(|| gate.try_init(device)).transpose()?,
            mixing: self.mixing,
        })
    }
}

/// Unified temporal discretisation: the interpolation I of a series by [`MultiTimeAttention`] over values and flags, the
/// imputation `R = W_p regular` of what was carried forward, and `Z = g I + (1 - g) R` with a gate that sees both
/// ([`ConvexGate`]).
///
/// The gate's weights start Xavier normal, all else uniform within `1 / sqrt(fan in)`. Section 3.1 of the paper.
#[derive(Module, Debug)]
pub struct Utde {
    /// Of all times: of the grid, of this series, and of whatever else is put on the same grid.
    pub time: TimeEmbedding,
    /// Makes I.
    pub time_attn_ts: MultiTimeAttention,
    /// `W_p`, `[D, 2 d, 1]`.
    pub proj_ts: Conv1d,
    /// g; none where nothing is gated.
    pub moe: Option<ConvexGate>,
    #[module(skip)]
    mixing: SeriesMixing,
}

/// What [`Utde`] makes of a series.
#[derive(Debug, Clone)]
pub struct SeriesEmbedding {
    /// Z, `[B, Q, D]`.
    pub embedding: Tensor<3>,
    /// g, the share of I: `[B, 1, 1]`, `[B, Q, 1]` or `[B, Q, D]`.
    pub gate: Tensor<3>,
    /// I, `[B, Q, D]`.
    pub interpolated: Tensor<3>,
    /// R, `[B, Q, D]`.
    pub imputed: Tensor<3>,
}

impl Utde {
    /// `values` `[B, L, d]` at `times` `[B, L]` in [0, 1], observed where `mask` `[B, L, d]` is true and 0 elsewhere, and
    /// the same carried forward, `regular` `[B, Q, 2 d]` (see [`carry_forward`](super::carry_forward())).
    ///
    /// # Panics
    ///
    /// As [`MultiTimeAttention::forward`], and when `regular` has another shape.
    pub fn forward(
        &self,
        values: Tensor<3>,
        times: Tensor<2>,
        mask: &Tensor<3, Bool>,
        regular: Tensor<3>,
    ) -> SeriesEmbedding {
        assert!(
            mask.dims() == values.dims(),
            "Utde: `mask` {:?} differs from `values` {:?}",
            mask.dims(),
            values.dims()
        );
        let flags = mask.clone().float().cast(values.dtype());
        let both = Tensor::cat(vec![mask.clone(), mask.clone()], 2);
        let known = Tensor::cat(vec![values, flags], 2);
        let interpolated = self.time_attn_ts.forward(&self.time, known, times, &both);
        let [batch, points, width] = interpolated.dims();
        let weight = self.proj_ts.weight.val().squeeze_dim::<2>(2);
        let table = weight.dims()[1];
        assert!(
            regular.dims() == [batch, points, table],
            "Utde: `regular` {:?}, need [{batch}, {points}, {table}]",
            regular.dims()
        );
        let imputed = regular.reshape([batch * points, table]).matmul(weight.transpose());
        let imputed = imputed.reshape([batch, points, width]);
        let share = |g: f64| Tensor::full([batch, 1, 1], g, (&interpolated.device(), interpolated.dtype()));
        let (embedding, gate) = match (&self.moe, self.mixing) {
            (Some(moe), _) => {
                let mixed = moe.forward(interpolated.clone(), imputed.clone());
                (mixed.mixture, mixed.gate)
            }
            (None, SeriesMixing::Interpolation) => (interpolated.clone(), share(1.0)),
            (None, SeriesMixing::Imputation) => (imputed.clone(), share(0.0)),
            (None, SeriesMixing::EqualHalves | SeriesMixing::Gated) => {
                ((interpolated.clone() + imputed.clone()) / 2.0, share(0.5))
            }
        };
        SeriesEmbedding { embedding, gate, interpolated, imputed }
    }
}
