//! The token mixer: convolution, memory and their gates.

use std::fmt;

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::conv::{ShortConvolution, ShortConvolutionConfig};
use gatekit_core::memory_bank::{MemoryBank, MemoryBankConfig};
use gatekit_core::path_fusion::{GatedPathFusion, GatedPathFusionConfig};
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, InputError, ModuleConfig};
use serde::{Deserialize, Serialize};

use crate::backbone::check_shape;

/// What becomes of the local path `L` and the global path `G`.
///
/// In configuration files it is its name in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fusion {
    /// `sigmoid(a) * L + sigmoid(c) * G`.
    #[default]
    Gated,
    /// `L + G`, an ablation.
    Sum,
    /// `G` alone, an ablation.
    Global,
    /// `L` alone, an ablation.
    Local,
}

impl Fusion {
    /// The paper's mixer and its three ablations.
    pub const ALL: [Self; 4] = [Self::Gated, Self::Sum, Self::Global, Self::Local];
}

impl fmt::Display for Fusion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gated => "gated",
            Self::Sum => "sum",
            Self::Global => "global",
            Self::Local => "local",
        })
    }
}

/// Configuration of [`GamMixer`].
#[derive(Config, Debug)]
pub struct GamMixerConfig {
    /// Width `C` of input and output.
    pub embed_dim: usize,
    /// Rows `M` of the memory.
    #[config(default = 512)]
    pub num_memory_slots: usize,
    /// Taps `K` of the convolution.
    #[config(default = 3)]
    pub conv_kernel_size: usize,
    /// How the two paths become one.
    #[config(default = "Fusion::Gated")]
    pub fusion: Fusion,
}

impl ModuleConfig for GamMixerConfig {
    type Module = GamMixer;

    fn try_init(&self, device: &Device) -> Result<GamMixer, ConfigError> {
        for (field, size) in [
            ("embed_dim", self.embed_dim),
            ("num_memory_slots", self.num_memory_slots),
            ("conv_kernel_size", self.conv_kernel_size),
        ] {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        let fusion = GatedPathFusionConfig::new(self.embed_dim);
        Ok(GamMixer {
            causal_conv: ShortConvolutionConfig::new(self.embed_dim, self.conv_kernel_size)
                .with_bias(true)
                .with_activation(None)
                .try_init(device)?,
            memory_bank: MemoryBankConfig::new(self.num_memory_slots, self.embed_dim).try_init(device)?,
            fusion: (self.fusion == Fusion::Gated).then(|| fusion.try_init(device)).transpose()?,
            kind: self.fusion,
        })
    }
}

/// Two parallel paths and their gates.
///
/// ```text
/// L_t = b + sum_j w[:, j] * x_{t-K+1+j}            causal, each channel by itself
/// G_t = softmax(x_t B^T) B                         B [M, C], keys and values alike, no scale
/// y_t = sigmoid(W_a x_t + b_a) * L_t + sigmoid(W_c x_t + b_c) * G_t
/// ```
///
/// `x` is layer-normalised already. The paths that a [`Fusion`] leaves out keep their parameters.
/// The bank starts Xavier-uniform, all else uniform within `1 / sqrt(fan in)`. Acharya (arXiv
/// 2509.00605), eqs. 1 to 6.
#[derive(Module, Debug)]
pub struct GamMixer {
    /// The local path.
    pub causal_conv: ShortConvolution,
    /// The global path.
    pub memory_bank: MemoryBank,
    /// The gates, local before global; `None` in the ablations.
    pub fusion: Option<GatedPathFusion>,
    #[module(skip)]
    kind: Fusion,
}

/// How open the gates of a mixer are, each `[batch, time, C]` in (0, 1).
#[derive(Debug, Clone)]
pub struct GamGates {
    /// Of the convolution.
    pub local: Tensor<3>,
    /// Of the memory.
    pub global: Tensor<3>,
}

impl GamMixer {
    /// Whole sequences.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, C]`; with `boundaries` one packed sequence `[1, time, C]` of N segments
    /// - `history`: the K-1 inputs before `x`, `[batch or N, K-1, C]`; `None`: zeros
    /// - output: the shape of `x`, and the new history: the last K-1 inputs, older ones included
    ///   where `x` is shorter
    ///
    /// # Panics
    ///
    /// When `x` has no time step or its width is not `C`, or the history has another shape.
    pub fn forward(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        history: Option<Tensor<3>>,
    ) -> (Tensor<3>, Tensor<3>) {
        assert!(x.dims()[1] > 0, "gated associative memory: `x` has no time step, shape {:?}", x.dims());
        let (local, history) = self.causal_conv.forward(x.clone(), boundaries, history);
        let y = match (self.kind, &self.fusion) {
            (Fusion::Local, _) => local,
            (Fusion::Global, _) => self.memory_bank.forward(x),
            (_, None) => local + self.memory_bank.forward(x),
            (_, Some(fusion)) => {
                let global = self.memory_bank.forward(x.clone());
                fusion.forward(x, vec![local, global])
            }
        };
        (y, history)
    }

    /// One step: `x` and the output are `[batch, C]`.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn step(&self, x: Tensor<2>, history: Tensor<3>) -> (Tensor<2>, Tensor<3>) {
        let (y, history) = self.forward(x.unsqueeze_dim(1), None, Some(history));
        (y.squeeze_dim(1), history)
    }

    /// The history before the first input: zeros `[batch, K-1, C]`.
    pub fn empty_history(&self, batch: usize, device: &Device) -> Tensor<3> {
        self.causal_conv.empty_state(batch, device)
    }

    /// Checks that a history fits this mixer and `batch`.
    ///
    /// # Errors
    ///
    /// [`InputError`] with the shape and the one it needs, `[batch, K-1, C]`.
    pub fn check_history(&self, history: &Tensor<3>, batch: usize) -> Result<(), InputError> {
        check_shape("history", &history.dims(), &self.causal_conv.state_dims(batch))
    }

    /// The gates' values for `x` `[batch, time, C]`, for probes; `None` in the ablations.
    pub fn gates(&self, x: Tensor<3>) -> Option<GamGates> {
        let mut gates = self.fusion.as_ref()?.gates(x).into_iter();
        Some(GamGates { local: gates.next()?, global: gates.next()? })
    }

    /// How the two paths become one.
    pub fn kind(&self) -> Fusion {
        self.kind
    }
}
