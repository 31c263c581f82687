//! The normalisation of channels: the portable form in float64 against plain Rust and central differences, the fused form
//! in float32 against the portable one.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use burn::tensor::{DType, Device};
use gatekit_kernels::{
    channels::{ChannelNormSpec, channel_norm, channel_statistics, merge_maps, mix_maps},
    gate::Activation,
};
use support::*;

const EPSILON: f64 = 1e-3;

#[derive(Clone, Copy, Debug)]
struct Case {
    dims: [usize; 3],
    of_x: bool,
    activation: Option<Activation>,
}

fn cases() -> Vec<Case> {
    let activations = [None, Some(Activation::Swish), Some(Activation::Sigmoid)];
    let sizes = [[2, 3, 7], [3, 2, 1], [1, 1, 40], [1, 2, 1]];
    let all = sizes.into_iter().flat_map(|dims| {
        let of = move |of_x| activations.map(|activation| Case { dims, of_x, activation });
        [of(true), of(false)].into_iter().flatten()
    });
    all.collect()
}

impl Case {
    /// x, gamma, beta, mean, variance.
    fn inputs(&self) -> Vec<Vec<f64>> {
        let [batch, channels, places] = self.dims;
        let mut numbers = Numbers((batch + 3 * channels + 5 * places) as u64);
        let x: Vec<f64> = numbers.many(batch * channels * places).iter().map(|x| 0.7 + 2.0 * x).collect();
        let [gamma, beta, mean, spread] = [(); 4].map(|()| numbers.many(channels));
        vec![x, gamma, beta, mean, spread.iter().map(|x| 1.0 + 0.5 * x).collect()]
    }

    fn statistics(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let [batch, channels, places] = self.dims;
        let of = |channel: usize| {
            let values: Vec<f64> = (0..batch * places)
                .map(|i| x[((i / places) * channels + channel) * places + i % places])
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            (mean, values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64)
        };
        (0..channels).map(of).unzip()
    }

    fn naive(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let [_, channels, places] = self.dims;
        let (mean, variance) = match self.of_x {
            true => self.statistics(&inputs[0]),
            false => (inputs[3].clone(), inputs[4].clone()),
        };
        let one = |(index, x): (usize, &f64)| {
            let channel = index / places % channels;
            let normal = (x - mean[channel]) / (variance[channel] + EPSILON).sqrt();
            let z = inputs[1][channel] * normal + inputs[2][channel];
            match self.activation {
                Some(Activation::Swish) => z * sigmoid(z),
                Some(Activation::Sigmoid) => sigmoid(z),
                _ => z,
            }
        };
        inputs[0].iter().enumerate().map(one).collect()
    }

    fn run(&self, device: &Device, dtype: DType) -> Vec<(&'static str, Vec<f64>)> {
        let (device, inputs) = (device.clone().autodiff(), self.inputs());
        let x = tensor(&inputs[0], self.dims, &device, dtype).require_grad();
        let row = |values: &[f64]| tensor(values, [self.dims[1]], &device, dtype);
        let (gamma, beta) = (row(&inputs[1]).require_grad(), row(&inputs[2]).require_grad());
        let statistics = match self.of_x {
            true => channel_statistics(x.clone()).into(),
            false => [row(&inputs[3]), row(&inputs[4])],
        };
        let [mean, variance] = statistics.clone();
        let spec = ChannelNormSpec { epsilon: EPSILON, of_x: self.of_x, activation: self.activation };
        let y = channel_norm(x.clone(), [gamma.clone(), beta.clone()], statistics, spec);
        let w = Numbers(23).many(inputs[0].len());
        let gradients = (y.clone() * tensor(&w, self.dims, &device, dtype)).sum().backward();
        vec![
            ("y", values(&y)),
            ("x", gradient(&x, &gradients)),
            ("gamma", gradient(&gamma, &gradients)),
            ("beta", gradient(&beta, &gradients)),
            ("mean", values(&mean)),
            ("variance", values(&variance)),
        ]
    }
}

#[test]
fn portable_norms_match_plain_rust_and_differences() {
    for case in cases() {
        let inputs = case.inputs();
        let got = case.run(&Device::ndarray(), DType::F64);
        close(&format!("{case:?} y"), &got[0].1, &case.naive(&inputs), 1e-10);
        if case.of_x {
            let (mean, variance) = case.statistics(&inputs[0]);
            close(&format!("{case:?} mean"), &got[4].1, &mean, 1e-10);
            close(&format!("{case:?} variance"), &got[5].1, &variance, 1e-10);
        }
        let w = Numbers(23).many(inputs[0].len());
        let slopes = differences(&inputs, |inputs| dot(&case.naive(inputs), &w));
        for ((name, got), want) in got[1..4].iter().zip(slopes) {
            close(&format!("{case:?} {name}"), got, &want, 1e-6);
        }
    }
}

#[test]
fn fused_norms_match_the_portable_ones() {
    let large = Case { dims: [3, 5, 2500], of_x: true, activation: Some(Activation::Swish) };
    for case in cases().into_iter().chain([large]) {
        let want = case.run(&Device::ndarray(), DType::F64);
        for device in devices() {
            for ((name, got), (_, want)) in case.run(&device, DType::F32).iter().zip(&want) {
                close(&format!("{case:?} {name} on {device:?}"), got, want, 2e-5);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let case = Case { dims: [2, 12, 3000], of_x: true, activation: Some(Activation::Swish) };
    on_any_number_of_threads(|| case.run(&Device::ndarray(), DType::F32));
}

#[test]
fn maps_are_merged_and_mixed_as_written() {
    let [batch, channels, places] = [2, 3, 41];
    let mut numbers = Numbers(5);
    let maps: Vec<Vec<f64>> = (0..5).map(|_| numbers.many(batch * channels * places)).collect();
    let [scale, shift] = [(); 2].map(|()| numbers.many(channels));
    let spatial = numbers.many(batch * places);
    let shares = numbers.many(batch * 3 * places);
    let merged: Vec<f64> = (0..batch * channels * places)
        .map(|i| {
            let (channel, place) = (i / places % channels, i / places / channels * places + i % places);
            let sum = maps[0][i] + maps[1][i] * (1.0 + spatial[place]) + maps[2][i] * maps[3][i];
            scale[channel] * sum + shift[channel]
        })
        .collect();
    // Three groups of one channel.
    let mixed: Vec<f64> = (0..batch * places)
        .map(|i| {
            let at = |group: usize| (i / places * 3 + group) * places + i % places;
            (1.0 + spatial[i]) * (0..3).map(|group| shares[at(group)] * maps[4][at(group)]).sum::<f64>()
        })
        .collect();
    for (device, dtype) in
        devices().into_iter().flat_map(|device| [DType::F32, DType::F64].map(|dtype| (device.clone(), dtype)))
    {
        let map = |values: &[f64]| tensor(values, [batch, channels, places], &device, dtype);
        let row = |values: &[f64]| tensor(values, [channels], &device, dtype);
        let one = tensor(&spatial, [batch, 1, places], &device, dtype);
        let [base, refined, gate, guidance] = [0, 1, 2, 3].map(|index| map(&maps[index]));
        let y = merge_maps([base, refined], one.clone(), [gate, guidance], [row(&scale), row(&shift)]);
        close("merged", &values(&y), &merged, 1e-6);
        close("mixed", &values(&mix_maps(map(&maps[4]), map(&shares), one)), &mixed, 1e-6);
    }
}
