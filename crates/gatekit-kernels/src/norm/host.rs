//! The norm as fused loops over rows, for the backends on host memory.

use std::mem::MaybeUninit;

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};

use super::{NormArguments, NormSpec, portable};
use crate::{
    gate::{Gate, Gated, GatedLoop},
    host::HostBackend,
    loops::{JOB, dot, run_all, sum_rows},
    memory::filled,
    precision::cast,
    simd::Arithmetic,
};

/// Elements of the rows of a job, which depend on the width of a row alone: so does the order in
/// which the gradient of the weight is summed. A job has some rows even when they are wide, as each
/// leaves one row of that sum.
fn job(dim: usize) -> usize {
    (JOB / dim).max(8) * dim
}

/// Whether the fused loops compute this norm; the others are left to the portable form.
fn is_fused<B: HostBackend>(arguments: &NormArguments<B>) -> bool {
    arguments.x.dtype() != DType::F64 && arguments.x.shape().num_elements() > 0
}

/// The forward pass.
pub(super) fn forward<B: HostBackend>(arguments: NormArguments<B>, spec: NormSpec) -> FloatTensor<B> {
    let dtype = arguments.x.dtype();
    if !is_fused(&arguments) {
        return portable::forward(arguments, spec);
    }
    let NormArguments { x, weight, logits } = &arguments.widened();
    let (values, weight) = (B::read(x), B::read(weight));
    // Without a gate the logits are never looked at.
    let z = if spec.gate.is_some() { B::read(logits) } else { B::read(x) };
    let (elements, job) = (values.len(), job(weight.len()));
    let (weight, eps) = (&*weight, spec.eps as f32);
    let fill = |[y]: [&mut [MaybeUninit<f32>]; 1]| {
        let pieces = values.chunks(job).zip(z.chunks(job)).zip(y.chunks_mut(job));
        let jobs = pieces.map(|((x, z), y)| Gated(spec.gate, Forward { x, weight, z, eps, y })).collect();
        run_all(elements, jobs);
    };
    // SAFETY: the pieces are whole rows and cover the result, and every job writes all of its rows.
    let [y] = unsafe { filled([elements], fill) };
    cast::<B>(B::write(y, x.shape()), dtype)
}

struct Forward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    z: &'a [f32],
    eps: f32,
    y: &'a mut [MaybeUninit<f32>],
}

/// `1 / sqrt(mean(x^2) + eps)` of a row.
#[inline(always)]
fn inverse<A: Arithmetic>(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot::<A>(x, x) / x.len() as f32 + eps).sqrt()
}

impl GatedLoop for Forward<'_> {
    #[inline(always)]
    fn run<A: Arithmetic, G: Gate>(self) {
        let dim = self.weight.len();
        let rows = self.x.chunks_exact(dim).zip(self.z.chunks_exact(dim));
        for ((x, z), y) in rows.zip(self.y.chunks_exact_mut(dim)) {
            let inverse = inverse::<A>(x, self.eps);
            for (((x, z), weight), y) in x.iter().zip(z).zip(self.weight).zip(y) {
                y.write(x * inverse * weight * G::value::<A>(*z));
            }
        }
    }
}

/// Gradients of `x`, the weight and the logits: the equations of the portable form.
pub(super) fn backward<B: HostBackend>(
    arguments: NormArguments<B>,
    gradient: FloatTensor<B>,
    spec: NormSpec,
) -> NormArguments<B> {
    let dtypes = arguments.dtypes();
    if !is_fused(&arguments) {
        return portable::backward(arguments, gradient, spec);
    }
    let NormArguments { x, weight, logits } = &arguments.widened();
    let gradient = cast::<B>(gradient, x.dtype());
    let (values, weight, dy) = (B::read(x), B::read(weight), B::read(&gradient));
    let z = if spec.gate.is_some() { B::read(logits) } else { B::read(x) };
    let (elements, dim) = (values.len(), weight.len());
    let job = job(dim);
    let mut parts = vec![0.0; elements.div_ceil(job) * dim];
    let (weight, eps) = (&*weight, spec.eps as f32);
    let logits_len = if spec.gate.is_some() { elements } else { 0 };
    let fill = |[dx, dz]: [&mut [MaybeUninit<f32>]; 2]| {
        let mut dz_pieces = dz.chunks_mut(job);
        let given = values.chunks(job).zip(z.chunks(job)).zip(dy.chunks(job));
        let jobs = given
            .zip(dx.chunks_mut(job).zip(parts.chunks_mut(dim)))
            .map(|(((x, z), dy), (dx, dweight))| {
                let dz = dz_pieces.next().unwrap_or_default();
                Gated(spec.gate, Backward { x, weight, z, dy, eps, dx, dz, dweight })
            })
            .collect();
        run_all(elements, jobs);
    };
    // SAFETY: the pieces are whole rows and cover the results, and every job writes all of its rows.
    let [dx, mut dz] = unsafe { filled([elements, logits_len], fill) };
    let mut dz_shape = x.shape();
    if spec.gate.is_none() {
        (dz, dz_shape) = (vec![0.0], Shape::new([1]));
    }
    NormArguments {
        x: B::write(dx, x.shape()),
        weight: B::write(sum_rows(&parts, dim), Shape::new([dim])),
        logits: B::write(dz, dz_shape),
    }
    .narrowed(dtypes)
}

struct Backward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    z: &'a [f32],
    dy: &'a [f32],
    eps: f32,
    dx: &'a mut [MaybeUninit<f32>],
    /// Empty without a gate.
    dz: &'a mut [MaybeUninit<f32>],
    /// Starts at 0.
    dweight: &'a mut [f32],
}

impl GatedLoop for Backward<'_> {
    #[inline(always)]
    fn run<A: Arithmetic, G: Gate>(self) {
        let dim = self.weight.len();
        // The gradient of the normalised row.
        let mut inner = vec![0.0f32; dim];
        let mut dz_rows = self.dz.chunks_exact_mut(dim);
        let rows = self.x.chunks_exact(dim).zip(self.z.chunks_exact(dim)).zip(self.dy.chunks_exact(dim));
        for (((x, z), dy), dx) in rows.zip(self.dx.chunks_exact_mut(dim)) {
            let inverse = inverse::<A>(x, self.eps);
            let columns = x.iter().zip(z).zip(dy).zip(self.weight);
            let sums = inner.iter_mut().zip(self.dweight.iter_mut());
            if G::IS_GATE {
                let dz = dz_rows.next().expect("a row of gradients for a row of logits");
                for (((((x, z), dy), weight), (inner, dweight)), dz) in columns.zip(sums).zip(dz) {
                    let n = x * inverse;
                    let (value, slope) = G::value_and_slope::<A>(*z);
                    let u = dy * value;
                    *inner = u * weight;
                    *dweight = A::mul_add(u, n, *dweight);
                    dz.write(dy * n * weight * slope);
                }
            } else {
                for ((((x, _), dy), weight), (inner, dweight)) in columns.zip(sums) {
                    *inner = dy * weight;
                    *dweight = A::mul_add(*dy, x * inverse, *dweight);
                }
            }
            let along = dot::<A>(&inner, x) * inverse / dim as f32;
            for ((x, inner), dx) in x.iter().zip(&inner).zip(dx) {
                dx.write(inverse * A::mul_add(-along, x * inverse, *inner));
            }
        }
    }
}
