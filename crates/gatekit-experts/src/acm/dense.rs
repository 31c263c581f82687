//! The transformer block that adaptive computation modules are put into.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::full_attention;
use gatekit_core::mlp::{Mlp, MlpConfig};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::cost::linear_cost;

/// Configuration of [`DenseBlock`].
#[derive(Config, Debug)]
pub struct DenseBlockConfig {
    /// Width d.
    pub hidden_dim: usize,
    /// Inner width of the MLP; `4 d` in a ViT.
    pub mlp_dim: usize,
    /// Heads of the attention, which divide d. Default 12.
    #[config(default = 12)]
    pub num_heads: usize,
    /// Added to variances in the norms. Default 1e-6.
    #[config(default = 1e-6)]
    pub layer_norm_eps: f64,
}

impl ModuleConfig for DenseBlockConfig {
    type Module = DenseBlock;

    fn try_init(&self, device: &Device) -> Result<DenseBlock, ConfigError> {
        let d = self.hidden_dim;
        check_sizes(&[("hidden_dim", d), ("mlp_dim", self.mlp_dim)])?;
        check_heads(d, self.num_heads)?;
        let [ln_1, ln_2] = norms(d, self.layer_norm_eps, device)?;
        let linear = || LinearConfig::new(d, d).init(device);
        Ok(DenseBlock {
            ln_1,
            self_attention: DenseAttention {
                q_proj: linear(),
                k_proj: linear(),
                v_proj: linear(),
                o_proj: linear(),
                num_heads: self.num_heads,
            },
            ln_2,
            mlp: MlpConfig::new(d, self.mlp_dim).try_init(device)?,
        })
    }
}

/// Refuses heads that do not divide the width.
pub(super) fn check_heads(hidden_dim: usize, num_heads: usize) -> Result<(), ConfigError> {
    match num_heads > 0 && hidden_dim.is_multiple_of(num_heads) {
        true => Ok(()),
        false => {
            Err(ConfigError::new("num_heads", num_heads, format!("a divisor of `hidden_dim` = {hidden_dim}")))
        }
    }
}

/// Both norms of a block.
pub(super) fn norms(hidden_dim: usize, eps: f64, device: &Device) -> Result<[LayerNorm; 2], ConfigError> {
    if !(eps > 0.0 && eps.is_finite()) {
        return Err(ConfigError::new("layer_norm_eps", eps, "a finite number above 0"));
    }
    Ok([(); 2].map(|()| LayerNormConfig::new(hidden_dim).with_epsilon(eps).init(device)))
}

/// The projections of softmax attention.
#[derive(Module, Debug)]
pub struct DenseAttention {
    /// To the queries, `[d, d]`.
    pub q_proj: Linear,
    /// To the keys, `[d, d]`.
    pub k_proj: Linear,
    /// To the values, `[d, d]`.
    pub v_proj: Linear,
    /// From the heads' outputs, `[d, d]`.
    pub o_proj: Linear,
    /// Heads.
    pub num_heads: usize,
}

/// Attention of `[batch, time, d]` queries, keys and values in heads, before the last projection.
pub(super) fn attend(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, num_heads: usize) -> Tensor<3> {
    let [batch, time, d] = q.dims();
    if batch * time == 0 {
        return q;
    }
    let [q, k, v] = [q, k, v].map(|x| x.reshape([batch, time, num_heads, d / num_heads]));
    full_attention(q, k, v).reshape([batch, time, d])
}

/// A pre-norm transformer block: `x = x + W_o attention(W_q u, W_k u, W_v u)` with `u = LN_1(x)`, then
/// `x = x + mlp(LN_2(x))`.
///
/// Softmax attention over all positions, scale `1 / sqrt(d / heads)`, biases everywhere, exact GELU: the block of a
/// ViT (arXiv 2010.11929, section 3.1).
#[derive(Module, Debug)]
pub struct DenseBlock {
    /// Norm before the attention.
    pub ln_1: LayerNorm,
    /// The attention's projections.
    pub self_attention: DenseAttention,
    /// Norm before the MLP.
    pub ln_2: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
}

impl DenseBlock {
    /// `[batch, time, d]` to `[batch, time, d]`.
    ///
    /// # Panics
    ///
    /// When `x` does not have d channels.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.forward_watched(x, &mut |_, _, _| ())
    }

    /// As [`forward`](Self::forward); `watch` sees the input and output of the four projections and the MLP, numbered
    /// in the order q, k, v, o, mlp.
    pub(super) fn forward_watched(
        &self,
        x: Tensor<3>,
        watch: &mut dyn FnMut(usize, &Tensor<3>, &Tensor<3>),
    ) -> Tensor<3> {
        let attention = &self.self_attention;
        let u = self.ln_1.forward(x.clone());
        let mut project = |index: usize, map: &Linear, input: &Tensor<3>| {
            let output = map.forward(input.clone());
            watch(index, input, &output);
            output
        };
        let q = project(0, &attention.q_proj, &u);
        let k = project(1, &attention.k_proj, &u);
        let v = project(2, &attention.v_proj, &u);
        let heads = attend(q, k, v, attention.num_heads);
        let x = x + project(3, &attention.o_proj, &heads);
        let input = self.ln_2.forward(x.clone());
        let output = self.mlp.forward(input.clone());
        watch(4, &input, &output);
        x + output
    }

    /// FLOPs of sequences of `time` tokens, all in all for `batch` of them; norms and activations are not counted.
    pub fn cost(&self, batch: usize, time: usize) -> f64 {
        let attention = &self.self_attention;
        let maps = [&attention.q_proj, &attention.k_proj, &attention.v_proj, &attention.o_proj];
        let maps = maps.into_iter().chain([&self.mlp.up, &self.mlp.down]);
        let a_token: f64 = maps.map(|map| linear_cost(map.weight.dims(), map.bias.is_some())).sum();
        (batch * time) as f64 * a_token + attention_cost(batch, time, attention.q_proj.weight.dims()[1])
    }
}

/// FLOPs of the scores and of the weighted sums.
pub(super) fn attention_cost(batch: usize, time: usize, hidden_dim: usize) -> f64 {
    4.0 * (batch * time * time * hidden_dim) as f64
}
