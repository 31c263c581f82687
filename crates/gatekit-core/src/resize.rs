//! Resizing maps by explicit taps.
//!
//! Burn's own interpolation has modes of other conventions (where samples lie, the cubic's parameter); here position
//! `o` of `n_out` reads at `s = (o + 1/2) n_in / n_out - 1/2`, without antialiasing, and edges repeat: what PyTorch does
//! with `align_corners=False`.

use burn::tensor::Tensor;

use crate::common::widen;
use crate::constant::matrix;

/// Which taps a position reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// The two next to `max(s, 0)`, in proportion.
    Bilinear,
    /// `floor(s) - 1 ..= floor(s) + 2`, weighed by the cubic of Keys with a = -3/4.
    Bicubic,
}

impl Interpolation {
    fn name(self) -> &'static str {
        match self {
            Self::Bilinear => "resize bilinear",
            Self::Bicubic => "resize bicubic",
        }
    }

    /// Positions (which may lie outside) and weights of the taps at `s`.
    fn taps(self, s: f64) -> Vec<(i64, f64)> {
        match self {
            Self::Bilinear => {
                let s = s.max(0.0);
                let (first, rest) = (s.floor() as i64, s - s.floor());
                vec![(first, 1.0 - rest), (first + 1, rest)]
            }
            Self::Bicubic => {
                let first = s.floor() as i64 - 1;
                (first..first + 4).map(|tap| (tap, cubic((s - tap as f64).abs()))).collect()
            }
        }
    }

    /// The matrix `[n_out, n_in]` of a resizing of one axis.
    fn weights(self, n_in: usize, n_out: usize) -> Vec<f64> {
        let mut weights = vec![0.0; n_out * n_in];
        for o in 0..n_out {
            let s = (o as f64 + 0.5) * n_in as f64 / n_out as f64 - 0.5;
            for (tap, weight) in self.taps(s) {
                weights[o * n_in + tap.clamp(0, n_in as i64 - 1) as usize] += weight;
            }
        }
        weights
    }
}

/// Keys, "Cubic Convolution Interpolation for Digital Image Processing" (1981), at distance `t` in [0, 2].
fn cubic(t: f64) -> f64 {
    const A: f64 = -0.75;
    if t <= 1.0 {
        ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
    } else if t < 2.0 {
        A * (((t - 5.0) * t + 8.0) * t - 4.0)
    } else {
        0.0
    }
}

