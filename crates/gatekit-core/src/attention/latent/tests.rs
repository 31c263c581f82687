//! Against a naive computation; streaming in both forms; padding; bad configurations.

use super::*;
use crate::test_util::{assert_close, check_gradients, devices, float64, ramp, values};
use burn::module::{ModuleMapper, Param};
use burn::tensor::{Bool, DType};

/// Weights of a formula, in float64.
struct Ramp(f64);

impl ModuleMapper for Ramp {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.0 += 0.17;
        let (shape, device) = (param.lazy_shape(), param.val().device());
        let values = ramp(shape.num_elements(), 0.4 + self.0 % 0.5);
        let tensor = Tensor::<1>::from_data(
            burn::tensor::TensorData::new(values, [shape.num_elements()]),
            (&device, DType::F64),
        );
        Param::from_tensor(tensor.reshape(shape))
    }
}

fn config() -> LatentAttentionConfig {
    LatentAttentionConfig::new(6, 2)
        .with_kv_lora_rank(5)
        .with_qk_nope_head_dim(3)
        .with_qk_rope_head_dim(4)
        .with_v_head_dim(2)
}

fn variants() -> Vec<LatentAttentionConfig> {
    vec![
        config(),
        config().with_rope_theta(Some(100.0)),
        config().with_rope_theta(Some(100.0)).with_q_lora_rank(Some(3)).with_attention_bias(true),
        config().with_rope_theta(Some(100.0)).with_rope_interleave(false),
    ]
}

fn layer(config: &LatentAttentionConfig, device: &Device) -> LatentAttention {
    config.init(device).map(&mut Ramp(0.0))
}

fn input(batch: usize, time: usize, device: &Device) -> Tensor<3> {
    float64(&ramp(batch * time * 6, 1.0), [batch, time, 6], device)
}

/// `x W` for one vector; Burn's weights are `[in, out]`.
fn project(linear: &Linear, x: &[f64]) -> Vec<f64> {
    let ([_, out], weight) = (linear.weight.dims(), values(linear.weight.val()));
    let bias = linear.bias.as_ref().map_or(vec![0.0; out], |bias| values(bias.val()));
    (0..out)
        .map(|j| bias[j] + x.iter().enumerate().map(|(i, x)| x * weight[i * out + j]).sum::<f64>())
        .collect()
}

fn normalise(norm: &RmsNorm, x: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(values(norm.weight.val())).map(|(x, w)| x / (mean + 1e-6).sqrt() * w).collect()
}

/// The rotation by pairs of channels, as an equation says it.
fn rotate(x: &mut [f64], position: usize, config: &LatentAttentionConfig) {
    let (Some(theta), half) = (config.rope_theta, x.len() / 2) else { return };
    for j in 0..half {
        let angle = position as f64 * theta.powf(-(j as f64) / half as f64);
        let (a, b) = if config.rope_interleave { (2 * j, 2 * j + 1) } else { (j, j + half) };
        (x[a], x[b]) = (x[a] * angle.cos() - x[b] * angle.sin(), x[b] * angle.cos() + x[a] * angle.sin());
    }
}

/// One sequence, token by token and head by head.
fn by_hand(config: &LatentAttentionConfig, layer: &LatentAttention, x: &[f64]) -> Vec<f64> {
    let (rank, nope, rope, value) = (5, 3, 4, 2);
    let tokens: Vec<_> = (x.chunks(6).enumerate())
        .map(|(position, x)| {
            let q = match (&layer.q_proj, &layer.q_a_proj) {
                (Some(q), _) => project(q, x),
                (None, Some(down)) => {
                    let latent = normalise(layer.q_a_layernorm.as_ref().unwrap(), &project(down, x));
                    project(layer.q_b_proj.as_ref().unwrap(), &latent)
                }
                _ => unreachable!(),
            };
            let compressed = project(&layer.kv_a_proj_with_mqa, x);
            let made = project(&layer.kv_b_proj, &normalise(&layer.kv_a_layernorm, &compressed[..rank]));
            let mut shared = compressed[rank..].to_vec();
            rotate(&mut shared, position, config);
            let heads: Vec<_> = (0..2)
                .map(|head| {
                    let mut q = q[head * (nope + rope)..][..nope + rope].to_vec();
                    rotate(&mut q[nope..], position, config);
                    let made = &made[head * (nope + value)..][..nope + value];
                    (q, [&made[..nope], &shared[..]].concat(), made[nope..].to_vec())
                })
                .collect();
            heads
        })
        .collect();
    let mut out = Vec::new();
    for t in 0..tokens.len() {
        let mut o = Vec::new();
        for head in 0..2 {
            let (q, _, _) = &tokens[t][head];
            let scores: Vec<f64> = (0..=t)
                .map(|s| q.iter().zip(&tokens[s][head].1).map(|(q, k)| q * k).sum::<f64>() / 7f64.sqrt())
                .map(f64::exp)
                .collect();
            let total: f64 = scores.iter().sum();
            for c in 0..value {
                o.push(
                    scores.iter().zip(&tokens).map(|(p, token)| p * token[head].2[c]).sum::<f64>() / total,
                );
            }
        }
        out.extend(project(&layer.o_proj, &o));
    }
    out
}

#[test]
fn matches_a_naive_computation() {
    for device in devices() {
        for config in variants() {
            let layer = layer(&config, &device);
            let x = input(2, 5, &device);
            let got = values(layer.forward(x.clone(), None));
            let x = values(x);
            let expected = [&x[..30], &x[30..]].map(|x| by_hand(&config, &layer, x)).concat();
            assert_close(&got, &expected, 1e-9);
        }
    }
}

