//! Attention with a mask for every value channel.

use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Bool, Device, Tensor, TensorData};

use crate::attention::channel_masked_attention;
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

const BATCH: usize = 2;
const QUERIES: usize = 3;
const KEYS: usize = 4;
const HEADS: usize = 2;
const SIZE: usize = 3;
const CHANNELS: usize = 3;

/// Channel 2 of the first sample and the whole second key of the second are never observed.
const SEEN: [bool; BATCH * KEYS * CHANNELS] = [
    true, false, false, true, true, false, false, true, false, true, true, false, //
    true, true, true, false, false, false, false, false, true, true, false, true,
];

fn none() -> Dropout {
    DropoutConfig::new(0.0).init()
}

fn mask(seen: &[bool], channels: usize, device: &Device) -> Tensor<3, Bool> {
    Tensor::from_data(TensorData::new(seen.to_vec(), [BATCH, KEYS, channels]), device)
}

/// Queries shared by the samples, keys, and values that are 0 where not observed.
fn inputs(scale: f64) -> [Vec<f64>; 3] {
    let stored = ramp(BATCH * KEYS * CHANNELS, 1.3);
    let v = stored.iter().zip(SEEN).map(|(v, seen)| if seen { *v } else { 0.0 }).collect();
    [ramp(QUERIES * HEADS * SIZE, scale), ramp(BATCH * KEYS * HEADS * SIZE, 1.5), v]
}

