//! Both views at one width, and the four ways to fuse them.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::{PackedAttention, PackedAttentionConfig, Seen};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::cross_modal::align_frames;
use gatekit_core::gate::{ConvexGate, ConvexGateConfig};
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

/// The four fusions of views s (self-supervised) and x (spectral).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// `W [s; align(x)] + b`.
    Concat,
    /// `LN(s + MHA(s, x))`.
    CrossAttention,
    /// Attention both ways, then joined frame by frame.
    Mutual,
    /// `g s + (1 - g) align(x)`.
    Gate,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 4] =
        [Strategy::Concat, Strategy::CrossAttention, Strategy::Mutual, Strategy::Gate];
}

/// Configuration of [`ViewFusion`].
#[derive(Config, Debug)]
pub struct ViewFusionConfig {
    /// Channels of the self-supervised frames; 1024 in XLS-R 300M.
    pub d_ssl: usize,
    /// Channels of the cepstra.
    pub d_spectral: usize,
    /// Fused width d. Default 128.
    #[config(default = 128)]
    pub d_model: usize,
    /// Attention heads, a divisor of d. Default 1.
    #[config(default = 1)]
    pub heads: usize,
    /// The fusion. Default cross attention.
    #[config(default = "Strategy::CrossAttention")]
    pub strategy: Strategy,
    /// Share of the attention weights that is dropped in training, in [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub dropout: f64,
}

impl ViewFusionConfig {
    fn attention(&self, device: &Device) -> Result<PackedAttention, ConfigError> {
        PackedAttentionConfig::new(self.d_model, self.heads).with_dropout(self.dropout).try_init(device)
    }
}

impl ModuleConfig for ViewFusionConfig {
    type Module = ViewFusion;

    fn try_init(&self, device: &Device) -> Result<ViewFusion, ConfigError> {
        let width = self.d_model;
        check_sizes(&[
            ("d_ssl", self.d_ssl),
            ("d_spectral", self.d_spectral),
            ("d_model", width),
            ("heads", self.heads),
        ])?;
        if !width.is_multiple_of(self.heads) {
            return Err(ConfigError::new("heads", self.heads, format!("a divisor of d_model = {width}")));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "a share in [0, 1)"));
        }
        let norm = || LayerNormConfig::new(width).init(device);
        let merge = || LinearConfig::new(2 * width, width).init(device);
        let strategy = match self.strategy {
            Strategy::Concat => Fusion::Concat(Concatenation { merge: merge() }),
            Strategy::CrossAttention => Fusion::CrossAttention(CrossAttention {
                ssl_from_spectral: self.attention(device)?,
                norm_ssl: norm(),
            }),
            Strategy::Mutual => Fusion::Mutual(MutualAttention {
                ssl_from_spectral: self.attention(device)?,
                norm_ssl: norm(),
                spectral_from_ssl: self.attention(device)?,
                norm_spectral: norm(),
                merge: merge(),
            }),
            Strategy::Gate => Fusion::Gate(ConvexGateConfig::new(width).try_init(device)?),
        };
        Ok(ViewFusion {
            ssl_proj: LinearConfig::new(self.d_ssl, width).init(device),
            ssl_norm: norm(),
            spectral_proj: LinearConfig::new(self.d_spectral, width).init(device),
            spectral_norm: norm(),
            strategy,
        })
    }
}

/// [`Strategy::Concat`].
#[derive(Module, Debug)]
pub struct Concatenation {
    /// W and b, `[2d, d]`.
    pub merge: Linear,
}

/// [`Strategy::CrossAttention`].
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// The self-supervised frames ask.
    pub ssl_from_spectral: PackedAttention,
    /// After the residual.
    pub norm_ssl: LayerNorm,
}

/// [`Strategy::Mutual`].
#[derive(Module, Debug)]
pub struct MutualAttention {
    /// The self-supervised frames ask.
    pub ssl_from_spectral: PackedAttention,
    /// After the residual of a.
    pub norm_ssl: LayerNorm,
    /// The cepstra ask.
    pub spectral_from_ssl: PackedAttention,
    /// After the residual of b.
    pub norm_spectral: LayerNorm,
    /// W and b, `[2d, d]`.
    pub merge: Linear,
}

/// The modules of a strategy; the variants leave no trace in parameter names.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // There is one a model, and modules are not moved about.
pub enum Fusion {
    /// [`Strategy::Concat`].
    Concat(Concatenation),
    /// [`Strategy::CrossAttention`].
    CrossAttention(CrossAttention),
    /// [`Strategy::Mutual`].
    Mutual(MutualAttention),
    /// [`Strategy::Gate`]: a gate a frame and channel, from one linear map.
    Gate(ConvexGate),
}

