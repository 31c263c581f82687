//! Affine-scaled attention against weights by hand.

use burn::tensor::{DType, Device, Tensor};

use crate::attention::*;
use crate::sequence::Boundaries;
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

const HEADS: usize = 4;
const GROUPS: usize = 2;
const DIM: usize = 3;

struct Inputs {
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    alpha: Tensor<3>,
    average: Tensor<1>,
}

fn inputs(batch: usize, time: usize, device: &Device) -> Inputs {
    let alpha: Vec<f64> = ramp(batch * time * HEADS, 0.5).iter().map(|x| x + 0.5).collect();
    Inputs {
        q: float32(&ramp(batch * time * HEADS * DIM, 2.0), [batch, time, HEADS, DIM], device),
        k: float32(&ramp(batch * time * GROUPS * DIM, 1.5), [batch, time, GROUPS, DIM], device),
        v: float32(&ramp(batch * time * GROUPS * DIM, 1.1), [batch, time, GROUPS, DIM], device),
        alpha: float32(&alpha, [batch, time, HEADS], device),
        average: float32(&[0.4, 0.9, 0.0, 1.3], [HEADS], device),
    }
}

fn run(inputs: &Inputs, count: BiasCount, boundaries: Option<&Boundaries>) -> Vec<f64> {
    let Inputs { q, k, v, alpha, average } = inputs;
    let options = AttentionOptions { block_size: 2, ..AttentionOptions::default() };
    let (q, k, v) = (q.clone(), k.clone(), v.clone());
    values(affine_scaled_attention(q, k, v, alpha.clone(), average.clone(), count, &options, boundaries))
}

/// The weights of one sequence, written out: `[heads, time, time]`, and the outputs.
fn by_hand(inputs: &Inputs, count: BiasCount) -> (Vec<f64>, Vec<f64>) {
    let [_, time, _, _] = inputs.q.dims();
    let weights = values(attention_weights(inputs.q.clone(), inputs.k.clone(), &AttentionOptions::default()));
    let (alpha, average) = (values(inputs.alpha.clone()), values(inputs.average.clone()));
    let v = values(inputs.v.clone());
    let (mut mass, mut out) = (vec![0.0; HEADS * time], vec![0.0; time * HEADS * DIM]);
    for head in 0..HEADS {
        for t in 0..time {
            let scale = alpha[t * HEADS + head];
            let keys = match count {
                BiasCount::Sequence => time as f64,
                BiasCount::Visible => (t + 1) as f64,
                BiasCount::None => f64::INFINITY,
            };
            let shift = (average[head] - scale) / keys;
            for j in 0..=t {
                let weight = scale * weights[(head * time + t) * time + j] + shift;
                mass[head * time + t] += weight;
                for c in 0..DIM {
                    let value = v[(j * GROUPS + head / (HEADS / GROUPS)) * DIM + c];
                    out[(t * HEADS + head) * DIM + c] += weight * value;
                }
            }
        }
    }
    (mass, out)
}

#[test]
fn matches_weights_written_out() {
    for device in devices() {
        for count in [BiasCount::Sequence, BiasCount::Visible, BiasCount::None] {
            for time in [1, 6] {
                let inputs = inputs(1, time, &device);
                let (mass, out) = by_hand(&inputs, count);
                assert_close(&run(&inputs, count, None), &out, 3e-6);
                let got = affine_row_mass(inputs.alpha.clone(), inputs.average.clone(), count, None);
                assert_eq!(got.dims(), [1, HEADS, time]);
                assert_close(&values(got.clone()), &mass, 2e-6);
                if count == BiasCount::Visible {
                    // The row sums to m, whatever the scale.
                    let average = inputs.average.reshape([1, HEADS, 1]).expand([1, HEADS, time]);
                    assert_close(&values(got), &values(average), 1e-6);
                }
            }
        }
    }
}

#[test]
fn packed_sequences_are_each_their_own() {
    for device in devices() {
        for count in [BiasCount::Sequence, BiasCount::Visible] {
            let inputs = inputs(1, 7, &device);
            let boundaries = Boundaries::new(&[0, 3, 4, 7], 7).unwrap();
            let part = |from: usize, size: usize| Inputs {
                q: inputs.q.clone().narrow(1, from, size),
                k: inputs.k.clone().narrow(1, from, size),
                v: inputs.v.clone().narrow(1, from, size),
                alpha: inputs.alpha.clone().narrow(1, from, size),
                average: inputs.average.clone(),
            };
            let expected: Vec<f64> = [(0, 3), (3, 1), (4, 3)]
                .into_iter()
                .flat_map(|(from, size)| run(&part(from, size), count, None))
                .collect();
            assert_close(&run(&inputs, count, Some(&boundaries)), &expected, 2e-6);
        }
    }
}

