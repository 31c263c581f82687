//! The two-dimensional Fourier transform of real maps, as matrix products.
//!
//! A map of H by W values costs `H W (H + W)` multiplications a direction instead of `H W log(H W)`; in return the
//! gradient is that of two matrix products, sizes are free (odd and prime ones included), and at the sides up to 256
//! that networks use the products are fast. Cosines and sines are kept for each size, type and device.

use burn::tensor::Tensor;

use crate::common::widen;
use crate::constant::matrix;

/// The half of the spectrum of real maps that determines the other half: frequencies `0 ..= W / 2` along columns.
#[derive(Debug, Clone)]
pub struct Spectrum {
    /// Real part, `[B, C, H, W / 2 + 1]`.
    pub re: Tensor<4>,
    /// Imaginary part, of the same shape.
    pub im: Tensor<4>,
}

/// `X[u, v] = sum_{y, x} x[y, x] exp(-2 pi i (u y / H + v x / W))`, for `v = 0 ..= W / 2`; not normalised.
///
/// `x` `[B, C, H, W]` to `[B, C, H, W / 2 + 1]`, in at least float32. The other half is `X[u, v] = conj(X[-u, -v])`.
///
/// # Panics
///
/// When H or W is 0.
pub fn rfft2(x: Tensor<4>) -> Spectrum {
    let [batch, channels, height, width] = x.dims();
    assert!(height > 0 && width > 0, "rfft2: `x` {:?} has an empty side", x.dims());
    let (x, columns) = (widen(x), width / 2 + 1);
    let along = matrix("rfft2 along rows", [width, columns], &x, [width, 2 * columns], || {
        (0..width)
            .flat_map(|x| {
                let cosines = (0..columns).map(move |v| turn(x * v, width).0);
                cosines.chain((0..columns).map(move |v| -turn(x * v, width).1))
            })
            .collect()
    });
    let rows = x.reshape([batch * channels * height, width]).matmul(along);
    let quarters = across(rows.reshape([batch, channels, height, 2 * columns]));
    let [[cos_re, cos_im], [sin_re, sin_im]] = quarters;
    Spectrum { re: cos_re + sin_im, im: cos_im - sin_re }
}

/// The real maps of `width` columns with this spectrum, `x = 1 / (H W) sum X exp(+2 pi i ..)`: the inverse of [`rfft2`].
///
/// `[B, C, H, W / 2 + 1]` to `[B, C, H, W]`. What no real map has does not enter: the imaginary part of what the
/// columns `v = 0` and, for even W, `v = W / 2` become after their transform along the rows.
///
/// # Panics
///
/// When the parts differ in shape, a side is empty, or the spectrum does not have `width / 2 + 1` columns.
pub fn irfft2(spectrum: Spectrum, width: usize) -> Tensor<4> {
    let Spectrum { re, im } = spectrum;
    let [batch, channels, height, columns] = re.dims();
    assert!(
        im.dims() == re.dims() && height > 0 && width > 0 && columns == width / 2 + 1,
        "irfft2: parts of {:?} and {:?} are no spectrum of {width} columns",
        re.dims(),
        im.dims()
    );
    let [[cos_re, cos_im], [sin_re, sin_im]] = across(Tensor::cat(vec![widen(re), widen(im)], 3));
    let rows = Tensor::cat(vec![cos_re - sin_im, cos_im + sin_re], 3);
    let along = matrix("irfft2 along rows", [width, height], &rows, [2 * columns, width], || {
        let of_row = |v: usize, x: usize| {
            // A frequency stands for its mirror image too, unless it is its own.
            let share = if (2 * v).is_multiple_of(width) { 1.0 } else { 2.0 } / (height * width) as f64;
            let (cos, sin) = turn(v * x, width);
            (share * cos, -share * sin)
        };
        let cosines = (0..columns).flat_map(|v| (0..width).map(move |x| of_row(v, x).0));
        let sines = (0..columns).flat_map(|v| (0..width).map(move |x| of_row(v, x).1));
        cosines.chain(sines).collect()
    });
    rows.reshape([batch * channels * height, 2 * columns])
        .matmul(along)
        .reshape([batch, channels, height, width])
}

/// Products of the height's cosines and sines with both halves of the columns of `x` `[B, C, H, 2 K]`.
fn across(x: Tensor<4>) -> [[Tensor<4>; 2]; 2] {
    let [_, _, height, columns] = x.dims();
    let table = matrix("fourier across rows", [height, 1], &x, [2 * height, height], || {
        let cosines = (0..height).flat_map(|u| (0..height).map(move |y| turn(u * y, height).0));
        let sines = (0..height).flat_map(|u| (0..height).map(move |y| turn(u * y, height).1));
        cosines.chain(sines).collect()
    });
    let products = table.unsqueeze::<4>().matmul(x);
    [0, height].map(|row| {
        let half = products.clone().narrow(2, row, height);
        [0, columns / 2].map(|column| half.clone().narrow(3, column, columns / 2))
    })
}

