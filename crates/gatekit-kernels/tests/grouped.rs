//! Grouped products: in float64 against plain Rust and central differences, in float32 on every host backend.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use burn::tensor::{DType, Device, Tensor};
use gatekit_kernels::grouped::grouped_matmul;
use support::*;

struct Case {
    offsets: Vec<usize>,
    width: usize,
    out: usize,
    x: Vec<f64>,
    weight: Vec<f64>,
    /// Gradient of the result.
    w: Vec<f64>,
}

impl Case {
    fn new(offsets: &[usize], width: usize, out: usize) -> Self {
        let (rows, groups) = (*offsets.last().unwrap(), offsets.len() - 1);
        let mut numbers = Numbers((7 * rows + width) as u64);
        Self {
            offsets: offsets.to_vec(),
            width,
            out,
            x: numbers.many(rows * width),
            weight: numbers.many(groups * out * width),
            w: numbers.many(rows * out),
        }
    }

    fn rows(&self) -> usize {
        *self.offsets.last().unwrap()
    }

    fn group(&self, row: usize) -> usize {
        self.offsets.iter().rposition(|offset| *offset <= row).unwrap()
    }

    /// Result, and gradients of `x` and the weight, by their definition.
    fn naive(&self) -> [Vec<f64>; 3] {
        let (width, out) = (self.width, self.out);
        let mut y = vec![0.0; self.rows() * out];
        let (mut dx, mut dweight) = (vec![0.0; self.x.len()], vec![0.0; self.weight.len()]);
        for row in 0..self.rows() {
            for o in 0..out {
                for i in 0..width {
                    let (x, weight) = (row * width + i, (self.group(row) * out + o) * width + i);
                    y[row * out + o] += self.x[x] * self.weight[weight];
                    dx[x] += self.w[row * out + o] * self.weight[weight];
                    dweight[weight] += self.w[row * out + o] * self.x[x];
                }
            }
        }
        [y, dx, dweight]
    }

    fn run(&self, device: &Device, dtype: DType) -> [Vec<f64>; 3] {
        let device = device.clone().autodiff();
        let groups = self.offsets.len() - 1;
        let x = tensor(&self.x, [self.rows(), self.width], &device, dtype).require_grad();
        let weight = tensor(&self.weight, [groups, self.out, self.width], &device, dtype).require_grad();
        let y = grouped_matmul(x.clone(), &self.offsets, weight.clone());
        let gradients = (y.clone() * tensor(&self.w, y.dims(), &device, dtype)).sum().backward();
        [values(&y), gradient(&x, &gradients), gradient(&weight, &gradients)]
    }
}

#[test]
fn grouped_products_match_plain_rust() {
    let cases = [
        Case::new(&[0, 1], 1, 1),
        Case::new(&[0, 3, 3, 4, 9], 5, 3),
        Case::new(&[0, 0, 0, 2, 2], 4, 7),
        Case::new(&[0, 40, 41, 41, 80], 33, 18),
    ];
    for case in cases {
        let want = case.naive();
        let devices = [
            (Device::ndarray(), DType::F64, 1e-12),
            (Device::ndarray(), DType::F32, 1e-5),
            #[cfg(feature = "flex")]
            (Device::flex(), DType::F32, 1e-5),
        ];
        for (device, dtype, tolerance) in devices {
            for (got, want) in case.run(&device, dtype).iter().zip(&want) {
                assert_eq!(got.len(), want.len());
                for (got, want) in got.iter().zip(want) {
                    assert!(
                        (got - want).abs() <= tolerance * want.abs().max(1.0),
                        "{dtype:?}: {got}, not {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn no_rows_give_no_rows() {
    let device = Device::ndarray();
    let y = grouped_matmul(Tensor::zeros([0, 3], &device), &[0, 0, 0], Tensor::zeros([2, 4, 3], &device));
    assert_eq!(y.dims(), [0, 4]);
}

#[test]
#[should_panic(expected = "`offsets` [0, 2, 1] do not rise from 0 to 1")]
fn falling_offsets_panic() {
    let device = Device::ndarray();
    grouped_matmul(Tensor::zeros([1, 3], &device), &[0, 2, 1], Tensor::zeros([2, 4, 3], &device));
}
