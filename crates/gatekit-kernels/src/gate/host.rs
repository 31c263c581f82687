//! The gates as fused loops over slices, for the backends on host memory.

use std::mem::MaybeUninit;

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::DType,
};

use super::{Activation, Gate, Gated, GatedLoop, portable};
use crate::{
    host::HostBackend,
    loops::{self, JOB, Loop, run_all},
    memory::filled,
    precision::{cast, narrow, widen},
    simd::Arithmetic,
};

/// `x * act(logits)`.
pub(super) fn product<B: HostBackend>(
    x: FloatTensor<B>,
    logits: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    if dtype == DType::F64 {
        return portable::product::<B>(x, logits, activation);
    }
    let [x, logits] = widen::<B, 2>([x, logits]);
    let (values, z) = (B::read(&x), B::read(&logits));
    let elements = values.len();
    let fill = |[y]: [&mut [MaybeUninit<f32>]; 1]| {
        let pieces = values.chunks(JOB).zip(z.chunks(JOB)).zip(y.chunks_mut(JOB));
        let jobs = pieces.map(|((x, z), y)| Gated(Some(activation), Product { x, z, y })).collect();
        run_all(elements, jobs);
    };
    // SAFETY: the pieces cover the result, and a product writes all of its piece.
    let [y] = unsafe { filled([elements], fill) };
    cast::<B>(B::write(y, x.shape()), dtype)
}

struct Product<'a> {
    x: &'a [f32],
    z: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

impl GatedLoop for Product<'_> {
    #[inline(always)]
    fn run<A: Arithmetic, G: Gate>(self) {
        for ((x, z), y) in self.x.iter().zip(self.z).zip(self.y) {
            y.write(x * G::value::<A>(*z));
        }
    }
}

/// Gradients of `x` and of the logits.
pub(super) fn product_backward<B: HostBackend>(
    x: FloatTensor<B>,
    logits: FloatTensor<B>,
    gradient: FloatTensor<B>,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtypes = [x.dtype(), logits.dtype()];
    if x.dtype() == DType::F64 {
        return portable::product_backward::<B>(x, logits, gradient, activation);
    }
    let [x, logits, gradient] = widen::<B, 3>([x, logits, gradient]);
    let (values, z, dy) = (B::read(&x), B::read(&logits), B::read(&gradient));
    let elements = values.len();
    let fill = |[dx, dz]: [&mut [MaybeUninit<f32>]; 2]| {
        let given = values.chunks(JOB).zip(z.chunks(JOB)).zip(dy.chunks(JOB));
        let pieces = given.zip(dx.chunks_mut(JOB)).zip(dz.chunks_mut(JOB));
        let jobs = pieces
            .map(|((((x, z), dy), dx), dz)| Gated(Some(activation), ProductBackward { x, z, dy, dx, dz }))
            .collect();
        run_all(elements, jobs);
    };
    // SAFETY: the pieces cover both results, and every job writes all of its pieces.
    let [dx, dz] = unsafe { filled([elements; 2], fill) };
    narrow::<B, 2>([dx, dz].map(|values| B::write(values, x.shape())), dtypes).into()
}

struct ProductBackward<'a> {
    x: &'a [f32],
    z: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [MaybeUninit<f32>],
    dz: &'a mut [MaybeUninit<f32>],
}

impl GatedLoop for ProductBackward<'_> {
    #[inline(always)]
    fn run<A: Arithmetic, G: Gate>(self) {
        let given = self.x.iter().zip(self.z).zip(self.dy);
        for (((x, z), dy), (dx, dz)) in given.zip(self.dx.iter_mut().zip(self.dz)) {
            let (value, slope) = G::value_and_slope::<A>(*z);
            dx.write(dy * value);
            dz.write(dy * x * slope);
        }
    }
}

/// `max(logsigmoid(z) / normalizer, floor)`.
pub(super) fn log_sigmoid<B: HostBackend>(
    logits: FloatTensor<B>,
    normalizer: f64,
    floor: Option<f64>,
) -> FloatTensor<B> {
    let dtype = logits.dtype();
    if dtype == DType::F64 {
        return portable::log_sigmoid::<B>(logits, normalizer, floor);
    }
    let [logits] = widen::<B, 1>([logits]);
    let z = B::read(&logits);
    let scale = Scale::new(normalizer, floor);
    let fill = |[y]: [&mut [MaybeUninit<f32>]; 1]| {
        let pieces = z.chunks(JOB).zip(y.chunks_mut(JOB));
        run_all(z.len(), pieces.map(|(z, y)| LogSigmoid { z, y, scale }).collect());
    };
    // SAFETY: the pieces cover the result, and every job writes all of its piece.
    let [y] = unsafe { filled([z.len()], fill) };
    cast::<B>(B::write(y, logits.shape()), dtype)
}

/// Gradient of the logits.
pub(super) fn log_sigmoid_backward<B: HostBackend>(
    logits: FloatTensor<B>,
    gradient: FloatTensor<B>,
    normalizer: f64,
    floor: Option<f64>,
) -> FloatTensor<B> {
    let dtype = logits.dtype();
    if dtype == DType::F64 {
        return portable::log_sigmoid_backward::<B>(logits, gradient, normalizer, floor);
    }
    let [logits, gradient] = widen::<B, 2>([logits, gradient]);
    let (z, dy) = (B::read(&logits), B::read(&gradient));
    let scale = Scale::new(normalizer, floor);
    let fill = |[dz]: [&mut [MaybeUninit<f32>]; 1]| {
        let pieces = z.chunks(JOB).zip(dy.chunks(JOB)).zip(dz.chunks_mut(JOB));
        run_all(z.len(), pieces.map(|((z, dy), dz)| LogSigmoidBackward { z, dy, dz, scale }).collect());
    };
    // SAFETY: the pieces cover the result, and every job writes all of its piece.
    let [dz] = unsafe { filled([z.len()], fill) };
    cast::<B>(B::write(dz, logits.shape()), dtype)
}

#[derive(Clone, Copy)]
struct Scale {
    normalizer: f32,
    floor: f32,
}

impl Scale {
    fn new(normalizer: f64, floor: Option<f64>) -> Self {
        Self { normalizer: normalizer as f32, floor: floor.map_or(f32::NEG_INFINITY, |floor| floor as f32) }
    }

    /// The gate before its floor.
    #[inline(always)]
    fn gate<A: Arithmetic>(self, z: f32) -> f32 {
        loops::log_sigmoid::<A>(z) / self.normalizer
    }
}

struct LogSigmoid<'a> {
    z: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
    scale: Scale,
}

impl Loop for LogSigmoid<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        for (z, y) in self.z.iter().zip(self.y) {
            let gate = self.scale.gate::<A>(*z);
            y.write(if gate < self.scale.floor { self.scale.floor } else { gate });
        }
    }
}

struct LogSigmoidBackward<'a> {
    z: &'a [f32],
    dy: &'a [f32],
    dz: &'a mut [MaybeUninit<f32>],
    scale: Scale,
}

impl Loop for LogSigmoidBackward<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        for ((z, dy), dz) in self.z.iter().zip(self.dy).zip(self.dz) {
            let (_, closed) = loops::logistic::<A>(*z);
            let slope = closed / self.scale.normalizer;
            dz.write(if self.scale.gate::<A>(*z) < self.scale.floor { 0.0 } else { dy * slope });
        }
    }
}
