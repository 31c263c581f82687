//! The normalisation of channels as fused loops over planes, for the backends on host memory.
//!
//! A job has all planes of a channel, so that sums are made in an order that depends on the shape alone. Sums over some
//! floats are made in float32, those over all in float64.

use std::mem::MaybeUninit;

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};

use super::{ChannelArguments, ChannelNormSpec, portable};
use crate::{
    float::sum16,
    gate::{Gate, Gated, GatedLoop},
    host::HostBackend,
    loops::{Loop, run_all},
    memory::{Filling, filled},
    simd::Arithmetic,
};

/// Floats that are summed in float32.
const PART: usize = 1024;

/// Whether the loops compute this; other types are left to the portable form.
fn is_fused<B: HostBackend>(tensors: &[&FloatTensor<B>]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32 && tensor.shape().num_elements() > 0)
}

/// Planes of the channels of a batch.
#[derive(Clone, Copy)]
struct Planes {
    batch: usize,
    channels: usize,
    places: usize,
}

impl Planes {
    fn of<B: HostBackend>(x: &FloatTensor<B>) -> Self {
        let shape = x.shape();
        Self { batch: shape[0], channels: shape[1], places: shape[2] }
    }

    fn len(self) -> usize {
        self.batch * self.channels * self.places
    }

    /// Where the planes of a channel begin.
    fn starts(self, channel: usize) -> impl Iterator<Item = usize> {
        (0..self.batch).map(move |image| (image * self.channels + channel) * self.places)
    }

    /// Floats of a channel.
    fn count(self) -> f64 {
        (self.batch * self.places) as f64
    }
}

/// The sum of `value` over a short slice.
#[inline(always)]
fn sum_of(values: &[f32], value: impl Fn(f32) -> f32) -> f32 {
    let (whole, rest) = values.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for values in whole {
        for i in 0..16 {
            sums[i] += value(values[i]);
        }
    }
    sum16(&sums) + rest.iter().map(|x| value(*x)).sum::<f32>()
}

/// Mean and variance.
pub(super) fn statistics<B: HostBackend>(x: FloatTensor<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    if !is_fused::<B>(&[&x]) {
        return portable::statistics::<B>(x);
    }
    let (planes, x) = (Planes::of::<B>(&x), B::read::<f32>(&x));
    let (mut mean, mut variance) = (vec![0.0; planes.channels], vec![0.0; planes.channels]);
    let places = mean.iter_mut().zip(&mut variance).enumerate();
    let jobs =
        places.map(|(channel, (mean, variance))| Statistics { planes, x: &x, channel, mean, variance });
    run_all(planes.len(), jobs.collect());
    let write = |values| B::write(values, Shape::new([planes.channels]));
    (write(mean), write(variance))
}

struct Statistics<'a> {
    planes: Planes,
    x: &'a [f32],
    channel: usize,
    mean: &'a mut f32,
    variance: &'a mut f32,
}

impl Loop for Statistics<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        // Parts are joined by their means and squares around them (Chan et al.): no square is larger than it must be.
        let (mut count, mut mean, mut squares) = (0.0f64, 0.0f64, 0.0f64);
        for start in self.planes.starts(self.channel) {
            for part in self.x[start..start + self.planes.places].chunks(PART) {
                let own = sum_of(part, |x| x) / part.len() as f32;
                let around = sum_of(part, |x| (x - own) * (x - own));
                let (more, apart) = (part.len() as f64, f64::from(own) - mean);
                let all = count + more;
                mean += apart * more / all;
                squares += f64::from(around) + apart * apart * count * more / all;
                count = all;
            }
        }
        *self.mean = mean as f32;
        *self.variance = (squares / count) as f32;
    }
}

/// `y = scale (x - mean) + beta` of a channel.
#[derive(Clone, Copy)]
struct Affine {
    scale: f32,
    mean: f32,
    beta: f32,
}

impl Affine {
    fn new(arguments: [&[f32]; 4], epsilon: f64, channel: usize) -> Self {
        let [gamma, beta, mean, variance] = arguments.map(|values| values[channel]);
        let scale = f64::from(gamma) / (f64::from(variance) + epsilon).sqrt();
        Self { scale: scale as f32, mean, beta }
    }

    #[inline(always)]
    fn apply<A: Arithmetic>(self, x: f32) -> f32 {
        A::mul_add(self.scale, x - self.mean, self.beta)
    }
}

/// The forward pass.
pub(super) fn forward<B: HostBackend>(
    arguments: ChannelArguments<B>,
    spec: ChannelNormSpec,
) -> FloatTensor<B> {
    let ChannelArguments { x, gamma, beta, mean, variance } = &arguments;
    if !is_fused::<B>(&[x, gamma, beta, mean, variance]) {
        return portable::forward::<B>(arguments, spec);
    }
    let (planes, values) = (Planes::of::<B>(x), B::read::<f32>(x));
    let rows = [gamma, beta, mean, variance].map(|tensor| B::read::<f32>(tensor));
    let rows = rows.each_ref().map(|row| &**row);
    let fill = |[y]: [&mut [MaybeUninit<f32>]; 1]| {
        let pairs = values.chunks_exact(planes.places).zip(y.chunks_exact_mut(planes.places));
        let jobs = pairs.enumerate().map(|(index, (x, y))| {
            let affine = Affine::new(rows, spec.epsilon, index % planes.channels);
            Gated(spec.activation, Forward { x, y, affine })
        });
        run_all(planes.len(), jobs.collect());
    };
    // SAFETY: every job writes all of its plane, and the planes cover the result.
    let [y] = unsafe { filled([planes.len()], fill) };
    B::write(y, x.shape())
}

