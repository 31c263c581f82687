//! Convolutions on slices of memory.
//!
//! Positions of the result are columns of a matrix product and outputs its rows; its depth are channels and places of the
//! kernel. A panel of positions is brought together from the image, at most as deep as the first-level cache is large,
//! and multiplied with all rows. An element of a result is always summed in the same order, so results do not depend on
//! the number of threads.

mod depthwise;
mod patches;
mod product;
mod weights;

pub(super) use depthwise::{
    forward as depthwise_forward, image_gradient as depthwise_image_gradient,
    weight_gradient as depthwise_weight_gradient,
};
pub(super) use product::{forward, image_gradient};
pub(super) use weights::weight_gradient;

use crate::{
    gate::{Activation, Gate, Gated, GatedLoop},
    loops::Loop,
    simd::Arithmetic,
};

/// What becomes of the outputs: `act(scale y + bias)`.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) scale: Option<&'a [f32]>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) activation: Option<Activation>,
}

impl Finish<'_> {
    /// Sums that are left as they are.
    const NONE: Self = Self { scale: None, bias: None, activation: None };

    /// Finishes values of an output.
    #[inline(always)]
    fn apply<A: Arithmetic>(&self, output: usize, values: &mut [f32]) {
        if self.scale.is_some() || self.bias.is_some() || self.activation.is_some() {
            let scale = self.scale.map_or(1.0, |scale| scale[output]);
            let bias = self.bias.map_or(0.0, |bias| bias[output]);
            Gated(self.activation, Values { values, scale, bias }).run::<A>();
        }
    }
}

/// Values of one output.
struct Values<'a> {
    values: &'a mut [f32],
    scale: f32,
    bias: f32,
}

impl GatedLoop for Values<'_> {
    #[inline(always)]
    fn run<A: Arithmetic, G: Gate>(self) {
        for value in self.values {
            let y = A::mul_add(self.scale, *value, self.bias);
            *value = if G::IS_GATE { G::value::<A>(y) } else { y };
        }
    }
}

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) channels: usize,
    pub(super) outputs: usize,
    /// Height and width, as everywhere.
    pub(super) image: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) result: [usize; 2],
    pub(super) stride: usize,
    pub(super) padding: usize,
}

impl Sizes {
    /// Pixels of the image.
    fn pixels(&self) -> usize {
        self.image[0] * self.image[1]
    }

    /// Positions of the result.
    fn positions(&self) -> usize {
        self.result[0] * self.result[1]
    }

    /// Places of the kernel.
    fn places(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// Sums of the planes of every channel, over the batch.
pub(super) fn channel_sums(values: &[f32], channels: usize, plane: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; channels];
    for (index, plane) in values.chunks_exact(plane).enumerate() {
        let mut lanes = [0.0f32; 16];
        let (whole, rest) = plane.as_chunks::<16>();
        let mut sum = 0.0;
        for part in whole.chunks(64) {
            lanes.fill(0.0);
            for values in part {
                lanes.iter_mut().zip(values).for_each(|(lane, value)| *lane += value);
            }
            sum += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
        }
        sums[index % channels] += sum + rest.iter().map(|value| f64::from(*value)).sum::<f64>();
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}
