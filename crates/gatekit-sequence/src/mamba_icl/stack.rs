//! Several layers of the recurrence.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::{ConfigError, ModuleConfig};

use super::predictor::row_width;
use super::ssm::{Gating, SelectiveSsm, SelectiveSsmConfig};
use super::training::{ContextLearner, assert_prompt};

/// Configuration of [`IclStack`]; the fields of a layer are explained at [`SelectiveSsmConfig`].
#[derive(Config, Debug)]
pub struct IclStackConfig {
    /// Features `d` of an example. 30 in the paper.
    #[config(default = 30)]
    pub input_dim: usize,
    /// Number of layers. 3 in the paper's experiment on where outliers stand.
    #[config(default = 3)]
    pub num_layers: usize,
    /// Numbers of state in every channel; `None`: `d + 1`.
    pub state_dim: Option<usize>,
    /// Whether the states decay by the data.
    #[config(default = "Gating::Mamba")]
    pub gating: Gating,
    /// Start of the diagonals of `W_B` and `W_C`.
    #[config(default = 0.2)]
    pub initial_scale: f64,
}

impl ModuleConfig for IclStackConfig {
    type Module = IclStack;

    fn try_init(&self, device: &Device) -> Result<IclStack, ConfigError> {
        if self.num_layers == 0 {
            return Err(ConfigError::new("num_layers", 0, "at least 1"));
        }
        let layer = SelectiveSsmConfig::new(row_width(self.input_dim)?)
            .with_state_dim(self.state_dim)
            .with_gating(self.gating)
            .with_initial_scale(self.initial_scale);
        let layers = (0..self.num_layers).map(|_| layer.try_init(device)).collect::<Result<_, _>>()?;
        Ok(IclStack { layers })
    }
}

/// Layers of [`SelectiveSsm`] with residual connections: `u = u + ssm(u)`, and the score is the
/// labels' channel at the query.
///
/// With one layer it is an [`IclPredictor`](super::IclPredictor). How the paper composes several is
/// not stated there; this is the usual way.
#[derive(Module, Debug)]
pub struct IclStack {
    /// The layers, first to last.
    pub layers: Vec<SelectiveSsm>,
}

impl IclStack {
    /// The score of the query's label, `[batch]`, from `prompt` `[batch, l + 1, d + 1]`.
    ///
    /// # Panics
    ///
    /// As [`IclPredictor::forward`](super::IclPredictor::forward).
    pub fn forward(&self, prompt: Tensor<3>) -> Tensor<1> {
        let [_, width] = self.layers[0].W_B.shape().dims();
        assert_prompt(&prompt, width);
        let u = self.layers.iter().fold(prompt, |u, layer| u.clone() + layer.forward(u, None).0);
        let [_, rows, _] = u.dims();
        u.narrow(1, rows - 1, 1).narrow(2, width - 1, 1).squeeze_dim::<2>(2).squeeze_dim(1)
    }
}

impl ContextLearner for IclStack {
    fn score(&self, prompt: Tensor<3>) -> Tensor<1> {
        self.forward(prompt)
    }
}