#[test]
fn without_scale_and_shift_it_is_softmax_attention() {
    for device in devices() {
        let mut inputs = inputs(2, 5, &device);
        inputs.alpha = inputs.alpha.ones_like();
        inputs.average = inputs.average.ones_like();
        let options = AttentionOptions::default();
        let plain = causal_attention(inputs.q.clone(), inputs.k.clone(), inputs.v.clone(), &options, None);
        for count in [BiasCount::Sequence, BiasCount::Visible] {
            assert_close(&run(&inputs, count, None), &values(plain.clone()), 1e-6);
        }
    }
}

#[test]
fn the_future_gets_nothing_from_the_shift() {
    for device in devices() {
        for count in [BiasCount::Sequence, BiasCount::Visible] {
            let mut inputs = inputs(1, 6, &device);
            let before = run(&inputs, count, None);
            let last = |x: Tensor<4>| {
                let [_, time, heads, dim] = x.dims();
                let rest = x.clone().narrow(1, 0, time - 1);
                Tensor::cat(vec![rest, Tensor::full([1, 1, heads, dim], 5.0, &x.device())], 1)
            };
            (inputs.k, inputs.v) = (last(inputs.k), last(inputs.v));
            let after = run(&inputs, count, None);
            let earlier = 5 * HEADS * DIM;
            assert_eq!(before[..earlier], after[..earlier]);
            assert_ne!(before[earlier..], after[earlier..]);
        }
    }
}

#[test]
fn means_go_on_from_earlier_sums() {
    for device in devices() {
        let v = float32(&ramp(2 * 6 * 2 * 3, 1.0), [2, 6, 2, 3], &device);
        let (whole, total) = causal_mean(v.clone(), None, None);
        let (first, sum) = causal_mean(v.clone().narrow(1, 0, 4), None, None);
        let (second, end) = causal_mean(v.clone().narrow(1, 4, 2), Some((sum, 4)), None);
        assert_close(&values(Tensor::cat(vec![first, second], 1)), &values(whole), 1e-6);
        assert_close(&values(end), &values(total), 2e-6);
        // A long run of equal values keeps its mean in half precision.
        if device.supports_dtype(DType::F16) {
            let ones = Tensor::<4>::ones([1, 5000, 1, 1], &device).cast(DType::F16);
            let (mean, _) = causal_mean(ones, None, None);
            assert_eq!(mean.dtype(), DType::F16);
            assert_close(&values(mean), &[1.0; 5000], 1e-3);
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    for device in devices() {
        let options = AttentionOptions::default();
        let tensor = |values: &[f64], dims: [usize; 4]| float64(values, dims, &device);
        let (q, k) = (tensor(&ramp(20, 1.0), [1, 5, 2, 2]), tensor(&ramp(10, 1.2), [1, 5, 1, 2]));
        let v = ramp(10, 0.8);
        let weight = tensor(&ramp(20, 1.3), [1, 5, 2, 2]);
        let average = float64(&[0.3, 0.8], [2], &device);
        let boundaries = Boundaries::new(&[0, 2, 5], 5).unwrap();
        for count in [BiasCount::Sequence, BiasCount::Visible] {
            for boundaries in [None, Some(&boundaries)] {
                let loss = |v: Tensor<4>, alpha: Tensor<3>| {
                    let (q, k, average) = (q.clone(), k.clone(), average.clone());
                    affine_scaled_attention(q, k, v, alpha, average, count, &options, boundaries)
                        * weight.clone()
                };
                let alpha = ramp(10, 0.4);
                let alpha_tensor = float64(&alpha, [1, 5, 2], &device);
                check_gradients(&v, [1, 5, 1, 2], &device, |v| loss(v, alpha_tensor.clone()));
                let v_tensor = tensor(&v, [1, 5, 1, 2]);
                check_gradients(&alpha, [1, 5, 2], &device, |alpha| loss(v_tensor.clone(), alpha));
            }
        }
    }
}

#[test]
#[should_panic(expected = "`alpha` [1, 3, 2] is not [batch, time, heads] = [1, 3, 4]")]
fn scales_of_another_shape_panic() {
    let mut inputs = inputs(1, 3, &devices().remove(0));
    inputs.alpha = inputs.alpha.narrow(2, 0, 2);
    run(&inputs, BiasCount::Sequence, None);
}

#[test]
#[should_panic(expected = "`average` [3] is not one for each of 4 heads")]
fn averages_of_another_shape_panic() {
    let mut inputs = inputs(1, 3, &devices().remove(0));
    inputs.average = inputs.average.narrow(0, 0, 3);
    run(&inputs, BiasCount::Sequence, None);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "`average` is not finite")]
fn averages_that_are_not_finite_panic_in_debug_builds() {
    let mut inputs = inputs(1, 3, &devices().remove(0));
    inputs.average = inputs.average.mul_scalar(f64::NAN);
    run(&inputs, BiasCount::Sequence, None);
}
