//! One product for tokens that are sorted by expert.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};
pub use gatekit_kernels::grouped::grouped_matmul;

use crate::common::indices;
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::init;

/// Rows from which packing the weight pays.
const MANY: usize = 64;

/// `x W^T` for few outputs, as scores and gates have: rows `x` `[N, in]` and `weight` `[out, in]` to `[N, out]`.
///
/// Many rows go through [`grouped_matmul`] as one group. Products of matrices that are narrow are several times faster
/// there than those of some backends, which are made for square ones.
///
/// # Panics
///
/// When widths or types differ.
pub fn narrow_matmul(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    match x.dims()[0] {
        rows if rows >= MANY => grouped_matmul(x, &[0, rows], weight.unsqueeze_dim(0)),
        _ => x.matmul(weight.transpose()),
    }
}

/// Configuration of [`GroupedLinear`].
#[derive(Config, Debug)]
pub struct GroupedLinearConfig {
    /// Experts E, at least 1.
    pub num_experts: usize,
    /// Channels of an input, at least 1.
    pub d_input: usize,
    /// Channels of an output, at least 1.
    pub d_output: usize,
    /// Whether every expert has a bias. Default false.
    #[config(default = false)]
    pub bias: bool,
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
        let bias = self.bias.then(|| Initializer::Zeros.init([self.num_experts, self.d_output], device));
        Ok(GroupedLinear { weight, bias })
    }
}

/// A projection an expert, `y = W_e x (+ b_e)`: see [`grouped_matmul`]. Weights start normal(0, 0.02),
/// biases 0.
#[derive(Module, Debug)]
pub struct GroupedLinear {
    /// `[E, d_output, d_input]`.
    pub weight: Param<Tensor<3>>,
    /// `[E, d_output]`.
    pub bias: Option<Param<Tensor<2>>>,
}

impl GroupedLinear {
    /// `[M, d_input]` sorted by expert to `[M, d_output]`.
    ///
    /// # Panics
    ///
    /// As [`grouped_matmul`].
    pub fn forward(&self, x: Tensor<2>, offsets: &[usize]) -> Tensor<2> {
        let y = grouped_matmul(x, offsets, self.weight.val());
        match &self.bias {
            Some(bias) if y.dims()[0] > 0 => {
                let runs = offsets.windows(2).enumerate();
                let experts = runs.flat_map(|(expert, run)| std::iter::repeat_n(expert, run[1] - run[0]));
                let experts = indices(experts.collect(), &y.device());
                y + bias.val().select(0, experts)
            }
            _ => y,
        }
    }

    /// All rows through one expert, `[N, d_input]` to `[N, d_output]`.
    ///
    /// # Panics
    ///
    /// When there is no such expert, or `x` has another width.
    pub fn forward_expert(&self, x: Tensor<2>, expert: usize) -> Tensor<2> {
        let weight = self.weight.val().narrow(0, expert, 1).squeeze_dim::<2>(0);
        let y = x.matmul(weight.transpose());
        match &self.bias {
            Some(bias) => y + bias.val().narrow(0, expert, 1),
            None => y,
        }
    }
}
