//! One product for tokens that are sorted by expert.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};
pub use gatekit_kernels::grouped::grouped_matmul;

use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::init;

/// Configuration of [`GroupedLinear`].
#[derive(Config, Debug)]
pub struct GroupedLinearConfig {
    /// Experts E, at least 1.
    pub num_experts: usize,
    /// Channels of an input, at least 1.
    pub d_input: usize,
    /// Channels of an output, at least 1.
    pub d_output: usize,
}

impl ModuleConfig for GroupedLinearConfig {
    type Module = GroupedLinear;

    fn try_init(&self, device: &Device) -> Result<GroupedLinear, ConfigError> {
        for (field, size) in
            [("num_experts", self.num_experts), ("d_input", self.d_input), ("d_output", self.d_output)]
        {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        let normal = Initializer::Normal { mean: 0.0, std: init::STANDARD_DEVIATION };
        let weight = normal.init([self.num_experts, self.d_output, self.d_input], device);
        Ok(GroupedLinear { weight })
    }
}

/// A projection an expert, without biases: see [`grouped_matmul`]. Starts normal(0, 0.02).
#[derive(Module, Debug)]
pub struct GroupedLinear {
    /// `[E, d_output, d_input]`.
    pub weight: Param<Tensor<3>>,
}

impl GroupedLinear {
    /// `[M, d_input]` sorted by expert to `[M, d_output]`.
    ///
    /// # Panics
    ///
    /// As [`grouped_matmul`].
    pub fn forward(&self, x: Tensor<2>, offsets: &[usize]) -> Tensor<2> {
        grouped_matmul(x, offsets, self.weight.val())
    }
}
