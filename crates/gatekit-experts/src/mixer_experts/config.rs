//! What a field computes.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::coda::CodaField;
use super::expert::MixerExpert;
use super::field::MixerField;
use super::gate::ContextGate;
use super::geps::GepsField;
use super::root::RootNetwork;

/// How an expert's weights move with the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetaLearner {
    /// By low-rank matrices, the context on their diagonal: [`GepsField`].
    Geps,
    /// By a linear map of the context to all weights: [`CodaField`].
    Coda,
}

/// Configuration of [`MixerField`].
#[derive(Config, Debug)]
pub struct MixerFieldConfig {
    /// Experts E; as many as there are families of systems, 10 on ODEBench.
    pub num_experts: usize,
    /// Numbers C of a context; `4 E` in the paper.
    pub context_size: usize,
    /// Whether expert i sees only piece i of `C / E` numbers. Default true.
    #[config(default = true)]
    pub split_context: bool,
    /// Whether each expert adds a trained scalar to its context. Default true.
    #[config(default = true)]
    pub shift_context: bool,
    /// Whether the gate sees a 1 besides the context. Default true.
    #[config(default = true)]
    pub use_gate_bias: bool,
    /// How an expert's weights move with the context. Default GEPS.
    #[config(default = "MetaLearner::Geps")]
    pub meta_learner: MetaLearner,
    /// Size D of a state. Default 2.
    #[config(default = 2)]
    pub data_size: usize,
    /// Width of the hidden layers. Default 64.
    #[config(default = 64)]
    pub width: usize,
    /// Linear layers, at least 2. Default 3.
    #[config(default = 3)]
    pub depth: usize,
}

impl MixerFieldConfig {
    /// Numbers r of the context that one expert sees.
    pub fn expert_context(&self) -> usize {
        if self.split_context { self.context_size / self.num_experts.max(1) } else { self.context_size }
    }

    /// Refuses what no field can do.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("num_experts", self.num_experts),
            ("context_size", self.context_size),
            ("data_size", self.data_size),
            ("width", self.width),
        ])?;
        if self.split_context && !self.context_size.is_multiple_of(self.num_experts) {
            let need = format!("a multiple of num_experts = {}, to be split", self.num_experts);
            return Err(ConfigError::new("context_size", self.context_size, need));
        }
        if !(2..=1000).contains(&self.depth) {
            return Err(ConfigError::new("depth", self.depth, "2 to 1000"));
        }
        Ok(())
    }

    fn expert(&self, device: &Device) -> MixerExpert {
        let root = RootNetwork::new(self.data_size, self.width, self.depth, device);
        let (context, shift) = (self.expert_context(), self.shift_context);
        match self.meta_learner {
            MetaLearner::Geps => MixerExpert::Geps(GepsField::new(root, context, shift, device)),
            MetaLearner::Coda => MixerExpert::Coda(CodaField::new(root, context, shift, device)),
        }
    }
}

impl ModuleConfig for MixerFieldConfig {
    type Module = MixerField<MixerExpert>;

    fn try_init(&self, device: &Device) -> Result<MixerField<MixerExpert>, ConfigError> {
        self.check()?;
        let experts = (0..self.num_experts).map(|_| self.expert(device)).collect();
        let gate = ContextGate::new(self.context_size, self.num_experts, self.use_gate_bias, device);
        MixerField::from_experts(experts, gate, self.split_context)
    }
}