/// Cosine and sine of `2 pi steps / whole`, exact at quarter turns.
fn turn(steps: usize, whole: usize) -> (f64, f64) {
    let steps = steps % whole;
    match (4 * steps).is_multiple_of(whole).then(|| 4 * steps / whole) {
        Some(0) => (1.0, 0.0),
        Some(1) => (0.0, 1.0),
        Some(2) => (-1.0, 0.0),
        Some(_) => (0.0, -1.0),
        None => {
            let (sin, cos) = (std::f64::consts::TAU * steps as f64 / whole as f64).sin_cos();
            (cos, sin)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};
    use burn::tensor::{DType, Device};

    const SIZES: [[usize; 2]; 7] = [[1, 1], [1, 5], [4, 1], [2, 2], [6, 4], [5, 7], [9, 12]];

    /// The spectrum by its definition.
    fn by_hand(x: &[f64], [height, width]: [usize; 2]) -> (Vec<f64>, Vec<f64>) {
        let value = |u: usize, v: usize| {
            let terms = (0..height * width).map(|at| {
                let (y, x_) = (at / width, at % width);
                let angle =
                    -TAU * (u as f64 * y as f64 / height as f64 + v as f64 * x_ as f64 / width as f64);
                (x[at] * angle.cos(), x[at] * angle.sin())
            });
            terms.fold((0.0, 0.0), |sum, term| (sum.0 + term.0, sum.1 + term.1))
        };
        (0..height).flat_map(|u| (0..=width / 2).map(move |v| (u, v))).map(|(u, v)| value(u, v)).unzip()
    }

    #[test]
    fn matches_its_definition_at_odd_and_even_sizes() {
        for device in devices() {
            for size @ [height, width] in SIZES {
                let x = ramp(2 * height * width, 1.0);
                let single = rfft2(float32(&x, [2, 1, height, width], &device));
                let double = rfft2(float64(&x, [2, 1, height, width], &device));
                assert_eq!(single.re.dims(), [2, 1, height, width / 2 + 1]);
                let (mut re, mut im) = (Vec::new(), Vec::new());
                for map in x.chunks(height * width) {
                    let (real, imaginary) = by_hand(map, size);
                    re.extend(real);
                    im.extend(imaginary);
                }
                assert_close(&values(single.re), &re, 2e-5);
                assert_close(&values(single.im), &im, 2e-5);
                assert_close(&values(double.re), &re, 1e-11);
                assert_close(&values(double.im), &im, 1e-11);
            }
        }
    }

    #[test]
    fn the_inverse_undoes_it() {
        for device in devices() {
            for [height, width] in SIZES.into_iter().chain([[16, 31], [64, 48], [3, 256]]) {
                let x = ramp(2 * height * width, 1.0);
                let there = rfft2(float64(&x, [1, 2, height, width], &device));
                assert_close(&values(irfft2(there, width)), &x, 1e-11);
                let there = rfft2(float32(&x, [1, 2, height, width], &device));
                assert_close(&values(irfft2(there, width)), &x, 2e-5);
            }
        }
    }

    #[test]
    fn imaginary_parts_that_no_map_has_do_not_enter() {
        let device = devices().remove(0);
        // Constant along rows: the transform of columns leaves them imaginary.
        let mut im = vec![0.0; 2 * 3];
        (im[0], im[2]) = (5.0, -7.0);
        let spectrum = |im: &[f64]| Spectrum {
            re: float64(&ramp(6, 1.0), [1, 1, 2, 3], &device),
            im: float64(im, [1, 1, 2, 3], &device),
        };
        let expected = values(irfft2(spectrum(&[0.0; 6]), 4));
        assert_close(&values(irfft2(spectrum(&im), 4)), &expected, 1e-12);
        // With 5 columns the last frequency is an ordinary one.
        let odd = values(irfft2(spectrum(&[0.0; 6]), 5));
        assert!(
            values(irfft2(spectrum(&im), 5))
                .iter()
                .zip(odd)
                .any(|(with, without)| (with - without).abs() > 0.1)
        );
    }

    #[test]
    fn gradients_match_finite_differences() {
        for device in devices() {
            for [height, width] in [[3, 4], [4, 5]] {
                let weight = |device: &Device, columns: usize| {
                    float64(&ramp(height * columns, 1.3), [1, 1, height, columns], device)
                };
                let columns = width / 2 + 1;
                check_gradients(&ramp(height * width, 1.0), [1, 1, height, width], &device, |x| {
                    let spectrum = rfft2(x);
                    spectrum.re.square() * weight(&device, columns) + spectrum.im
                });
                check_gradients(
                    &ramp(2 * height * columns, 1.0),
                    [2, 1, height, columns],
                    &device,
                    |parts| {
                        let spectrum =
                            Spectrum { re: parts.clone().narrow(0, 0, 1), im: parts.narrow(0, 1, 1) };
                        irfft2(spectrum, width) * weight(&device, width)
                    },
                );
            }
        }
    }

    #[test]
    fn half_precision_is_transformed_in_float32() {
        for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
            let ones = Tensor::<4>::ones([1, 1, 64, 64], (&device, DType::F16));
            let spectrum = rfft2(ones);
            assert_eq!(spectrum.re.dtype(), DType::F32);
            assert_eq!(values(spectrum.re)[0], 4096.0);
        }
    }

    #[test]
    #[should_panic(expected = "are no spectrum of 9 columns")]
    fn columns_that_do_not_fit_panic() {
        let device = devices().remove(0);
        let part = || Tensor::zeros([1, 1, 2, 3], &device);
        irfft2(Spectrum { re: part(), im: part() }, 9);
    }
}
