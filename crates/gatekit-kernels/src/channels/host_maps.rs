//! Maps merged and mixed in one pass, for the backends on host memory.

use std::mem::MaybeUninit;

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};

use super::portable;
use crate::{
    host::HostBackend,
    loops::{Loop, run_all},
    memory::filled,
    simd::Arithmetic,
};

/// Whether the loops compute this; the rest is left to the portable form.
fn is_fused<B: HostBackend>(tensor: &FloatTensor<B>) -> bool {
    tensor.dtype() == DType::F32 && tensor.shape().num_elements() > 0
}

/// `scale (base + refined (1 + spatial) + gate guidance) + shift`.
pub(super) fn merge<B: HostBackend>(maps: [FloatTensor<B>; 5], rows: [FloatTensor<B>; 2]) -> FloatTensor<B> {
    if !is_fused::<B>(&maps[0]) {
        return portable::merge::<B>(maps, rows);
    }
    let shape = maps[0].shape();
    let (channels, places, elements) = (shape[1], shape[2], shape.num_elements());
    let rows = rows.each_ref().map(|row| B::read::<f32>(row));
    let maps = maps.each_ref().map(|map| B::read::<f32>(map));
    let [base, refined, spatial, gate, guidance] = maps.each_ref().map(|map| &**map);
    let fill = |[y]: [&mut [MaybeUninit<f32>]; 1]| {
        let jobs = y.chunks_exact_mut(places).enumerate().map(|(plane, y)| {
            let own = |map| plane_of(map, plane, places);
            let (image, channel) = (plane / channels, plane % channels);
            Merge {
                maps: [own(base), own(refined), plane_of(spatial, image, places), own(gate), own(guidance)],
                scale: rows[0][channel],
                shift: rows[1][channel],
                y,
            }
        });
        run_all(elements, jobs.collect());
    };
    // SAFETY: every job writes all of its plane, and the planes cover the result.
    let [y] = unsafe { filled([elements], fill) };
    B::write(y, shape)
}

fn plane_of(map: &[f32], plane: usize, places: usize) -> &[f32] {
    &map[plane * places..(plane + 1) * places]
}

struct Merge<'a> {
    maps: [&'a [f32]; 5],
    scale: f32,
    shift: f32,
    y: &'a mut [MaybeUninit<f32>],
}

impl Loop for Merge<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { maps, scale, shift, y } = self;
        let len = y.len();
        let [base, refined, spatial, gate, guidance] = maps.map(|map| &map[..len]);
        for i in 0..len {
            let sum = A::mul_add(refined[i], 1.0 + spatial[i], base[i]);
            let sum = A::mul_add(gate[i], guidance[i], sum);
            y[i].write(A::mul_add(scale, sum, shift));
        }
    }
}

/// `(1 + spatial) sum_m weights_m x_m`.
pub(super) fn mix<B: HostBackend>(
    x: FloatTensor<B>,
    weights: FloatTensor<B>,
    spatial: FloatTensor<B>,
) -> FloatTensor<B> {
    if !is_fused::<B>(&x) {
        return portable::mix::<B>(x, weights, spatial);
    }
    let (shape, groups) = (x.shape(), weights.shape()[1]);
    let (batch, channels, places) = (shape[0], shape[1] / groups, shape[2]);
    let (x, weights, spatial) = (B::read::<f32>(&x), B::read::<f32>(&weights), B::read::<f32>(&spatial));
    let elements = batch * channels * places;
    let fill = |[y]: [&mut [MaybeUninit<f32>]; 1]| {
        let jobs = y.chunks_exact_mut(places).enumerate().map(|(plane, y)| {
            let (image, channel) = (plane / channels, plane % channels);
            Mix {
                x: &x[(image * groups * channels + channel) * places..],
                apart: channels * places,
                weights: &weights[image * groups * places..][..groups * places],
                spatial: plane_of(&spatial, image, places),
                y,
            }
        });
        run_all(elements, jobs.collect());
    };
    // SAFETY: every job writes all of its plane, and the planes cover the result.
    let [y] = unsafe { filled([elements], fill) };
    B::write(y, Shape::new([batch, channels, places]))
}

struct Mix<'a> {
    /// The channel in every group, `apart` floats from one to the next.
    x: &'a [f32],
    apart: usize,
    weights: &'a [f32],
    spatial: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

impl Loop for Mix<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { x, apart, weights, spatial, y } = self;
        let places = y.len();
        for (y, (x, weight)) in y.iter_mut().zip(x.iter().zip(weights)) {
            y.write(x * weight);
        }
        // SAFETY: just written.
        let y: &mut [f32] = unsafe { std::slice::from_raw_parts_mut(y.as_mut_ptr().cast(), places) };
        for (group, weights) in weights.chunks_exact(places).enumerate().skip(1) {
            let x = &x[group * apart..][..places];
            for (y, (x, weight)) in y.iter_mut().zip(x.iter().zip(weights)) {
                *y = A::mul_add(*x, *weight, *y);
            }
        }
        for (y, spatial) in y.iter_mut().zip(spatial) {
            *y *= 1.0 + spatial;
        }
    }
}
