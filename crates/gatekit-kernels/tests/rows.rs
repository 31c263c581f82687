//! Rows that are picked and added against their definition, outputs and gradients, on every device.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use gatekit_kernels::rows::{RowMap, combine_rows};
use support::*;

fn all_devices() -> Vec<Device> {
    let mut all = devices();
    #[cfg(feature = "wgpu")]
    all.push(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice));
    all
}

fn maps(numbers: &mut Numbers, sources: usize) -> Vec<RowMap> {
    let mut below = |count: usize| ((numbers.next() + 1.0) * 0.5 * count as f64) as usize % count;
    let permutation: Vec<usize> = (0..sources).map(|row| (row * 7 + 3) % sources).collect();
    vec![
        RowMap::picking(sources, permutation),
        RowMap::picking(sources, (0..2 * sources + 1).map(|_| below(sources)).collect()),
        RowMap::picking(sources, vec![sources - 1]),
        // Some targets stay without a source.
        RowMap::adding(&(0..sources).map(|_| below(sources)).collect::<Vec<_>>(), sources + 2),
        RowMap::adding(&vec![1; sources], 2),
    ]
}

fn by_hand(x: &[f64], map: &RowMap, width: usize) -> Vec<f64> {
    let sums = (0..map.targets()).map(|target| {
        (0..width)
            .map(move |at| map.of_target(target).iter().map(|source| x[source * width + at]).sum::<f64>())
    });
    sums.flatten().collect()
}

/// `sum_t w_t . y_t` has the gradient `sum of w_t over the targets t of s` at source s.
fn gradient_by_hand(w: &[f64], map: &RowMap, width: usize) -> Vec<f64> {
    let mut gradient = vec![0.0; map.sources() * width];
    for target in 0..map.targets() {
        for source in map.of_target(target) {
            (0..width).for_each(|at| gradient[source * width + at] += w[target * width + at]);
        }
    }
    gradient
}

#[test]
fn rows_are_added_and_gradients_brought_back() {
    // 10 is no multiple of 7, so that the permutation is one; the last is worth several jobs.
    for (sources, width) in [(1, 1), (10, 3), (10, 8), (1500, 260)] {
        let mut numbers = Numbers(sources as u64);
        for map in maps(&mut numbers, sources).into_iter().map(Arc::new) {
            let (x, w) = (numbers.many(sources * width), numbers.many(map.targets() * width));
            for device in all_devices() {
                for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-13), (DType::F16, 4e-3)] {
                    if !device.supports_dtype(dtype) || (dtype != DType::F32 && sources > 100) {
                        continue;
                    }
                    let x = tensor(&x, [sources, width], &device.clone().autodiff(), dtype).require_grad();
                    let y = combine_rows(x.clone(), &map);
                    let name = format!("{device:?} {dtype:?} {sources} {width}");
                    close(&name, &values(&y), &by_hand(&values(&x), &map, width), tolerance);
                    let w = tensor(&w, [map.targets(), width], &x.device(), dtype);
                    let gradients = (y * w.clone()).sum().backward();
                    let want = gradient_by_hand(&values(&w), &map, width);
                    close(&name, &gradient(&x, &gradients), &want, tolerance);
                }
            }
        }
    }
}

#[test]
fn transposed_arguments_and_no_rows() {
    for device in all_devices() {
        let mut numbers = Numbers(5);
        let x = tensor(&numbers.many(12), [3, 4], &device, DType::F32);
        let map = Arc::new(RowMap::picking(4, vec![3, 3, 1]));
        let want = by_hand(&values(&x.clone().transpose()), &map, 3);
        close("transposed", &values(&combine_rows(x.clone().transpose(), &map)), &want, 0.0);
        let none = combine_rows(x.clone(), &Arc::new(RowMap::picking(3, vec![])));
        assert_eq!(none.dims(), [0, 4]);
        let zeros = combine_rows(Tensor::zeros([0, 4], &device), &Arc::new(RowMap::adding(&[], 2)));
        assert_eq!(values(&zeros), [0.0; 8]);
    }
}

#[test]
#[should_panic(expected = "combine_rows: `x` has 2 rows, the map 3 sources")]
fn another_number_of_rows_is_refused() {
    combine_rows(Tensor::zeros([2, 1], &devices()[0]), &Arc::new(RowMap::picking(3, vec![0])));
}