/// `x` `[B, C, H, W]` at another size `[H', W']`: `[B, C, H', W']`, by any factors, larger or smaller.
///
/// Each axis is a product with the matrix of its taps, in at least float32; an axis that keeps its size is left alone.
///
/// # Panics
///
/// When a side of the map or of the new size is 0.
pub fn resize(x: Tensor<4>, size: [usize; 2], interpolation: Interpolation) -> Tensor<4> {
    let ([batch, channels, height, width], [new_height, new_width], dtype) = (x.dims(), size, x.dtype());
    assert!(
        height > 0 && width > 0 && new_height > 0 && new_width > 0,
        "resize: `x` {:?} to {size:?} has an empty side",
        x.dims()
    );
    if [height, width] == size {
        return x;
    }
    let mut x = widen(x);
    let weights = |n_in: usize, n_out: usize, x: &Tensor<4>| {
        matrix(interpolation.name(), [n_in, n_out], x, [n_out, n_in], || interpolation.weights(n_in, n_out))
    };
    if new_width != width {
        let along = weights(width, new_width, &x).transpose();
        let rows = x.reshape([batch * channels * height, width]).matmul(along);
        x = rows.reshape([batch, channels, height, new_width]);
    }
    if new_height != height {
        x = weights(height, new_height, &x).unsqueeze::<4>().matmul(x);
    }
    x.cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    const KINDS: [Interpolation; 2] = [Interpolation::Bilinear, Interpolation::Bicubic];

    fn row(values_in: &[f64], to: usize, kind: Interpolation) -> Vec<f64> {
        let device = devices().remove(0);
        values(resize(float64(values_in, [1, 1, 1, values_in.len()], &device), [1, to], kind))
    }

    #[test]
    fn halving_and_quartering_have_fixed_taps() {
        let x = ramp(8, 1.0);
        let mean: Vec<f64> = x.chunks(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        assert_close(&row(&x, 4, Interpolation::Bilinear), &mean, 1e-12);
        let quarter = [(x[1] + x[2]) / 2.0, (x[5] + x[6]) / 2.0];
        assert_close(&row(&x, 2, Interpolation::Bilinear), &quarter, 1e-12);
        let at = |index: i64| x[index.clamp(0, 7) as usize];
        let centre = |first: i64| {
            -0.09375 * at(first - 1) + 0.59375 * at(first) + 0.59375 * at(first + 1) - 0.09375 * at(first + 2)
        };
        assert_close(&row(&x, 4, Interpolation::Bicubic), &[0, 2, 4, 6].map(centre), 1e-12);
        assert_close(&row(&x, 2, Interpolation::Bicubic), &[1, 5].map(centre), 1e-12);
    }

    #[test]
    fn enlarging_reads_between_samples_and_repeats_edges() {
        assert_close(&row(&[0.0, 1.0], 4, Interpolation::Bilinear), &[0.0, 0.25, 0.75, 1.0], 1e-12);
        // Beside the edge: taps at -2, -1, 0, 1 around s = -0.25.
        let cubic_at = |s: f64, x: [f64; 2]| -> f64 {
            let first = s.floor() as i64 - 1;
            (first..first + 4).map(|tap| cubic((s - tap as f64).abs()) * x[tap.clamp(0, 1) as usize]).sum()
        };
        let expected = [-0.25, 0.25, 0.75, 1.25].map(|s| cubic_at(s, [0.3, 1.0]));
        assert_close(&row(&[0.3, 1.0], 4, Interpolation::Bicubic), &expected, 1e-12);
    }

    #[test]
    fn constants_stay_and_lines_stay_straight_inside() {
        for kind in KINDS {
            for (from, to) in [(1, 5), (3, 7), (7, 3), (8, 5), (5, 1), (4, 16)] {
                assert_close(&row(&vec![0.7; from], to, kind), &vec![0.7; to], 1e-12);
            }
            let line: Vec<f64> = (0..12).map(f64::from).collect();
            let got = row(&line, 7, kind);
            for (o, value) in got.iter().enumerate() {
                let s = (o as f64 + 0.5) * 12.0 / 7.0 - 0.5;
                if kind == Interpolation::Bilinear || (1.0..10.0).contains(&s) {
                    // The cubic with a = -3/4 bends a line a little; it goes through the samples.
                    let bend = if kind == Interpolation::Bicubic { 0.08 } else { 1e-12 };
                    assert!((value - s).abs() <= bend, "{kind:?}: {value} at {s}");
                }
            }
        }
    }

    #[test]
    fn axes_are_resized_one_after_the_other() {
        for device in devices() {
            let x = float32(&ramp(2 * 3 * 6 * 5, 1.0), [2, 3, 6, 5], &device);
            for kind in KINDS {
                assert_eq!(values(resize(x.clone(), [6, 5], kind)), values(x.clone()));
                let both = resize(x.clone(), [3, 8], kind);
                let first = resize(resize(x.clone(), [3, 5], kind), [3, 8], kind);
                assert_eq!(both.dims(), [2, 3, 3, 8]);
                assert_close(&values(both), &values(first), 1e-5);
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for device in devices() {
            for kind in KINDS {
                check_gradients(&ramp(20, 1.0), [1, 1, 4, 5], &device, |x| {
                    resize(x, [3, 7], kind) * float64(&ramp(21, 1.1), [1, 1, 3, 7], &device)
                });
            }
        }
    }

    #[test]
    #[should_panic(expected = "has an empty side")]
    fn empty_sides_panic() {
        resize(Tensor::zeros([1, 1, 2, 2], &devices().remove(0)), [0, 2], Interpolation::Bilinear);
    }
}
