//! Configurations of the layer and of the model, and their published form.

use burn::config::Config;
use burn::module::Initializer;
use burn::nn::{EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::Device;
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};
use gatekit_core::conv::ShortConvolutionConfig;
use gatekit_core::gate::GateActivation;
use gatekit_core::norm::RmsNormConfig;
use gatekit_core::scan::ScanForm;
use gatekit_core::{ConfigError, ModuleConfig, init};
use serde_json::{Value, json};

use super::mixer::MambaMixer;
use super::model::{MambaBlock, MambaForCausalLm, MambaModel};
use crate::backbone::MAX_LAYERS;

/// Configuration of [`MambaMixer`]. Field names are those of the published models.
#[derive(Config, Debug)]
pub struct MambaMixerConfig {
    /// Width `D` of input and output; 768 in Mamba-130m.
    pub hidden_size: usize,
    /// Channels `I` of the convolution and the state space; `None`: `2 D`.
    pub intermediate_size: Option<usize>,
    /// Numbers `N` of state in every channel.
    #[config(default = 16)]
    pub state_size: usize,
    /// Rank `R` of the projection that makes the steps; `None`: `D / 16`, rounded up.
    pub time_step_rank: Option<usize>,
    /// Taps `K` of the convolution.
    #[config(default = 4)]
    pub conv_kernel: usize,
    /// Bias of the projections in and out.
    #[config(default = false)]
    pub use_bias: bool,
    /// Bias of the convolution.
    #[config(default = true)]
    pub use_conv_bias: bool,
    /// Smallest step at the start: `softplus(b_dt)` is drawn log-uniformly between the two.
    #[config(default = 0.001)]
    pub time_step_min: f64,
    /// Largest step at the start.
    #[config(default = 0.1)]
    pub time_step_max: f64,
    /// A drawn step is at least this.
    #[config(default = 1e-4)]
    pub time_step_floor: f64,
    /// Factor on the start of `W_dt`, which is `R^-1/2` in size.
    #[config(default = 1.0)]
    pub time_step_scale: f64,
    /// Start of `W_dt`: `random`, uniform within its size, or `constant`.
    #[config(default = "String::from(\"random\")")]
    pub time_step_init_scheme: String,
}

impl MambaMixerConfig {
    /// `I`.
    pub fn channels(&self) -> usize {
        self.intermediate_size.unwrap_or_else(|| self.hidden_size.saturating_mul(2))
    }

    /// `R`.
    pub fn rank(&self) -> usize {
        self.time_step_rank.unwrap_or_else(|| self.hidden_size.div_ceil(16))
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (field, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.channels()),
            ("state_size", self.state_size),
            ("time_step_rank", self.rank()),
            ("conv_kernel", self.conv_kernel),
        ] {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
            // The largest tensor, `in_proj`, is 2 I wide.
            if size > usize::MAX / 4 {
                return Err(ConfigError::new(field, size, "a size that fits into memory"));
            }
        }
        let (low, high) = (self.time_step_min, self.time_step_max);
        if !(low.is_finite() && low > 0.0) {
            return Err(ConfigError::new("time_step_min", low, "a positive number"));
        }
        if !(high.is_finite() && high > low) {
            return Err(ConfigError::new(
                "time_step_max",
                high,
                format!("a number above {low}, the smallest"),
            ));
        }
        for (field, value) in
            [("time_step_floor", self.time_step_floor), ("time_step_scale", self.time_step_scale)]
        {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ConfigError::new(field, value, "a number of at least 0"));
            }
        }
        Ok(())
    }

    /// How `W_dt` starts.
    fn time_step_initializer(&self) -> Result<Initializer, ConfigError> {
        let size = self.time_step_scale / (self.rank() as f64).sqrt();
        match self.time_step_init_scheme.as_str() {
            "random" => Ok(Initializer::Uniform { min: -size, max: size }),
            "constant" => Ok(Initializer::Constant { value: size }),
            other => Err(ConfigError::new("time_step_init_scheme", other, "random or constant")),
        }
    }
}

