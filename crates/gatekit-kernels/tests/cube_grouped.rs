//! The CubeCL kernels of grouped products in float32 and, where the device stores it, half precision, against the
//! portable form in float64.
#![cfg(all(feature = "wgpu", feature = "ndarray"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device, DeviceKind, Gradients, Tensor};
use gatekit_kernels::{
    gate::Activation,
    grouped::{SortedSlots, gated_experts, grouped_matmul},
};
use support::{Numbers, close, tensor, values};

fn gpu() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

/// Numbers between -1 and 1 with seven binary digits, exact in half precision.
fn digits(numbers: &mut Numbers, count: usize) -> Vec<f64> {
    numbers.many(count).iter().map(|x| (64.0 * x).round() / 64.0).collect()
}

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
    /// Groups of so many rows, and the widths of `x` and of the result.
    fn new(rows: &[usize], [width, out]: [usize; 2]) -> Self {
        let mut offsets = vec![0];
        offsets.extend(rows.iter().scan(0, |end, rows| {
            *end += rows;
            Some(*end)
        }));
        let (groups, rows) = (rows.len(), rows.iter().sum::<usize>());
        let mut numbers = Numbers((7 * rows + width) as u64);
        Self {
            offsets,
            width,
            out,
            x: digits(&mut numbers, rows * width),
            weight: digits(&mut numbers, groups * out * width),
            w: digits(&mut numbers, rows * out),
        }
    }

    fn groups(&self) -> usize {
        self.offsets.len() - 1
    }

    fn rows(&self) -> usize {
        self.offsets[self.groups()]
    }

    /// Result, and gradients of `x` and the weight.
    fn run(&self, device: &Device, dtype: DType) -> [Vec<f64>; 3] {
        let device = device.clone().autodiff();
        let x = tensor(&self.x, [self.rows(), self.width], &device, dtype).require_grad();
        let weight =
            tensor(&self.weight, [self.groups(), self.out, self.width], &device, dtype).require_grad();
        let y = grouped_matmul(x.clone(), &self.offsets, weight.clone());
        assert_eq!(y.dtype(), dtype);
        // The gradient of the result is the weights of the sum: exact in every type.
        let sum = (y.clone() * tensor(&self.w, y.dims(), &device, dtype)).cast(sums(dtype)).sum();
        let gradients = sum.backward();
        [values(&y), gradient(&x, &gradients), gradient(&weight, &gradients)]
    }

    #[track_caller]
    fn check(&self, dtype: DType, tolerance: f64) {
        let want = self.run(&Device::ndarray(), DType::F64);
        let got = self.run(&gpu(), dtype);
        for (name, (got, want)) in ["y", "dx", "dweight"].into_iter().zip(got.iter().zip(&want)) {
            let case = format!("{name} of {:?}, {} to {}, {dtype:?}", self.offsets, self.width, self.out);
            close(&case, got, want, tolerance);
        }
    }
}

/// The values of an argument's gradient, which must have its type.
fn gradient<const D: usize>(x: &Tensor<D>, gradients: &Gradients) -> Vec<f64> {
    let gradient = x.grad(gradients).expect("the result depends on the argument");
    assert_eq!(gradient.dtype(), x.dtype());
    values(&gradient)
}

