//! The convolution of images: Burn's own in float64 against plain Rust and central differences, the fused form in float32
//! against it.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use burn::tensor::{DType, Device};
use gatekit_kernels::{
    convolution::{Finish, image_convolution},
    gate::Activation,
};
use support::*;

#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    channels: usize,
    outputs: usize,
    image: [usize; 2],
    kernel: [usize; 2],
    stride: usize,
    padding: usize,
    groups: usize,
    scale: bool,
    bias: bool,
    activation: Option<Activation>,
}

/// Three, five and one places; strides, paddings; more outputs than a panel; one pixel; planes that end within a vector.
fn cases() -> Vec<Case> {
    let case = |sizes: [usize; 5], kernel: [usize; 2], [stride, padding, groups]: [usize; 3]| {
        let [batch, channels, outputs, height, width] = sizes;
        let image = [height, width];
        let (scale, bias, activation) = (false, false, None);
        Case { batch, channels, outputs, image, kernel, stride, padding, groups, scale, bias, activation }
    };
    let sizes = [
        case([2, 3, 4, 6, 9], [3, 3], [1, 1, 1]),
        case([2, 3, 5, 7, 6], [3, 3], [2, 1, 1]),
        case([3, 2, 7, 3, 3], [1, 1], [1, 0, 1]),
        case([1, 2, 3, 5, 7], [1, 1], [2, 0, 1]),
        case([1, 1, 2, 1, 1], [3, 3], [1, 1, 1]),
        case([1, 2, 2, 2, 6], [5, 3], [1, 2, 1]),
        case([1, 2, 2, 9, 8], [2, 3], [3, 0, 1]),
        case([2, 3, 3, 6, 7], [3, 3], [1, 1, 3]),
        case([2, 3, 3, 7, 8], [5, 5], [2, 2, 3]),
        case([1, 4, 6, 5, 5], [3, 3], [1, 1, 2]),
    ];
    let finished = [
        (false, false, None),
        (true, true, Some(Activation::Swish)),
        (false, true, Some(Activation::Sigmoid)),
        (true, false, None),
    ];
    let with = |case: &Case| {
        let case = case.clone();
        finished.map(|(scale, bias, activation)| Case { scale, bias, activation, ..case.clone() })
    };
    sizes.iter().flat_map(with).collect()
}

impl Case {
    fn result(&self) -> [usize; 2] {
        [0, 1].map(|axis| (self.image[axis] + 2 * self.padding - self.kernel[axis]) / self.stride + 1)
    }

    /// Image, kernel, scale, bias.
    fn inputs(&self) -> Vec<Vec<f64>> {
        let mut numbers =
            Numbers((self.batch + 3 * self.channels + 5 * self.outputs + 7 * self.stride) as u64);
        let kernel = self.kernel[0] * self.kernel[1];
        vec![
            numbers.many(self.batch * self.channels * self.image[0] * self.image[1]),
            numbers.many(self.outputs * self.channels / self.groups * kernel),
            numbers.many(if self.scale { self.outputs } else { 0 }),
            numbers.many(if self.bias { self.outputs } else { 0 }),
        ]
    }

    fn naive(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let [x, weight, scale, bias] = inputs else { unreachable!() };
        let ([rows, columns], own) = (self.result(), self.channels / self.groups);
        let mut y = vec![];
        for image in 0..self.batch {
            for output in 0..self.outputs {
                let group = output / (self.outputs / self.groups);
                for place in 0..rows * columns {
                    let mut sum = 0.0;
                    for channel in 0..own {
                        for tap in 0..self.kernel[0] * self.kernel[1] {
                            let (u, v) = (tap / self.kernel[1], tap % self.kernel[1]);
                            let (i, j) =
                                (place / columns * self.stride + u, place % columns * self.stride + v);
                            let inside = (self.padding..self.image[0] + self.padding).contains(&i)
                                && (self.padding..self.image[1] + self.padding).contains(&j);
                            if inside {
                                let plane = image * self.channels + group * own + channel;
                                let row = plane * self.image[0] + i - self.padding;
                                let kernel = self.kernel[0] * self.kernel[1];
                                sum += weight[(output * own + channel) * kernel + tap]
                                    * x[row * self.image[1] + j - self.padding];
                            }
                        }
                    }
                    let z = scale.get(output).unwrap_or(&1.0) * sum + bias.get(output).unwrap_or(&0.0);
                    y.push(match self.activation {
                        Some(Activation::Swish) => z * sigmoid(z),
                        Some(Activation::Sigmoid) => sigmoid(z),
                        _ => z,
                    });
                }
            }
        }
        y
    }

