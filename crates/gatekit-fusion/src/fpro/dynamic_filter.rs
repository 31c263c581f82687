//! The filter that splits a feature map into low and high frequencies.

use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::activation::softmax;
use burn::tensor::ops::PadMode;
use burn::tensor::{Device, Tensor};
use gatekit_core::batch_norm::{BatchStatistics, batch_norm};
use gatekit_core::conv::{convolve, depthwise_conv2d};
use gatekit_core::gate::{SelfGate, SelfGateConfig};
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes, widen};

/// Configuration of [`GatedDynamicFilter`].
#[derive(Config, Debug)]
pub struct GatedDynamicFilterConfig {
    /// Channels C, a multiple of `filter_groups`.
    pub dim: usize,
    /// Groups G of consecutive channels that share a filter. Default 8.
    #[config(default = 8)]
    pub filter_groups: usize,
    /// Side k of the filters, odd. Default 3.
    #[config(default = 3)]
    pub filter_size: usize,
    /// Whether the filters' logits gate themselves; without it the batch normalisation follows at once. Default true.
    #[config(default = true)]
    pub filter_gate: bool,
}

impl ModuleConfig for GatedDynamicFilterConfig {
    type Module = GatedDynamicFilter;

    fn try_init(&self, device: &Device) -> Result<GatedDynamicFilter, ConfigError> {
        let (dim, groups, size) = (self.dim, self.filter_groups, self.filter_size);
        check_sizes(&[("dim", dim), ("filter_groups", groups), ("filter_size", size)])?;
        if !dim.is_multiple_of(groups) {
            return Err(ConfigError::new("filter_groups", groups, format!("a divisor of dim = {dim}")));
        }
        if size.is_multiple_of(2) {
            return Err(ConfigError::new("filter_size", size, "an odd number"));
        }
        let taps = groups * size * size;
        check_sizes(&[("filter_size", taps)])?;
        let fan_out = Initializer::KaimingNormal { gain: 2f64.sqrt(), fan_out_only: true };
        Ok(GatedDynamicFilter {
            conv: Conv2dConfig::new([dim, taps], [1, 1])
                .with_bias(false)
                .with_initializer(fan_out)
                .init(device),
            gate: match self.filter_gate {
                true => Some(SelfGateConfig::new(taps).try_init(device)?),
                false => None,
            },
            bn: BatchNormConfig::new(taps).init(device),
            groups,
            size,
        })
    }
}

/// Filters made by the mean of their input, gated by themselves: `f = W1 mean(x)`, `f <- f sigmoid(W2 f)`,
/// `f <- BN(f)`, `K = softmax(f)` over the k^2 taps of each of G groups; `low[c] = sum_ij K[group(c), i, j] x[c, . + i -
/// k/2, . + j - k/2]` with reflected borders, `high = x - low`.
///
/// Because of the softmax `low` is a convex average of neighbours. The batch normalisation (epsilon 1e-5, momentum 0.1)
/// sees one value an image and tap. `W1` starts Kaiming-normal by its outputs. Zhou et al. (ECCV 2024).
#[derive(Module, Debug)]
pub struct GatedDynamicFilter {
    /// `W1`, `[G k^2, C, 1, 1]`.
    pub conv: Conv2d,
    /// `W2`, `[G k^2, G k^2, 1, 1]`; `None`: no gate.
    pub gate: Option<SelfGate>,
    /// Of the logits.
    pub bn: BatchNorm,
    groups: usize,
    size: usize,
}

/// A feature map in two parts, whose sum it is.
#[derive(Debug, Clone)]
pub struct FrequencyParts {
    /// Neighbours averaged, `[B, C, H, W]`.
    pub low: Tensor<4>,
    /// What the average misses, `[B, C, H, W]`.
    pub high: Tensor<4>,
    /// Weights of the averages, `[B, G, k^2]`, each row a distribution.
    pub filters: Tensor<3>,
    /// The gate's values, `[B, G k^2]`, if there is a gate.
    pub gate: Option<Tensor<2>>,
}

impl GatedDynamicFilter {
    /// Splits `x` `[B, C, H, W]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a batch of one with [`BatchStatistics::Batch`], whose every logit would become 0, and for maps
    /// that are not larger than the `k / 2` pixels reflected at their borders.
    ///
    /// # Panics
    ///
    /// When `x` does not have C channels.
    pub fn forward(&self, x: Tensor<4>, statistics: BatchStatistics) -> Result<FrequencyParts, InputError> {
        let ([batch, channels, height, width], half) = (x.dims(), self.size / 2);
        if batch < 2 && statistics == BatchStatistics::Batch {
            let need = "at least 2: the filter's batch normalisation compares the images of a batch";
            return Err(InputError::new("x", format!("a batch of {batch}"), need));
        }
        if height <= half || width <= half {
            let need = format!("more than the {half} pixels that a border reflects");
            return Err(InputError::new("x", format!("maps of {height} by {width}"), need));
        }
        let taps = self.size * self.size;
        let mean = widen(x.clone()).mean_dim(3).mean_dim(2).cast(x.dtype());
        let f = convolve(&self.conv, mean, None);
        let (f, gate) = match &self.gate {
            Some(gate) => {
                let (f, open) = gate.forward_with_gate(f);
                (f, Some(open.reshape([batch, self.groups * taps])))
            }
            None => (f, None),
        };
        let f = batch_norm(&self.bn, f, statistics);
        let filters = softmax(widen(f.reshape([batch, self.groups, taps])), 2).cast(x.dtype());
        let of_channels = (filters.clone())
            .reshape([batch, self.groups, 1, taps])
            .expand([batch, self.groups, channels / self.groups, taps])
            .reshape([batch * channels, 1, self.size, self.size]);
        let padded = match half {
            0 => x.clone(),
            _ => x.clone().pad((half, half, half, half), PadMode::Reflect),
        };
        // Every image has its own filters: one map of all images' channels.
        let padded = padded.reshape([1, batch * channels, height + 2 * half, width + 2 * half]);
        let low =
            depthwise_conv2d(padded, of_channels, None, [0, 0]).reshape([batch, channels, height, width]);
        Ok(FrequencyParts { high: x - low.clone(), low, filters, gate })
    }
}