fn sums(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

#[test]
fn results_and_gradients_match_the_portable_form() {
    let cases = [
        // A single number, widths that no vector divides, groups without rows first, between and last.
        Case::new(&[1], [1, 1]),
        Case::new(&[3, 0, 1, 5], [5, 3]),
        Case::new(&[0, 0, 2, 0], [4, 7]),
        Case::new(&[40, 1, 0, 39], [33, 18]),
        // One group has all rows; tiles that are full and that are not.
        Case::new(&[0, 128, 0], [64, 96]),
        Case::new(&[15, 16, 17, 63, 64, 65], [36, 68]),
    ];
    for case in cases {
        case.check(DType::F32, 1e-6);
    }
}

#[test]
fn few_rows_of_many_groups() {
    for most in [1, 2, 4] {
        // Five groups of eight have no rows.
        let rows: Vec<usize> =
            (0..64).map(|group| if group % 8 < 3 { 1 + group % most } else { 0 }).collect();
        Case::new(&rows, [132, 47]).check(DType::F32, 1e-6);
    }
    Case::new(&[2, 4, 1], [9, 70]).check(DType::F32, 1e-6);
}

/// Enough tiles to fill a device, so that those are large, of results and gradients.
#[test]
fn large_products() {
    Case::new(&[1100, 0, 900], [20, 700]).check(DType::F32, 1e-6);
    Case::new(&[500, 301], [1030, 40]).check(DType::F32, 2e-6);
    Case::new(&[4, 0, 7], [530, 610]).check(DType::F32, 2e-6);
}

/// The rows of a group are summed by several cubes.
#[test]
fn many_rows_of_small_matrices() {
    let case = Case::new(&[300, 0, 1499], [24, 20]);
    case.check(DType::F32, 2e-6);
    assert_eq!(case.run(&gpu(), DType::F32), case.run(&gpu(), DType::F32), "always in the same order");
}

#[test]
fn half_precision() {
    for (dtype, tolerance) in [(DType::F16, 6e-4), (DType::BF16, 5e-3)] {
        if gpu().supports_dtype(dtype) {
            Case::new(&[40, 1, 0, 39], [36, 20]).check(dtype, tolerance);
            Case::new(&[70, 5], [33, 65]).check(dtype, tolerance);
            Case::new(&[1, 0, 3], [40, 33]).check(dtype, tolerance);
        }
    }
}

/// What is not stored row by row is read as it is meant.
#[test]
fn transposed_arguments() {
    let case = Case::new(&[9, 0, 20], [12, 10]);
    let run = |device: &Device, dtype: DType| {
        let x = tensor(&case.x, [12, 29], device, dtype).transpose();
        let weight = tensor(&case.weight, [3, 12, 10], device, dtype).swap_dims(1, 2);
        values(&grouped_matmul(x, &case.offsets, weight))
    };
    close("y", &run(&gpu(), DType::F32), &run(&Device::ndarray(), DType::F64), 1e-6);
}

/// Rows of other groups are not read into a sum, not even times zero.
#[test]
fn groups_do_not_meet() {
    let case = Case::new(&[5, 6, 7], [8, 6]);
    let device = gpu();
    let spoiled = |values: &[f64], at: std::ops::Range<usize>| -> Vec<f64> {
        let place = |(index, value): (usize, &f64)| if at.contains(&index) { f64::NAN } else { *value };
        values.iter().enumerate().map(place).collect()
    };
    let x = tensor(&spoiled(&case.x, 5 * 8..11 * 8), [18, 8], &device, DType::F32);
    let weight = tensor(&spoiled(&case.weight, 48..96), [3, 6, 8], &device, DType::F32);
    let y: Tensor<2> = grouped_matmul(x, &case.offsets, weight);
    for (row, values) in values(&y).chunks(6).enumerate() {
        assert_eq!(values.iter().all(|y| y.is_nan()), (5..11).contains(&row), "row {row}");
        assert_eq!(values.iter().any(|y| y.is_nan()), (5..11).contains(&row), "row {row}");
    }
}

/// Results and gradients of `x`, the weights and both matrices.
fn experts(
    slots: &Arc<SortedSlots>,
    [width, inner]: [usize; 2],
    device: &Device,
    dtype: DType,
) -> [Vec<f64>; 5] {
    let (tokens, experts, device) = (slots.tokens(), slots.experts(), device.clone().autodiff());
    let mut numbers = Numbers(11);
    let x = tensor(&digits(&mut numbers, tokens * width), [tokens, width], &device, dtype).require_grad();
    let weights = digits(&mut numbers, slots.weights());
    let weights = tensor(&weights, [slots.weights(), 1], &device, sums(dtype)).require_grad();
    let gate_up = digits(&mut numbers, experts * 2 * inner * width);
    let gate_up = tensor(&gate_up, [experts, 2 * inner, width], &device, dtype).require_grad();
    let down = digits(&mut numbers, experts * width * inner);
    let down = tensor(&down, [experts, width, inner], &device, dtype).require_grad();
    let y =
        gated_experts(x.clone(), weights.clone(), slots, gate_up.clone(), down.clone(), Activation::Swish);
    assert_eq!(y.dtype(), dtype);
    let w = tensor(&digits(&mut numbers, tokens * width), [tokens, width], &device, dtype);
    let gradients = (y.clone() * w).cast(sums(dtype)).sum().backward();
    [
        values(&y),
        gradient(&x, &gradients),
        gradient(&weights, &gradients),
        gradient(&gate_up, &gradients),
        gradient(&down, &gradients),
    ]
}

#[test]
fn experts_match_the_portable_form() {
    // Token 2 has no slot, token 1 has three, weight 3 belongs to none, expert 1 has no rows.
    let few = SortedSlots::new(4, 7, vec![1, 3, 0, 1, 3, 1], vec![6, 0, 2, 1, 4, 5], vec![0, 2, 2, 6]);
    // Two experts for each of fifty tokens.
    let slots = [0, 1, 2]
        .map(|expert| (0..100).filter(|slot| (slot / 2 + slot % 2) % 3 == expert).collect::<Vec<_>>());
    let offsets = vec![0, slots[0].len(), slots[0].len() + slots[1].len(), 100];
    let order = slots.concat();
    let many = SortedSlots::new(50, 100, order.iter().map(|slot| slot / 2).collect(), order, offsets);
    for (slots, sizes) in [(few, [6, 5]), (many, [12, 16])] {
        let slots = Arc::new(slots);
        let want = experts(&slots, sizes, &Device::ndarray(), DType::F64);
        for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F16, 4e-3)] {
            if gpu().supports_dtype(dtype) {
                let got = experts(&slots, sizes, &gpu(), dtype);
                for (name, (got, want)) in
                    ["y", "dx", "dweights", "dgate_up", "ddown"].into_iter().zip(got.iter().zip(&want))
                {
                    close(&format!("{name} of experts {sizes:?}, {dtype:?}"), got, want, tolerance);
                }
            }
        }
    }
}
