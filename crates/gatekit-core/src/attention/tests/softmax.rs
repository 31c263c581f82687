//! The function: against a computation by hand.

use burn::tensor::{DType, Tensor};

use crate::attention::*;
use crate::sequence::Boundaries;
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

/// Naive attention of one sequence: q `[t, heads, dim]`, k, v `[keys, groups, dim]`.
fn by_hand(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    [heads, groups, dim]: [usize; 3],
    window: usize,
    scale: f64,
) -> Vec<f64> {
    let (time, keys) = (q.len() / (heads * dim), k.len() / (groups * dim));
    let mut out = Vec::new();
    for t in 0..time {
        let position = keys - time + t;
        for head in 0..heads {
            let group = head / (heads / groups);
            let query = &q[(t * heads + head) * dim..][..dim];
            let seen: Vec<usize> = (0..=position).filter(|j| position - j < window).collect();
            let scores: Vec<f64> = seen
                .iter()
                .map(|j| {
                    let key = &k[(j * groups + group) * dim..][..dim];
                    (scale * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>()).exp()
                })
                .collect();
            let total: f64 = scores.iter().sum();
            out.extend((0..dim).map(|c| {
                let value = |j: &usize| v[(j * groups + group) * dim + c];
                seen.iter().zip(&scores).map(|(j, score)| score * value(j)).sum::<f64>() / total
            }));
        }
    }
    out
}

#[test]
fn matches_a_naive_computation_in_blocks_with_windows_and_groups() {
    let ([heads, groups, dim], keys) = ([4, 2, 3], 7);
    for device in devices() {
        for time in [1, 4, 7] {
            for window in [None, Some(1), Some(3), Some(20)] {
                for block_size in [2, 512] {
                    let (q, k) = (ramp(2 * time * heads * dim, 2.0), ramp(2 * keys * groups * dim, 1.5));
                    let v = ramp(2 * keys * groups * dim, 1.1);
                    let options = AttentionOptions { scale: Some(0.8), window, block_size };
                    let got = causal_attention(
                        float32(&q, [2, time, heads, dim], &device),
                        float32(&k, [2, keys, groups, dim], &device),
                        float32(&v, [2, keys, groups, dim], &device),
                        &options,
                        None,
                    );
                    let expected: Vec<f64> = (0..2)
                        .flat_map(|row| {
                            let part = |x: &[f64]| x[row * x.len() / 2..(row + 1) * x.len() / 2].to_vec();
                            let window = window.unwrap_or(usize::MAX);
                            by_hand(&part(&q), &part(&k), &part(&v), [heads, groups, dim], window, 0.8)
                        })
                        .collect();
                    assert_eq!(got.dims(), [2, time, heads, dim]);
                    assert_close(&values(got), &expected, 2e-6);
                }
            }
        }
    }
}