struct Forward<'a> {
    x: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
    affine: Affine,
}

impl GatedLoop for Forward<'_> {
    #[inline(always)]
    fn run<A: Arithmetic, G: Gate>(self) {
        for (x, y) in self.x.iter().zip(self.y) {
            let z = self.affine.apply::<A>(*x);
            y.write(if G::IS_GATE { G::value::<A>(z) } else { z });
        }
    }
}

/// Gradients of `x`, `gamma` and `beta`.
pub(super) fn backward<B: HostBackend>(
    arguments: ChannelArguments<B>,
    gradient: FloatTensor<B>,
    spec: ChannelNormSpec,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let ChannelArguments { x, gamma, beta, mean, variance } = &arguments;
    if !is_fused::<B>(&[x, gamma, beta, mean, variance, &gradient]) {
        return portable::backward::<B>(arguments, gradient, spec);
    }
    let (planes, values, dy) = (Planes::of::<B>(x), B::read::<f32>(x), B::read::<f32>(&gradient));
    let rows = [gamma, beta, mean, variance].map(|tensor| B::read::<f32>(tensor));
    let rows = rows.each_ref().map(|row| &**row);
    let (mut dgamma, mut dbeta) = (vec![0.0; planes.channels], vec![0.0; planes.channels]);
    let fill = |[dx]: [&mut [MaybeUninit<f32>]; 1]| {
        let dx = Filling::unwritten(dx);
        let places = dgamma.iter_mut().zip(&mut dbeta).enumerate();
        let jobs = places.map(|(channel, (dgamma, dbeta))| {
            let (x, dy, dx) = (&*values, &*dy, &dx);
            Gated(spec.activation, Backward { planes, x, dy, rows, spec, channel, dx, dgamma, dbeta })
        });
        run_all(planes.len(), jobs.collect());
    };
    // SAFETY: every job writes all planes of its channel.
    let [dx] = unsafe { filled([planes.len()], fill) };
    let write = |values| B::write(values, Shape::new([planes.channels]));
    (B::write(dx, x.shape()), write(dgamma), write(dbeta))
}

struct Backward<'a> {
    planes: Planes,
    x: &'a [f32],
    dy: &'a [f32],
    rows: [&'a [f32]; 4],
    spec: ChannelNormSpec,
    channel: usize,
    dx: &'a Filling<'a>,
    dgamma: &'a mut f32,
    dbeta: &'a mut f32,
}

impl GatedLoop for Backward<'_> {
    #[inline(always)]
    fn run<A: Arithmetic, G: Gate>(self) {
        let Self { planes, x, dy, rows, spec, channel, dx, dgamma, dbeta } = self;
        let affine = Affine::new(rows, spec.epsilon, channel);
        let Affine { scale, mean, .. } = affine;
        let inverse = (1.0 / (f64::from(rows[3][channel]) + spec.epsilon).sqrt()) as f32;
        // First the gradients before the activation, and their sums.
        let (mut sum, mut along) = (0.0f64, 0.0f64);
        for start in planes.starts(channel) {
            for at in (start..start + planes.places).step_by(PART) {
                let len = (start + planes.places - at).min(PART);
                let (x, dy) = (&x[at..at + len], &dy[at..at + len]);
                // SAFETY: no other job has this channel; the memory is ours to write before it is read.
                let dz = unsafe { dx.uninitialised(at, len) };
                if G::IS_GATE {
                    for ((dz, x), dy) in dz.iter_mut().zip(x).zip(dy) {
                        let z = affine.apply::<A>(*x);
                        dz.write(dy * G::value_and_slope::<A>(z).1);
                    }
                } else {
                    dz.write_copy_of_slice(dy);
                }
                // SAFETY: written just now.
                let dz = unsafe { dx.written(at, len) };
                let [plain, product] = sums(x, dz, mean);
                sum += f64::from(plain);
                along += f64::from(product);
            }
        }
        *dbeta = sum as f32;
        *dgamma = (along * f64::from(inverse)) as f32;
        // dx = scale (dz - mean of dz - normal mean of (dz normal)), as dz scale + x a + b.
        let (a, b) = match spec.of_x {
            true => {
                let of_normal = along * f64::from(inverse) / planes.count();
                let a = -f64::from(scale) * f64::from(inverse) * of_normal;
                (a as f32, (-f64::from(scale) * sum / planes.count() - a * f64::from(mean)) as f32)
            }
            false => (0.0, 0.0),
        };
        for start in planes.starts(channel) {
            // SAFETY: written above, by this job alone.
            let dx = unsafe { dx.written(start, planes.places) };
            for (dx, x) in dx.iter_mut().zip(&x[start..start + planes.places]) {
                *dx = A::mul_add(scale, *dx, A::mul_add(a, *x, b));
            }
        }
    }
}

/// Sums of `dz` and `dz (x - mean)` over a short slice.
#[inline(always)]
fn sums(x: &[f32], dz: &[f32], mean: f32) -> [f32; 2] {
    let ((x, x_rest), (dz, dz_rest)) = (x.as_chunks::<16>(), dz.as_chunks::<16>());
    let (mut plain, mut product) = ([0.0f32; 16], [0.0f32; 16]);
    for (x, dz) in x.iter().zip(dz) {
        for i in 0..16 {
            plain[i] += dz[i];
            product[i] += dz[i] * (x[i] - mean);
        }
    }
    let mut rest = [0.0f32; 2];
    for (x, dz) in x_rest.iter().zip(dz_rest) {
        rest[0] += dz;
        rest[1] += dz * (x - mean);
    }
    [sum16(&plain) + rest[0], sum16(&product) + rest[1]]
}
