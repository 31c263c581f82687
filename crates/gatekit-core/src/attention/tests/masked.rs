//! Attention to keys of which some are padding, and its layer.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Bool, Device, Tensor};

use crate::ModuleConfig;
use crate::attention::*;
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

fn qkv(device: &Device) -> [Tensor<4>; 3] {
    let part = |amplitude, time, heads| {
        let shape = [2, time, heads, 3];
        float64(&ramp(2 * time * heads * 3, amplitude), shape, device)
    };
    [part(2.0, 4, 4), part(1.5, 5, 2), part(1.0, 5, 2)]
}

#[test]
fn weights_match_the_equation() {
    for device in devices() {
        let [q, k, v] = qkv(&device);
        let padded = [[false, false, true, false, true], [false, true, false, false, false]];
        let padding = Tensor::<2, Bool>::from_data(padded, &device);
        let (qs, ks, vs) = (values(q.clone()), values(k.clone()), values(v.clone()));
        for (mask, causal) in [(None, false), (Some(&padding), false), (None, true), (Some(&padding), true)] {
            let mut want = Vec::new();
            for (b, t, h) in (0..2).flat_map(|b| (0..4).flat_map(move |t| (0..4).map(move |h| (b, t, h)))) {
                let seen: Vec<usize> = (0..5)
                    .filter(|j| (mask.is_none() || !padded[b][*j]) && (!causal || *j <= t + 1))
                    .collect();
                let row = |x: &[f64], heads: usize, time: usize, at: usize, head: usize| {
                    let start = ((b * time + at) * heads + head) * 3;
                    x[start..start + 3].to_vec()
                };
                let q = row(&qs, 4, 4, t, h);
                let weight: Vec<f64> = (seen.iter())
                    .map(|j| q.iter().zip(row(&ks, 2, 5, *j, h / 2)).map(|(a, b)| a * b).sum::<f64>())
                    .map(|score| (score / 3f64.sqrt()).exp())
                    .collect();
                let sum: f64 = weight.iter().sum();
                let value = |c: usize| -> f64 {
                    seen.iter().zip(&weight).map(|(j, w)| w / sum * row(&vs, 2, 5, *j, h / 2)[c]).sum()
                };
                want.extend((0..3).map(value));
            }
            let got = masked_attention(q.clone(), k.clone(), v.clone(), mask, causal);
            assert_close(&values(got), &want, 1e-12);
        }
        check_gradients(&values(q), [2, 4, 4, 3], &device, |q| {
            let [_, k, v] = qkv(&q.device());
            masked_attention(q, k, v, Some(&padding), true)
        });
    }
}

#[test]
fn without_padding_it_is_causal_attention() {
    for device in devices() {
        let [q, k, v] = qkv(&device);
        let want = causal_attention(q.clone(), k.clone(), v.clone(), &AttentionOptions::default(), None);
        assert_close(&values(masked_attention(q, k, v, None, true)), &values(want), 1e-12);
    }
}

#[test]
fn padding_may_hold_anything_and_the_memory_is_made_once() {
    for device in devices() {
        let layer = MultiHeadAttentionConfig::new(8, 2).with_memory_dim(Some(6)).init(&device);
        let x = float32(&ramp(2 * 3 * 8, 1.0), [2, 3, 8], &device);
        let memory = float32(&ramp(2 * 4 * 6, 1.0), [2, 4, 6], &device);
        let padding = Tensor::<2, Bool>::from_data([[false, false, true, true]; 2], &device);
        let short = layer.forward(x.clone(), memory.clone().narrow(1, 0, 2), None, false);
        let padded = layer.forward(x.clone(), memory.clone(), Some(&padding), false);
        assert_close(&values(padded.clone()), &values(short), 1e-6);
        let other =
            Tensor::cat(vec![memory.clone().narrow(1, 0, 2), memory.clone().narrow(1, 2, 2) * 1e3], 1);
        let other = layer.forward(x.clone(), other, Some(&padding), false);
        assert_close(&values(padded.clone()), &values(other), 1e-6);
        let kept = layer.remember(memory);
        assert_eq!(values(layer.read(x, &kept, Some(&padding), false)), values(padded));
    }
}

#[test]
fn a_causal_layer_goes_on_token_by_token() {
    for device in devices() {
        let layer = MultiHeadAttentionConfig::new(8, 2).with_bias(false).init(&device);
        let x = float32(&ramp(2 * 5 * 8, 1.0), [2, 5, 8], &device);
        let whole = layer.forward(x.clone(), x.clone(), None, true);
        let mut memory = layer.remember(x.clone().narrow(1, 0, 2));
        let mut parts = vec![layer.read(x.clone().narrow(1, 0, 2), &memory, None, true)];
        for t in 2..5 {
            let token = x.clone().narrow(1, t, 1);
            let new = layer.remember(token.clone());
            memory = memory.extended(new.keys, new.values);
            parts.push(layer.read(token, &memory, None, true));
        }
        assert_eq!((memory.position, memory.len()), (5, 5));
        assert_close(&values(Tensor::cat(parts, 1)), &values(whole), 1e-6);
    }
}