/// Channel by channel, on the host.
fn by_hand(q: &[f64], k: &[f64], v: &[f64], seen: impl Fn(usize, usize, usize) -> bool) -> Vec<f64> {
    let mut result = Vec::new();
    for (b, i) in (0..BATCH).flat_map(|b| (0..QUERIES).map(move |i| (b, i))) {
        for (h, c) in (0..HEADS).flat_map(|h| (0..CHANNELS).map(move |c| (h, c))) {
            let score = |l: usize| {
                let (q0, k0) = ((i * HEADS + h) * SIZE, ((b * KEYS + l) * HEADS + h) * SIZE);
                (0..SIZE).map(|d| q[q0 + d] * k[k0 + d]).sum::<f64>() / (SIZE as f64).sqrt()
            };
            let keys: Vec<usize> = (0..KEYS).filter(|l| seen(b, *l, c)).collect();
            let value = |l: usize| v[(b * KEYS + l) * CHANNELS + c];
            let largest = keys.iter().map(|l| score(*l)).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = keys.iter().map(|l| (score(*l) - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            result.push(match keys.is_empty() {
                true => (0..KEYS).map(value).sum::<f64>() / KEYS as f64,
                false => keys.iter().zip(weights).map(|(l, w)| w * value(*l)).sum::<f64>() / sum,
            });
        }
    }
    result
}

/// `[B, Q, h, C]`.
fn attend(q: &[f64], k: &[f64], v: &[f64], mask: &Tensor<3, Bool>, double: bool) -> Vec<f64> {
    let device = mask.device();
    let shapes = ([1, QUERIES, HEADS, SIZE], [BATCH, KEYS, HEADS, SIZE], [BATCH, KEYS, CHANNELS]);
    let (q, k, v) = match double {
        true => (float64(q, shapes.0, &device), float64(k, shapes.1, &device), float64(v, shapes.2, &device)),
        false => {
            (float32(q, shapes.0, &device), float32(k, shapes.1, &device), float32(v, shapes.2, &device))
        }
    };
    let y = channel_masked_attention(q, k, v, mask, &none());
    assert_eq!(y.dims(), [BATCH, QUERIES, HEADS, CHANNELS]);
    values(y)
}

fn at(b: usize, l: usize, c: usize) -> bool {
    SEEN[(b * KEYS + l) * CHANNELS + c]
}

#[test]
fn every_channel_has_a_softmax_of_its_own() {
    for device in devices() {
        let mask = mask(&SEEN, CHANNELS, &device);
        // 400: scores lie hundreds apart, and some channels only observed the lowest.
        for scale in [0.0, 1.0, 400.0] {
            let [q, k, v] = inputs(scale);
            let expected = by_hand(&q, &k, &v, at);
            assert_close(&attend(&q, &k, &v, &mask, true), &expected, 1e-12);
            assert_close(&attend(&q, &k, &v, &mask, false), &expected, 1e-5 * scale.max(1.0));
        }
    }
}

#[test]
fn one_mask_may_hold_for_all_channels() {
    let rows = [true, false, true, true, false, false, false, false];
    for device in devices() {
        let mask = mask(&rows, 1, &device);
        for scale in [1.0, 400.0] {
            let [q, k, v] = inputs(scale);
            // The second sample has no row: the average of what is stored.
            let expected = by_hand(&q, &k, &v, |b, l, _| rows[b * KEYS + l]);
            assert_close(&attend(&q, &k, &v, &mask, true), &expected, 1e-12);
        }
    }
}

#[test]
fn what_was_not_observed_may_be_anything() {
    for device in devices() {
        let mask = mask(&SEEN, CHANNELS, &device);
        for scale in [1.0, 400.0] {
            let [q, k, clean] = inputs(scale);
            let mut v = clean.clone();
            for (index, value) in v.iter_mut().enumerate().filter(|(index, _)| !SEEN[*index]) {
                // Channel 2 of the first sample is averaged.
                *value = if index < KEYS * CHANNELS && index % CHANNELS == 2 { 0.0 } else { f64::NAN };
            }
            let expected = by_hand(&q, &k, &clean, at);
            assert_close(&attend(&q, &k, &v, &mask, true), &expected, 1e-12);
            let autodiff = device.clone().autodiff();
            let v = float64(&v, [BATCH, KEYS, CHANNELS], &autodiff).require_grad();
            let q = float64(&q, [1, QUERIES, HEADS, SIZE], &autodiff).require_grad();
            let k = float64(&k, [BATCH, KEYS, HEADS, SIZE], &autodiff);
            let y = channel_masked_attention(q.clone(), k, v.clone(), &mask, &none());
            let gradients = y.sum().backward();
            for gradient in [values(q.grad(&gradients).unwrap()), values(v.grad(&gradients).unwrap())] {
                assert!(gradient.iter().all(|value| value.is_finite()), "{gradient:?}");
            }
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    for device in devices() {
        for scale in [1.0, 60.0] {
            let [q, k, v] = inputs(scale);
            let run = |q: Tensor<4>, k: Tensor<4>, v: Tensor<3>| {
                let mask = mask(&SEEN, CHANNELS, &q.device());
                channel_masked_attention(q, k, v, &mask, &none()).square()
            };
            let query = |device: &Device| float64(&q, [1, QUERIES, HEADS, SIZE], device);
            let key = |device: &Device| float64(&k, [BATCH, KEYS, HEADS, SIZE], device);
            let value = |device: &Device| float64(&v, [BATCH, KEYS, CHANNELS], device);
            check_gradients(&q, [1, QUERIES, HEADS, SIZE], &device, |q| {
                run(q.clone(), key(&q.device()), value(&q.device()))
            });
            check_gradients(&k, [BATCH, KEYS, HEADS, SIZE], &device, |k| {
                run(query(&k.device()), k.clone(), value(&k.device()))
            });
            check_gradients(&v, [BATCH, KEYS, CHANNELS], &device, |v| {
                run(query(&v.device()), key(&v.device()), v.clone())
            });
        }
    }
}

#[test]
fn one_key_is_passed_on_whole() {
    for device in devices() {
        let [q, k] = [[1, 1, 1, 2], [1, 1, 1, 2]].map(|shape| float32(&[3.0, -7.0], shape, &device));
        let v = float32(&[0.25, -2.0], [1, 1, 2], &device);
        let mask = Tensor::<3, Bool>::from_data([[[true, true]]], &device);
        assert_eq!(values(channel_masked_attention(q, k, v, &mask, &none())), [0.25, -2.0]);
    }
}

#[test]
fn weights_are_dropped_in_training_only() {
    for device in devices() {
        device.seed(2);
        let dropout = DropoutConfig::new(0.5).init();
        let mask = mask(&[true; BATCH * KEYS], 1, &device);
        let run = |device: &Device| {
            let q = Tensor::<4>::zeros([1, QUERIES, HEADS, SIZE], device);
            let k = Tensor::<4>::zeros([BATCH, KEYS, HEADS, SIZE], device);
            let v = Tensor::<3>::ones([BATCH, KEYS, CHANNELS], device);
            values(channel_masked_attention(q, k, v, &mask, &dropout))
        };
        assert!(run(&device).iter().all(|value| (value - 1.0).abs() < 1e-6));
        // Each of four weights of a quarter is dropped or doubled.
        let trained = run(&device.clone().autodiff());
        assert!(trained.iter().all(|value| (2.0 * value - (2.0 * value).round()).abs() < 1e-5));
        assert!(trained.iter().any(|value| (value - 1.0).abs() > 0.4));
    }
}

#[test]
#[should_panic(expected = "`mask` [2, 4, 2]")]
fn a_mask_of_other_channels_is_refused() {
    let device = devices().remove(0);
    let q = Tensor::<4>::zeros([1, QUERIES, HEADS, SIZE], &device);
    let k = Tensor::<4>::zeros([BATCH, KEYS, HEADS, SIZE], &device);
    let v = Tensor::<3>::zeros([BATCH, KEYS, CHANNELS], &device);
    let mask = Tensor::<3, Bool>::full([BATCH, KEYS, 2], true, &device);
    channel_masked_attention(q, k, v, &mask, &none());
}