/// Views projected to one width, `s = LN(W_s ssl + b_s)` and `x = LN(W_x spec + b_x)`, and fused to one frame a
/// self-supervised frame:
///
/// * concat: `W [s; align(x)] + b`
/// * cross attention: `LN(s + MHA(q = s, kv = x))`
/// * mutual: `a = LN(s + MHA_1(s, x))`, `b = LN(x + MHA_2(x, s))`, `W [a; align(b)] + b`
/// * gate: `g = sigmoid(W_g [s; align(x)] + b_g)`, `g s + (1 - g) align(x)`
///
/// `align` is [`align_frames`]. Weights and biases start uniform within `1 / sqrt(fan in)`, those of the attentions and
/// the gate as [`PackedAttention`] and [`ConvexGate`] say.
#[derive(Module, Debug)]
pub struct ViewFusion {
    /// `W_s` and `b_s`, `[d_ssl, d]`.
    pub ssl_proj: Linear,
    /// Of s.
    pub ssl_norm: LayerNorm,
    /// `W_x` and `b_x`, `[d_spectral, d]`.
    pub spectral_proj: Linear,
    /// Of x.
    pub spectral_norm: LayerNorm,
    /// What fuses them.
    pub strategy: Fusion,
}

/// What [`ViewFusion`] makes of both views.
#[derive(Debug, Clone)]
pub struct FusedViews {
    /// `[B, Ts, d]`.
    pub fused: Tensor<3>,
    /// The share of the self-supervised view, `[B, Ts, d]`; of [`Strategy::Gate`] alone.
    pub gate: Option<Tensor<3>>,
}

impl ViewFusion {
    /// Self-supervised frames `ssl` `[B, Ts, d_ssl]` and cepstra `spectral` `[B, Tx, d_spectral]` of the same span of
    /// time.
    ///
    /// # Errors
    ///
    /// [`InputError`] for batches of unequal size, and a view without frames or of another width.
    pub fn forward(&self, ssl: Tensor<3>, spectral: Tensor<3>) -> Result<FusedViews, InputError> {
        let ([batch, frames, _], [other, _, _]) = (ssl.dims(), spectral.dims());
        check_view("ssl", &ssl, &self.ssl_proj)?;
        check_view("spectral", &spectral, &self.spectral_proj)?;
        if batch != other {
            let got = format!("{other} samples");
            return Err(InputError::new("spectral", got, format!("{batch}, as the self-supervised view")));
        }
        let s = self.ssl_norm.forward(self.ssl_proj.forward(ssl));
        let x = self.spectral_norm.forward(self.spectral_proj.forward(spectral));
        let join = |merge: &Linear, s, x| merge.forward(Tensor::cat(vec![s, align_frames(x, frames)], 2));
        let ask = |attention: &PackedAttention, norm: &LayerNorm, query: &Tensor<3>, memory: &Tensor<3>| {
            norm.forward(query.clone() + attention.forward(query.clone(), memory.clone(), &Seen::all()))
        };
        let mut gate = None;
        let fused = match &self.strategy {
            Fusion::Concat(fusion) => join(&fusion.merge, s, x),
            Fusion::CrossAttention(fusion) => ask(&fusion.ssl_from_spectral, &fusion.norm_ssl, &s, &x),
            Fusion::Mutual(fusion) => {
                let a = ask(&fusion.ssl_from_spectral, &fusion.norm_ssl, &s, &x);
                let b = ask(&fusion.spectral_from_ssl, &fusion.norm_spectral, &x, &s);
                join(&fusion.merge, a, b)
            }
            Fusion::Gate(fusion) => {
                let mixture = fusion.forward(s, align_frames(x, frames));
                gate = Some(mixture.gate);
                mixture.mixture
            }
        };
        Ok(FusedViews { fused, gate })
    }

    /// What published files call the tensors whose names begin with `prefix`.
    pub fn tensor_layout(layout: TensorLayout, prefix: &str) -> TensorLayout {
        layout
            .with_prefix(&format!("{prefix}strategy.outer."), "gate.")
            .with_prefix(&format!("{prefix}strategy."), "")
            .with_prefix(prefix, "")
    }
}

/// Refuses a view without samples or frames, or of another width than its projection.
///
/// # Errors
///
/// [`InputError`] names the view.
pub(super) fn check_view(name: &str, view: &Tensor<3>, projection: &Linear) -> Result<(), InputError> {
    let ([batch, frames, width], [need, _]) = (view.dims(), projection.weight.lazy_shape().dims());
    if batch > 0 && frames > 0 && width == need {
        return Ok(());
    }
    let need = format!("at least one sample and one frame, {need} channels");
    Err(InputError::new(name, format!("{:?}", view.dims()), need))
}