    /// The gradient of the result.
    fn w(&self) -> Vec<f64> {
        let [rows, columns] = self.result();
        Numbers(17).many(self.batch * self.outputs * rows * columns)
    }

    /// Result and gradients by name.
    fn run(&self, device: &Device, dtype: DType) -> Vec<(&'static str, Vec<f64>)> {
        let (device, inputs) = (device.clone().autodiff(), self.inputs());
        let dims = [self.batch, self.channels, self.image[0], self.image[1]];
        let x = tensor(&inputs[0], dims, &device, dtype).require_grad();
        let dims = [self.outputs, self.channels / self.groups, self.kernel[0], self.kernel[1]];
        let weight = tensor(&inputs[1], dims, &device, dtype).require_grad();
        let row = |values: &[f64]| tensor(values, [self.outputs], &device, dtype).require_grad();
        let (scale, bias) = (self.scale.then(|| row(&inputs[2])), self.bias.then(|| row(&inputs[3])));
        let how = [self.stride, self.padding, self.groups];
        let finish = Finish { scale: scale.clone(), bias: bias.clone(), activation: self.activation };
        let y = image_convolution(x.clone(), weight.clone(), how, finish.clone());
        // Without gradients scale and activation are applied as the result is written.
        let plain = image_convolution(
            x.clone().inner(),
            weight.clone().inner(),
            how,
            Finish {
                scale: finish.scale.map(|row| row.inner()),
                bias: finish.bias.map(|row| row.inner()),
                activation: finish.activation,
            },
        );
        let gradients = (y.clone() * tensor(&self.w(), y.dims(), &device, dtype)).sum().backward();
        let mut all = vec![
            ("y", values(&y)),
            ("plain", values(&plain)),
            ("x", gradient(&x, &gradients)),
            ("weight", gradient(&weight, &gradients)),
        ];
        all.extend(scale.map(|scale| ("scale", gradient(&scale, &gradients))));
        all.extend(bias.map(|bias| ("bias", gradient(&bias, &gradients))));
        all
    }
}

#[test]
fn portable_convolutions_match_plain_rust_and_differences() {
    for case in cases() {
        let (inputs, w) = (case.inputs(), case.w());
        let got = case.run(&Device::ndarray(), DType::F64);
        close(&format!("{case:?} y"), &got[0].1, &case.naive(&inputs), 1e-10);
        close(&format!("{case:?} plain"), &got[1].1, &got[0].1, 1e-10);
        let slopes = differences(&inputs, |inputs| dot(&case.naive(inputs), &w));
        let slopes = slopes.into_iter().filter(|slope| !slope.is_empty());
        for ((name, got), want) in got[2..].iter().zip(slopes) {
            close(&format!("{case:?} {name}"), got, &want, 1e-6);
        }
    }
}

#[test]
fn fused_convolutions_match_the_portable_ones() {
    let large = Case { outputs: 70, channels: 20, image: [9, 23], ..cases()[1].clone() };
    let many = Case { batch: 9, outputs: 33, channels: 18, image: [5, 3], ..cases()[0].clone() };
    for case in cases().into_iter().chain([large, many]) {
        let want = case.run(&Device::ndarray(), DType::F64);
        for device in devices() {
            let got = case.run(&device, DType::F32);
            for ((name, got), (_, want)) in got.iter().zip(&want) {
                close(&format!("{case:?} {name} on {device:?}"), got, want, 2e-5);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let case = Case { batch: 3, outputs: 40, channels: 24, image: [24, 24], ..cases()[1].clone() };
    on_any_number_of_threads(|| case.run(&Device::ndarray(), DType::F32));
}

#[test]
fn only_what_is_asked_for_is_differentiated() {
    let device = Device::ndarray().autodiff();
    let case = &cases()[0];
    let inputs = case.inputs();
    let x = tensor(&inputs[0], [2, 3, 6, 9], &device, DType::F32);
    let weight = tensor(&inputs[1], [4, 3, 3, 3], &device, DType::F32).require_grad();
    let y = image_convolution(x.clone(), weight.clone(), [1, 1, 1], Finish::default());
    let gradients = y.sum().backward();
    assert!(weight.grad(&gradients).is_some() && x.grad(&gradients).is_none());
}

#[test]
#[should_panic(expected = "do not fit 2 groups")]
fn groups_that_do_not_fit_are_refused() {
    let device = Device::ndarray();
    let ones = |dims| burn::tensor::Tensor::<4>::ones(dims, &device);
    image_convolution(ones([1, 3, 4, 4]), ones([2, 3, 3, 3]), [1, 1, 2], Finish::default());
}