impl ModuleConfig for MambaMixerConfig {
    type Module = MambaMixer;

    fn try_init(&self, device: &Device) -> Result<MambaMixer, ConfigError> {
        self.check()?;
        let (width, channels, rank) = (self.hidden_size, self.channels(), self.rank());
        // Uniform within the inverse root of the inputs, PyTorch's default; biases start at 0.
        let linear = |from, to, bias: bool| Linear {
            bias: bias.then(|| Initializer::Zeros.init([to], device)),
            ..LinearConfig::new(from, to).with_bias(false).init(device)
        };
        let steps = LinearConfig::new(rank, channels)
            .with_bias(false)
            .with_initializer(self.time_step_initializer()?)
            .init(device);
        let (low, high, floor) = (self.time_step_min, self.time_step_max, self.time_step_floor);
        let conv1d = ShortConvolutionConfig::new(channels, self.conv_kernel)
            .with_bias(self.use_conv_bias)
            .with_activation(Some(GateActivation::Swish))
            .try_init(device)
            .map_err(|error| error.within("conv1d"))?;
        Ok(MambaMixer {
            in_proj: linear(width, 2 * channels, self.use_bias),
            conv1d,
            x_proj: linear(channels, rank + 2 * self.state_size, false),
            dt_proj: Linear {
                bias: Some(init::floored_dt_bias(channels, low, high, floor, device)),
                ..steps
            },
            A_log: init::a_log_range(channels, self.state_size, device),
            D: Initializer::Ones.init([channels], device),
            out_proj: linear(channels, width, self.use_bias),
            form: ScanForm::Auto,
        })
    }
}

/// Configuration of [`MambaForCausalLm`]. Field names are those of the published models; the fields
/// of the layer are explained at [`MambaMixerConfig`].
#[derive(Config, Debug)]
pub struct MambaConfig {
    /// Number of tokens; 50280 in Mamba-130m.
    pub vocab_size: usize,
    /// Width `D`; 768 in Mamba-130m.
    pub hidden_size: usize,
    /// Number of blocks; 24 in Mamba-130m.
    pub num_hidden_layers: usize,
    /// Numbers `N` of state in every channel.
    #[config(default = 16)]
    pub state_size: usize,
    /// Channels of a layer as a multiple of `D`.
    #[config(default = 2)]
    pub expand: usize,
    /// Channels `I` of a layer; `None`: `expand * D`.
    pub intermediate_size: Option<usize>,
    /// Rank `R` of the projection that makes the steps; `None` (published also as `"auto"`):
    /// `D / 16`, rounded up.
    pub time_step_rank: Option<usize>,
    /// Taps `K` of the convolution.
    #[config(default = 4)]
    pub conv_kernel: usize,
    /// Bias of the projections in and out.
    #[config(default = false)]
    pub use_bias: bool,
    /// Bias of the convolution.
    #[config(default = true)]
    pub use_conv_bias: bool,
    /// Added to the mean square in every RMSNorm.
    #[config(default = 1e-5)]
    pub layer_norm_epsilon: f64,
    /// Standard deviation of the embeddings at the start.
    #[config(default = 0.1)]
    pub initializer_range: f64,
    /// Whether `W_out` starts smaller by the root of the number of blocks.
    #[config(default = false)]
    pub rescale_prenorm_residual: bool,
    /// Smallest step at the start.
    #[config(default = 0.001)]
    pub time_step_min: f64,
    /// Largest step at the start.
    #[config(default = 0.1)]
    pub time_step_max: f64,
    /// A drawn step is at least this.
    #[config(default = 1e-4)]
    pub time_step_floor: f64,
    /// Factor on the start of `W_dt`.
    #[config(default = 1.0)]
    pub time_step_scale: f64,
    /// Start of `W_dt`: `random` or `constant`.
    #[config(default = "String::from(\"random\")")]
    pub time_step_init_scheme: String,
    /// The head uses the embeddings' weight.
    #[config(default = true)]
    pub tie_word_embeddings: bool,
}