#[test]
fn packed_sequences_do_not_see_one_another() {
    let [heads, groups, dim] = [2, 1, 3];
    for device in devices() {
        for cu_seqlens in [vec![0, 1, 5, 12, 14], vec![0, 7, 14], vec![0, 14]] {
            let boundaries = Boundaries::new(&cu_seqlens, 14).unwrap();
            let (q, k, v) = (ramp(14 * heads * dim, 2.0), ramp(14 * dim, 1.5), ramp(14 * dim, 1.1));
            let options = AttentionOptions { window: Some(4), ..AttentionOptions::default() };
            let got = causal_attention(
                float32(&q, [1, 14, heads, dim], &device),
                float32(&k, [1, 14, groups, dim], &device),
                float32(&v, [1, 14, groups, dim], &device),
                &options,
                Some(&boundaries),
            );
            let expected: Vec<f64> = cu_seqlens
                .windows(2)
                .flat_map(|b| {
                    let (rows, kv) = (b[0] * heads * dim..b[1] * heads * dim, b[0] * dim..b[1] * dim);
                    let scale = 3f64.powf(-0.5);
                    by_hand(&q[rows], &k[kv.clone()], &v[kv], [heads, groups, dim], 4, scale)
                })
                .collect();
            assert_close(&values(got), &expected, 2e-6);
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    for device in devices() {
        let device = device.autodiff();
        let q = float32(&[1e4, -1e4], [1, 2, 1, 1], &device).require_grad();
        let k = float32(&[1e4, 2e4], [1, 2, 1, 1], &device);
        let v = float32(&[3.0, 5.0], [1, 2, 1, 1], &device);
        let out = causal_attention(q.clone(), k, v, &AttentionOptions::default(), None);
        assert_eq!(values(out.clone()), [3.0, 3.0]);
        let gradients = out.sum().backward();
        assert_eq!(values(q.grad(&gradients).unwrap()), [0.0, 0.0]);
    }
}

#[test]
fn half_precision_is_normalised_in_float32() {
    for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
        let tensor = |seed: f64| float32(&ramp(64 * 2, seed), [1, 64, 1, 2], &device);
        let (q, k, v) = (tensor(2.0), tensor(1.5), tensor(1.0));
        let options = AttentionOptions { block_size: 16, ..AttentionOptions::default() };
        let exact = values(causal_attention(q.clone(), k.clone(), v.clone(), &options, None));
        let half = |x: Tensor<4>| x.cast(DType::F16);
        let got = causal_attention(half(q.clone()), half(k), half(v), &options, None);
        assert_eq!(got.dtype(), DType::F16);
        assert_close(&values(got), &exact, 5e-3);
        let rotary = RotaryEmbedding::new(2, 10000.0).unwrap();
        let rotated = rotary.apply(half(q.clone()), 3000);
        assert_eq!(rotated.dtype(), DType::F16);
        assert_close(&values(rotated), &values(rotary.apply(q, 3000)), 3e-3);
    }
}

#[test]
fn weights_sum_to_one_and_give_the_output() {
    for device in devices() {
        let q = float32(&ramp(2 * 5 * 4 * 2, 2.0), [2, 5, 4, 2], &device);
        let k = float32(&ramp(2 * 6 * 2 * 2, 1.0), [2, 6, 2, 2], &device);
        let v = float32(&ramp(2 * 6 * 2 * 2, 1.4), [2, 6, 2, 2], &device);
        let options = AttentionOptions { window: Some(4), ..AttentionOptions::default() };
        let weights = attention_weights(q.clone(), k.clone(), &options);
        assert_eq!(weights.dims(), [2, 4, 5, 6]);
        assert_close(&values(weights.clone().sum_dim(3)), &[1.0; 40], 1e-6);
        let repeated = v.clone().swap_dims(1, 2).unsqueeze_dim::<5>(2).repeat_dim(2, 2).reshape([2, 4, 6, 2]);
        let expected = weights.matmul(repeated).swap_dims(1, 2);
        assert_close(&values(causal_attention(q, k, v, &options, None)), &values(expected), 1e-6);
    }
}

#[test]
fn gradients_match_finite_differences() {
    let options = AttentionOptions { window: Some(3), block_size: 2, ..AttentionOptions::default() };
    for device in devices() {
        for cu_seqlens in [None, Some(vec![0, 2, 5])] {
            let boundaries =
                cu_seqlens.map(|cu_seqlens: Vec<usize>| Boundaries::new(&cu_seqlens, 5).unwrap());
            let (q, k, v) = (ramp(20, 1.0), ramp(10, 1.2), ramp(10, 0.9));
            let loss = |q: Tensor<4>, k: Tensor<4>, v: Tensor<4>| {
                let weight = float64(&ramp(20, 1.3), [1, 5, 2, 2], &device);
                causal_attention(q, k, v, &options, boundaries.as_ref()) * weight
            };
            let q_tensor = float64(&q, [1, 5, 2, 2], &device);
            let k_tensor = float64(&k, [1, 5, 1, 2], &device);
            let v_tensor = float64(&v, [1, 5, 1, 2], &device);
            check_gradients(&q, [1, 5, 2, 2], &device, |q| loss(q, k_tensor.clone(), v_tensor.clone()));
            check_gradients(&k, [1, 5, 1, 2], &device, |k| loss(q_tensor.clone(), k, v_tensor.clone()));
            check_gradients(&v, [1, 5, 1, 2], &device, |v| loss(q_tensor.clone(), k_tensor.clone(), v));
        }
    }
}

#[test]
#[should_panic(expected = "`k` [1, 2, 1, 2] does not fit `q` [1, 3, 1, 2]")]
fn fewer_keys_than_queries_panic() {
    let device = devices().remove(0);
    let (q, k) = (Tensor::zeros([1, 3, 1, 2], &device), Tensor::zeros([1, 2, 1, 2], &device));
    causal_attention(q, k.clone(), k, &AttentionOptions::default(), None);
}
