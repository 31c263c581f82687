//! Attention from the points of a grid to the times of observations.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor, TensorData};
use gatekit_core::attention::channel_masked_attention;
use gatekit_core::time_embedding::TimeEmbedding;
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes};

use super::config::check_dropout;

/// Times may miss [0, 1] by this much: float32 of hours divided by hours.
const TIME_ERROR: f64 = 1e-5;

/// Configuration of [`MultiTimeAttention`].
#[derive(Config, Debug)]
pub struct MultiTimeAttentionConfig {
    /// Value channels C.
    pub d_value: usize,
    /// Channels of the result D.
    pub d_model: usize,
    /// Points of the grid Q. Default 48.
    #[config(default = 48)]
    pub grid: usize,
    /// Width of the time embedding E, at least 2 and a multiple of `time_heads`. Default 64.
    #[config(default = 64)]
    pub embed_time: usize,
    /// Heads. Default 8.
    #[config(default = 8)]
    pub time_heads: usize,
    /// Share of the weights that is dropped in training, in [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub dropout: f64,
}

impl ModuleConfig for MultiTimeAttentionConfig {
    type Module = MultiTimeAttention;

    fn try_init(&self, device: &Device) -> Result<MultiTimeAttention, ConfigError> {
        let (times, heads) = (self.embed_time, self.time_heads);
        check_sizes(&[
            ("d_value", self.d_value),
            ("d_model", self.d_model),
            ("grid", self.grid),
            ("embed_time", times),
            ("time_heads", heads),
        ])?;
        if !times.is_multiple_of(heads) {
            return Err(ConfigError::new("embed_time", times, format!("a multiple of time_heads = {heads}")));
        }
        check_dropout(self.dropout)?;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        Ok(MultiTimeAttention {
            linears: vec![
                linear(times, times),
                linear(times, times),
                linear(heads * self.d_value, self.d_model),
            ],
            dropout: DropoutConfig::new(self.dropout).init(),
            grid: self.grid,
            heads,
        })
    }
}

/// Values of irregular times on a regular grid: `q = W_q phi(grid) + b_q`, `k = W_k phi(times) + b_k`, for every channel
/// a softmax over the rows at which it was observed ([`channel_masked_attention`]), and `W_o y + b_o` of all heads'
/// channels, the channel fastest.
///
/// The grid is Q points from 0 to 1, both ends included. Weights and biases start uniform within `1 / sqrt(fan in)`.
/// Section 3.1 of the paper; Shukla and Marlin (arXiv 2101.10318).
#[derive(Module, Debug)]
pub struct MultiTimeAttention {
    /// `W_q`, `W_k` and `W_o`.
    pub linears: Vec<Linear>,
    /// On the weights, in training.
    pub dropout: Dropout,
    grid: usize,
    heads: usize,
}

impl MultiTimeAttention {
    /// `values` `[B, L, C]` at `times` `[B, L]` in [0, 1], observed where `mask` `[B, L, C]` (or `[B, L, 1]`, for all
    /// channels) is true; to `[B, Q, D]`. `embedding` is that of the times, of width E.
    ///
    /// A channel that a stay never observed gives the average of its stored values, which are to be 0. Rows without
    /// any observation may have any time.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit or there is no row (L = 0). In debug builds as [`check_observations`] says.
    pub fn forward(
        &self,
        embedding: &TimeEmbedding,
        values: Tensor<3>,
        times: Tensor<2>,
        mask: &Tensor<3, Bool>,
    ) -> Tensor<3> {
        let ([batch, rows, channels], of_mask) = (values.dims(), mask.dims());
        assert!(
            times.dims() == [batch, rows]
                && of_mask[..2] == [batch, rows]
                && [1, channels].contains(&of_mask[2])
                && rows > 0,
            "MultiTimeAttention: `values` {:?}, `times` {:?} and `mask` {of_mask:?} do not fit, or have no row",
            values.dims(),
            times.dims()
        );
        if cfg!(debug_assertions) {
            check_observations(&values, &times, mask).unwrap_or_else(|error| panic!("{error}"));
        }
        // Padding may be at any time, also at none.
        let empty = mask.clone().int().sum_dim(2).equal_elem(0).squeeze_dim::<2>(2);
        let times = times.mask_fill(empty, 0.0);
        let width = embedding.embed_time();
        let split = |x: Tensor<3>| {
            let [samples, points, _] = x.dims();
            x.reshape([samples, points, self.heads, width / self.heads])
        };
        let points = self.points(&times);
        let q = split(self.linears[0].forward(embedding.forward(points)));
        let k = split(self.linears[1].forward(embedding.forward(times)));
        let y = channel_masked_attention(q, k, values, mask, &self.dropout);
        self.linears[2].forward(y.reshape([batch, self.grid, self.heads * channels]))
    }

    /// The grid, `[1, Q]`, of the type and on the device of `like`.
    fn points(&self, like: &Tensor<2>) -> Tensor<2> {
        let last = (self.grid.max(2) - 1) as f64;
        let points: Vec<f64> = (0..self.grid).map(|point| point as f64 / last).collect();
        Tensor::from_data(TensorData::new(points, [1, self.grid]), (&like.device(), like.dtype()))
    }
}

/// Refuses what cannot be observations: `values` `[B, L, C]`, `times` `[B, L]`, `mask` `[B, L, C]` or `[B, L, 1]`.
///
/// # Errors
///
/// [`InputError`] names the sample with a time outside [0, 1] by more than a rounding error (NaN as well) in a row that
/// was observed, an observed value that is not finite, a value other than 0 where a mask of channels is false (it would
/// leak through the average of a channel that was never observed), or, in a sample without any row, a value that is not
/// finite.
pub fn check_observations(
    values: &Tensor<3>,
    times: &Tensor<2>,
    mask: &Tensor<3, Bool>,
) -> Result<(), InputError> {
    let ([_, rows, channels], [_, _, masks]) = (values.dims(), mask.dims());
    let stored: Vec<f64> = values.clone().detach().into_data().iter::<f64>().collect();
    let times: Vec<f64> = times.clone().detach().into_data().iter::<f64>().collect();
    let seen: Vec<bool> = mask.to_data().iter::<bool>().collect();
    for (row, time) in times.iter().enumerate() {
        let (sample, at) = (row / rows, row % rows);
        let place = |value: f64| format!("{value} in sample {sample}, row {at}");
        let seen = |channel: usize| seen[row * masks + channel % masks];
        if (0..masks).any(seen) && !(-TIME_ERROR..=1.0 + TIME_ERROR).contains(time) {
            return Err(InputError::new("times", place(*time), "a time in [0, 1]"));
        }
        for channel in 0..channels {
            let value = stored[row * channels + channel];
            if seen(channel) && !value.is_finite() {
                return Err(InputError::new("values", place(value), "a finite number where observed"));
            }
            if !seen(channel) && masks > 1 && value != 0.0 {
                return Err(InputError::new("values", place(value), "0 where the mask is false"));
            }
        }
    }
    let samples = seen.chunks_exact(rows * masks).zip(stored.chunks_exact(rows * channels)).enumerate();
    for (sample, (_, stored)) in samples.filter(|(_, (seen, _))| !seen.contains(&true)) {
        if let Some(value) = stored.iter().find(|value| !value.is_finite()) {
            let got = format!("{value} in sample {sample}, which has no observation");
            return Err(InputError::new("values", got, "finite numbers: they are averaged"));
        }
    }
    Ok(())
}
