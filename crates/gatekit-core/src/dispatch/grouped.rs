//! One product for tokens that are sorted by expert.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};

use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::init;

/// Rows `offsets[e] .. offsets[e + 1]` of `x` `[M, in]` times the transpose of `weight[e]`:
/// `[M, in]`, weight `[E, out, in]` to `[M, out]`.
///
/// # Panics
///
/// When the shapes do not fit, or the offsets do not rise from 0 to M.
pub fn grouped_matmul(x: Tensor<2>, offsets: &[usize], weight: Tensor<3>) -> Tensor<2> {
    let ([rows, width], [experts, out, from]) = (x.dims(), weight.dims());
    assert!(
        width == from && offsets.len() == experts + 1,
        "grouped_matmul: `x` {:?} and {} offsets do not fit the weight {:?}",
        x.dims(),
        offsets.len(),
        weight.dims()
    );
    assert!(
        offsets.first() == Some(&0) && offsets.last() == Some(&rows) && offsets.is_sorted(),
        "grouped_matmul: `offsets` {offsets:?} do not rise from 0 to {rows}"
    );
    if rows == 0 {
        return Tensor::zeros([0, out], (&x.device(), x.dtype()));
    }
    let parts: Vec<_> = (0..experts)
        .filter(|expert| offsets[*expert] < offsets[expert + 1])
        .map(|expert| {
            let rows = x.clone().narrow(0, offsets[expert], offsets[expert + 1] - offsets[expert]);
            let weight = weight.clone().narrow(0, expert, 1).squeeze_dim::<2>(0);
            rows.matmul(weight.transpose())
        })
        .collect();
    Tensor::cat(parts, 0)
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
