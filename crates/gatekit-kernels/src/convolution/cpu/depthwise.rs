//! One filter a channel: loops over rows.

use std::mem::MaybeUninit;

use super::{Finish, Sizes};
use crate::{
    float::dot,
    loops::{Loop, run_all},
    memory::filled,
    simd::Arithmetic,
};

/// Places along one axis that see a place of the kernel.
struct Span {
    /// First position of the result, and one after the last.
    from: usize,
    to: usize,
    /// The pixel that the first of them sees.
    pixel: usize,
}

impl Sizes {
    fn span(&self, axis: usize, place: usize) -> Span {
        let from = self.padding.saturating_sub(place).div_ceil(self.stride);
        let last = self.image[axis] + self.padding - place.min(self.image[axis] + self.padding);
        let to = last.div_ceil(self.stride).min(self.result[axis]);
        Span { from, to: to.max(from), pixel: (from * self.stride + place).saturating_sub(self.padding) }
    }

    /// Calls `visit` with rows that see one another through a place of the kernel: the first position of the row of the
    /// result, how many, the first pixel of the image, and the place.
    #[inline(always)]
    fn rows(&self, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let [rows, columns] = self.kernel;
        for u in 0..rows {
            let down = self.span(0, u);
            for v in 0..columns {
                let across = self.span(1, v);
                let count = across.to - across.from;
                if count == 0 {
                    continue;
                }
                for i in down.from..down.to {
                    let y = down.pixel + (i - down.from) * self.stride;
                    let position = i * self.result[1] + across.from;
                    visit(position, count, y * self.image[1] + across.pixel, u * columns + v);
                }
            }
        }
    }
}

/// `[batch, channels, result]`.
pub(in super::super) fn forward(sizes: &Sizes, x: &[f32], weight: &[f32], finish: Finish) -> Vec<f32> {
    let elements = sizes.batch * sizes.channels * sizes.positions();
    let fill = |[y]: [&mut [MaybeUninit<f32>]; 1]| {
        let planes = y.chunks_exact_mut(sizes.positions()).zip(x.chunks_exact(sizes.pixels()));
        let filters = weight.chunks_exact(sizes.places()).enumerate().cycle();
        let jobs = planes.zip(filters).map(|((y, x), (channel, weight))| Forward {
            sizes,
            x,
            weight,
            channel,
            finish: &finish,
            y,
        });
        run_all(elements, jobs.collect());
    };
    // SAFETY: every job writes all of its plane, and the planes cover the result.
    let [y] = unsafe { filled([elements], fill) };
    y
}

struct Forward<'a> {
    sizes: &'a Sizes,
    x: &'a [f32],
    weight: &'a [f32],
    channel: usize,
    finish: &'a Finish<'a>,
    y: &'a mut [MaybeUninit<f32>],
}

impl Loop for Forward<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { sizes, x, weight, channel, finish, y } = self;
        let y = zeroed(y);
        sizes.rows(|position, count, pixel, place| {
            let weight = weight[place];
            let y = &mut y[position..position + count];
            if sizes.stride == 1 {
                for (y, x) in y.iter_mut().zip(&x[pixel..pixel + count]) {
                    *y = A::mul_add(weight, *x, *y);
                }
            } else {
                for (y, x) in y.iter_mut().zip(x[pixel..].iter().step_by(sizes.stride)) {
                    *y = A::mul_add(weight, *x, *y);
                }
            }
        });
        finish.apply::<A>(channel, y);
    }
}

#[inline(always)]
fn zeroed(place: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    for element in place.iter_mut() {
        element.write(0.0);
    }
    // SAFETY: just written.
    unsafe { std::slice::from_raw_parts_mut(place.as_mut_ptr().cast(), place.len()) }
}

/// The gradient of the image.
pub(in super::super) fn image_gradient(sizes: &Sizes, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let elements = sizes.batch * sizes.channels * sizes.pixels();
    let fill = |[dx]: [&mut [MaybeUninit<f32>]; 1]| {
        let planes = dx.chunks_exact_mut(sizes.pixels()).zip(dy.chunks_exact(sizes.positions()));
        let filters = weight.chunks_exact(sizes.places()).cycle();
        let jobs = planes.zip(filters).map(|((dx, dy), weight)| Image { sizes, dy, weight, dx });
        run_all(elements, jobs.collect());
    };
    // SAFETY: every job writes all of its plane, and the planes cover the result.
    let [dx] = unsafe { filled([elements], fill) };
    dx
}

struct Image<'a> {
    sizes: &'a Sizes,
    dy: &'a [f32],
    weight: &'a [f32],
    dx: &'a mut [MaybeUninit<f32>],
}

impl Loop for Image<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { sizes, dy, weight, dx } = self;
        let dx = zeroed(dx);
        sizes.rows(|position, count, pixel, place| {
            let weight = weight[place];
            let dy = &dy[position..position + count];
            if sizes.stride == 1 {
                for (dx, dy) in dx[pixel..pixel + count].iter_mut().zip(dy) {
                    *dx = A::mul_add(weight, *dy, *dx);
                }
            } else {
                for (dx, dy) in dx[pixel..].iter_mut().step_by(sizes.stride).zip(dy) {
                    *dx = A::mul_add(weight, *dy, *dx);
                }
            }
        });
    }
}

/// The gradient of the filters.
pub(in super::super) fn weight_gradient(sizes: &Sizes, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut dw = vec![0.0; sizes.channels * sizes.places()];
    let jobs = dw.chunks_exact_mut(sizes.places()).enumerate();
    let jobs = jobs.map(|(channel, dw)| Filter { sizes, x, dy, channel, dw });
    run_all(x.len(), jobs.collect());
    dw
}

struct Filter<'a> {
    sizes: &'a Sizes,
    x: &'a [f32],
    dy: &'a [f32],
    channel: usize,
    dw: &'a mut [f32],
}

impl Loop for Filter<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { sizes, x, dy, channel, dw } = self;
        for image in 0..sizes.batch {
            let plane = image * sizes.channels + channel;
            let x = &x[plane * sizes.pixels()..][..sizes.pixels()];
            let dy = &dy[plane * sizes.positions()..][..sizes.positions()];
            sizes.rows(|position, count, pixel, place| {
                let dy = &dy[position..position + count];
                dw[place] += if sizes.stride == 1 {
                    dot::<f32, A>(dy, &x[pixel..pixel + count])
                } else {
                    let pairs = dy.iter().zip(x[pixel..].iter().step_by(sizes.stride));
                    pairs.fold(0.0, |sum, (dy, x)| A::mul_add(*dy, *x, sum))
                };
            });
        }
    }
}
