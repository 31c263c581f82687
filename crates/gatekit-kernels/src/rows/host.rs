//! Rows put together in host memory: every row of the result is written once, by one job.

use std::mem::MaybeUninit;

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use rayon::prelude::*;

use super::RowMap;
use crate::{
    host::{HostBackend, HostFloat},
    memory::{Filling, filled},
    precision::{cast, widen},
};

/// Elements that a job writes: what it reads and writes stays in the caches.
const JOB: usize = 1 << 15;

/// Elements below which waking other threads costs more than they save.
const SERIAL: usize = 1 << 17;

/// The result, in the type of `x`.
pub(super) fn combine<B: HostBackend>(x: FloatTensor<B>, map: &RowMap) -> FloatTensor<B> {
    let dtype = x.dtype();
    let [x] = widen::<B, 1>([x]);
    let y = match dtype {
        DType::F64 => combine_in::<B, f64>(&x, map),
        _ => combine_in::<B, f32>(&x, map),
    };
    cast::<B>(y, dtype)
}

fn combine_in<B: HostBackend, F: HostFloat>(x: &FloatTensor<B>, map: &RowMap) -> FloatTensor<B> {
    let width = x.shape()[1];
    B::write(combined(&B::read::<F>(x), map, width), Shape::new([map.targets(), width]))
}

fn combined<F: HostFloat>(x: &[F], map: &RowMap, width: usize) -> Vec<F> {
    assert!(x.len() == map.sources() * width);
    let targets = map.targets();
    let (rows, none) = ((JOB / width).max(1), vec![F::default(); width]);
    let row = |source: usize| &x[source * width..(source + 1) * width];
    // SAFETY: every target is in one job, which writes all of its row.
    let [y] = unsafe {
        filled([targets * width], |[y]: [&mut [MaybeUninit<F>]; 1]| {
            let y = Filling::unwritten(y);
            let job = |part: usize| {
                for target in part * rows..targets.min((part + 1) * rows) {
                    let sources = map.of_target(target);
                    y.write(target * width, sources.first().map_or(&none, |source| row(*source)));
                    let sum = y.written(target * width, width);
                    for source in sources.iter().skip(1) {
                        sum.iter_mut().zip(row(*source)).for_each(|(sum, x)| *sum += *x);
                    }
                }
            };
            let parts = targets.div_ceil(rows);
            match map.members().len() * width < SERIAL {
                true => (0..parts).for_each(job),
                false => (0..parts).into_par_iter().for_each(job),
            }
        })
    };
    y
}