#[test]
fn nothing_to_read_for_is_nothing_and_bad_sizes_are_named() {
    let device = devices().remove(0);
    let layer = MultiHeadAttentionConfig::new(4, 2).init(&device);
    let memory = Tensor::<3>::ones([2, 3, 4], &device);
    assert_eq!(layer.forward(Tensor::zeros([2, 0, 4], &device), memory, None, false).dims(), [2, 0, 4]);
    for (field, config) in [
        ("embed_dim", MultiHeadAttentionConfig::new(0, 2)),
        ("num_heads", MultiHeadAttentionConfig::new(4, 0)),
        ("num_heads", MultiHeadAttentionConfig::new(4, 3)),
        ("memory_dim", MultiHeadAttentionConfig::new(4, 2).with_memory_dim(Some(0))),
    ] {
        assert_eq!(config.try_init(&device).unwrap_err().field, field);
    }
}

#[test]
#[should_panic(expected = "masked_attention: `padding` has shape [2, 4], need [2, 5]")]
fn a_mask_of_other_keys_is_refused() {
    let device = devices().remove(0);
    let [q, k, v] = qkv(&device);
    let padding = Tensor::<2>::zeros([2, 4], &device).greater_elem(0.0);
    masked_attention(q, k, v, Some(&padding), false);
}

#[test]
fn a_query_without_a_key_reads_nothing() {
    for device in devices() {
        let [q, k, v] = qkv(&device);
        let padding = Tensor::<2, Bool>::from_data([[false; 5], [true; 5]], &device);
        let seen = values(masked_attention(q.clone(), k.clone(), v.clone(), None, false));
        let got = values(masked_attention(q.clone(), k.clone(), v.clone(), Some(&padding), false));
        assert_eq!((&got[..48], &got[48..]), (&seen[..48], &[0.0; 48][..]));
        // Causal, with the first two keys hidden: the first query sees none.
        let padding = Tensor::<2, Bool>::from_data([[true, true, false, false, false]; 2], &device);
        let got = values(masked_attention(q.clone(), k, v, Some(&padding), true));
        assert!(got[..12].iter().all(|value| *value == 0.0) && got[12..48].iter().all(|value| *value != 0.0));
        check_gradients(&values(q), [2, 4, 4, 3], &device, |q| {
            let [_, k, v] = qkv(&q.device());
            masked_attention(q, k, v, Some(&padding), true)
        });
    }
}

/// The same layer with its three maps apart.
fn unpacked(layer: &PackedAttention, device: &Device) -> MultiHeadAttention {
    let mut apart = MultiHeadAttentionConfig::new(8, 2).init(device);
    let part = |at: usize| {
        let weight = layer.in_proj_weight.val().narrow(0, at * 8, 8).transpose();
        let bias = layer.in_proj_bias.val().narrow(0, at * 8, 8);
        Linear { weight: Param::from_tensor(weight), bias: Some(Param::from_tensor(bias)) }
    };
    (apart.q_proj, apart.k_proj, apart.v_proj) = (part(0), part(1), part(2));
    apart.out_proj = layer.out_proj.clone();
    apart
}

#[test]
fn packed_maps_are_the_three_apart_and_an_absent_memory_adds_nothing() {
    for device in devices() {
        let mut layer = PackedAttentionConfig::new(8, 2).init(&device);
        layer.in_proj_bias = Param::from_tensor(float32(&ramp(24, 0.5), [24], &device));
        layer.out_proj.bias = Some(Param::from_tensor(float32(&ramp(8, 0.5), [8], &device)));
        let x = float32(&ramp(2 * 3 * 8, 1.0), [2, 3, 8], &device);
        let memory = float32(&ramp(2 * 5 * 8, 1.5), [2, 5, 8], &device);
        let apart = unpacked(&layer, &device);
        let got = layer.forward(x.clone(), memory.clone(), &Seen::all());
        assert_close(&values(got), &values(apart.forward(x.clone(), memory.clone(), None, false)), 1e-6);
        let causal = Seen { ahead: Some(2), ..Seen::all() };
        let got = layer.forward(x.clone(), memory.clone(), &causal);
        assert_close(&values(got), &values(apart.forward(x.clone(), memory.clone(), None, true)), 1e-6);
        // More queries than keys: the last ones see all.
        let short = memory.clone().narrow(1, 0, 2);
        let got = values(layer.forward(x.clone(), short.clone(), &Seen { ahead: Some(0), ..Seen::all() }));
        let all = values(layer.forward(x.clone(), short.clone(), &Seen::all()));
        let first = values(layer.forward(x.clone(), short.narrow(1, 0, 1), &Seen::all()));
        assert_close(&got[8..24], &all[8..24], 1e-6);
        assert_close(&got[..8], &first[..8], 1e-6);
        let absent = Tensor::<2, Bool>::from_data([[true; 5], [false; 5]], &device);
        let got = values(layer.forward(x.clone(), memory, &Seen::padded(absent)));
        assert!(got[..24].iter().all(|value| *value == 0.0) && got[24..].iter().all(|value| *value != 0.0));
    }
}

#[test]
fn bad_packed_sizes_are_named() {
    let device = devices().remove(0);
    for (field, config) in [
        ("embed_dim", PackedAttentionConfig::new(0, 2)),
        ("num_heads", PackedAttentionConfig::new(4, 3)),
        ("dropout", PackedAttentionConfig::new(4, 2).with_dropout(1.0)),
    ] {
        assert_eq!(config.try_init(&device).unwrap_err().field, field);
    }
}