impl MambaConfig {
    /// The configuration of one layer.
    pub fn layer(&self) -> MambaMixerConfig {
        MambaMixerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: Some(self.channels()),
            state_size: self.state_size,
            time_step_rank: self.time_step_rank,
            conv_kernel: self.conv_kernel,
            use_bias: self.use_bias,
            use_conv_bias: self.use_conv_bias,
            time_step_min: self.time_step_min,
            time_step_max: self.time_step_max,
            time_step_floor: self.time_step_floor,
            time_step_scale: self.time_step_scale,
            time_step_init_scheme: self.time_step_init_scheme.clone(),
        }
    }

    fn channels(&self) -> usize {
        self.intermediate_size.unwrap_or_else(|| self.hidden_size.saturating_mul(self.expand))
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
        ] {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        if self.num_hidden_layers > MAX_LAYERS {
            let need = format!("at most {MAX_LAYERS}");
            return Err(ConfigError::new("num_hidden_layers", self.num_hidden_layers, need));
        }
        for (field, value) in
            [("layer_norm_epsilon", self.layer_norm_epsilon), ("initializer_range", self.initializer_range)]
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(ConfigError::new(field, value, "a positive number"));
            }
        }
        if self.intermediate_size.is_none() && self.expand == 0 {
            return Err(ConfigError::new("expand", 0, "at least 1"));
        }
        Ok(())
    }
}

impl ModuleConfig for MambaConfig {
    type Module = MambaForCausalLm;

    /// Embeddings start as normal(0, `initializer_range`), norms at 1, the layers as
    /// [`MambaMixer`] says, a head of its own uniform within `D^-1/2`.
    fn try_init(&self, device: &Device) -> Result<MambaForCausalLm, ConfigError> {
        self.check()?;
        let layer = self.layer();
        let norm = || RmsNormConfig::new(self.hidden_size).with_eps(self.layer_norm_epsilon).try_init(device);
        let block = |_| {
            let mut mixer = layer.try_init(device)?;
            if self.rescale_prenorm_residual {
                let size = ((self.channels() * self.num_hidden_layers) as f64).sqrt().recip();
                let uniform = Initializer::Uniform { min: -size, max: size };
                mixer.out_proj.weight = uniform.init([self.channels(), self.hidden_size], device);
            }
            Ok(MambaBlock { norm: norm()?, mixer })
        };
        let layers = (0..self.num_hidden_layers).map(block).collect::<Result<_, ConfigError>>()?;
        let normal = Initializer::Normal { mean: 0.0, std: self.initializer_range };
        let embeddings =
            EmbeddingConfig::new(self.vocab_size, self.hidden_size).with_initializer(normal).init(device);
        let lm_head = (!self.tie_word_embeddings)
            .then(|| LinearConfig::new(self.hidden_size, self.vocab_size).with_bias(false).init(device));
        Ok(MambaForCausalLm { backbone: MambaModel { embeddings, layers, norm_f: norm()? }, lm_head })
    }
}

const MODEL_TYPE: &str = "mamba";
const ARCHITECTURE: &str = "MambaForCausalLM";

impl PretrainedConfig for MambaConfig {
    /// Reads the `config.json` of a published model. Refused are other activations than SiLU.
    /// `residual_in_fp32` and the choice of a scan there do not concern the result here: the
    /// residual stream has the precision of the model.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "hidden_act", &["silu".into(), "swish".into()])?;
        require(json, "quantization_config", &[])?;
        let mut json = json.clone();
        if json["time_step_rank"] == "auto" {
            json["time_step_rank"] = Value::Null;
        }
        config_from_json(&Self::new(50280, 768, 32), &json)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json["hidden_act"] = json!("silu");
        // These have no null there.
        json["intermediate_size"] = json!(self.channels());
        json["time_step_rank"] = json!(self.layer().rank());
        json
    }

    fn layout(&self) -> TensorLayout {
        match self.tie_word_embeddings {
            true => TensorLayout::default().with_ignored("lm_head.weight"),
            false => TensorLayout::default(),
        }
    }
}