#[test]
fn streaming_equals_the_whole_in_both_forms() {
    for device in devices() {
        for config in variants() {
            let layer = layer(&config, &device);
            let x = input(2, 9, &device);
            let whole = values(layer.forward(x.clone(), None));
            for pieces in [&[1; 9][..], &[9], &[4, 1, 4], &[1, 3, 5], &[7, 2]] {
                let (mut start, mut cache) = (
                    0,
                    LatentCache { latents: Tensor::zeros(layer.cache_dims(2, 0), (&device, DType::F64)) },
                );
                let mut outputs = Vec::new();
                for &piece in pieces {
                    let x = x.clone().narrow(1, start, piece);
                    // What `prefill` chose by cost is compared with the other form.
                    let (q, new) = layer.project(x.clone(), start);
                    let seen = match start {
                        0 => new,
                        _ => Tensor::cat(vec![cache.latents.clone(), new], 1),
                    };
                    let absorbed = layer.absorbed(q, seen.clone());
                    let (q, _) = layer.project(x.clone(), start);
                    let expanded = layer.expanded(q, seen, None);
                    assert_close(&values(absorbed), &values(expanded), 1e-9);
                    let (y, next) = layer.prefill(x, cache);
                    (start, cache) = (start + piece, next);
                    outputs.push(y);
                }
                assert_close(&values(Tensor::cat(outputs, 1)), &whole, 1e-9);
                assert_eq!((cache.len(), cache.bytes()), (9, 2 * 9 * (5 + 4) * 8));
            }
            let (mut cache, mut outputs) = (layer.empty_cache(2, &device), Vec::new());
            assert!(cache.is_empty());
            for t in 0..9 {
                let (y, next) = layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), cache);
                cache = next;
                outputs.push(y.unsqueeze_dim::<3>(1));
            }
            assert_close(&values(Tensor::cat(outputs, 1)), &whole, 1e-9);
            assert_eq!(cache.to_device(&device).len(), 9);
        }
    }
}

#[test]
fn the_cheaper_form_is_the_absorbed_one_for_a_step_and_the_expanded_one_for_a_prompt() {
    let layer = LatentAttentionConfig::new(64, 2).init(&devices()[0]);
    assert!(layer.absorbing_is_cheaper(1, 1000));
    assert!(!layer.absorbing_is_cheaper(1000, 1000));
}

#[test]
fn padded_tokens_change_nothing_and_get_zero() {
    for device in devices() {
        for config in variants() {
            let layer = layer(&config, &device);
            let x = input(2, 5, &device);
            let mask = [[false, false, true, true, true], [true, true, true, true, false]];
            let packing = Packing::from_mask(&Tensor::<2, Bool>::from_data(mask, &device)).unwrap();
            let got = layer.forward(x.clone(), Some(&packing));
            let first = layer.forward(x.clone().narrow(0, 0, 1).narrow(1, 2, 3), None);
            let second = layer.forward(x.narrow(0, 1, 1).narrow(1, 0, 4), None);
            let expected = [vec![0.0; 12], values(first), values(second), vec![0.0; 6]].concat();
            assert_close(&values(got), &expected, 1e-9);
        }
    }
}

#[test]
fn weights_are_causal_and_sum_to_one() {
    let device = devices().remove(0);
    let weights = layer(&variants()[2], &device).weights(input(1, 4, &device));
    assert_eq!(weights.dims(), [1, 2, 4, 4]);
    assert_close(&values(weights.clone().sum_dim(3)), &[1.0; 8], 1e-12);
    for (i, weight) in values(weights).into_iter().enumerate() {
        assert_eq!(weight == 0.0, i % 4 > i / 4 % 4, "weight {i}: {weight}");
    }
}

#[test]
fn gradients_match_finite_differences() {
    for device in devices() {
        for config in variants() {
            let weight = float64(&ramp(24, 1.3), [1, 4, 6], &device);
            check_gradients(&ramp(24, 1.0), [1, 4, 6], &device, |x| {
                layer(&config, &x.device()).forward(x, None) * weight.clone()
            });
            // The absorbed form is differentiable, too.
            check_gradients(&ramp(24, 1.0), [1, 4, 6], &device, |x| {
                let layer = layer(&config, &x.device());
                let (q, latents) = layer.project(x, 0);
                layer.output(layer.absorbed(q, latents)) * weight.clone()
            });
        }
    }
}

#[test]
fn refuses_bad_configurations() {
    let device = devices().remove(0);
    let field = |config: LatentAttentionConfig| config.try_init(&device).unwrap_err().field;
    assert_eq!(field(LatentAttentionConfig::new(0, 2)), "hidden_size");
    assert_eq!(field(LatentAttentionConfig::new(6, 0)), "num_attention_heads");
    assert_eq!(field(config().with_kv_lora_rank(0)), "kv_lora_rank");
    assert_eq!(field(config().with_q_lora_rank(Some(0))), "q_lora_rank");
    assert_eq!(field(config().with_qk_nope_head_dim(0)), "qk_nope_head_dim");
    assert_eq!(field(config().with_qk_rope_head_dim(0)), "qk_rope_head_dim");
    assert_eq!(field(config().with_v_head_dim(0)), "v_head_dim");
    let odd = config().with_qk_rope_head_dim(3);
    assert_eq!(field(odd.clone().with_rope_theta(Some(10.0))), "qk_rope_head_dim");
    assert!(odd.try_init(&device).is_ok());
    assert_eq!(field(config().with_rope_theta(Some(-1.0))), "rope_theta");
}

#[test]
#[should_panic(expected = "the cache [3, 0, 9] must be [2, 0, 9]")]
fn a_cache_of_another_batch_panics() {
    let device = devices().remove(0);
    let layer = config().init(&device);
    layer.prefill(Tensor::zeros([2, 3, 6], &device), layer.empty_cache(3, &device));
}
