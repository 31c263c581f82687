//! Streams of unlike frame rates, brought to one.

use burn::tensor::{Tensor, TensorData};

use crate::common::indices;

/// Linear interpolation in time to `length` frames: frame i reads position
/// `clamp((i + 1/2) T / length - 1/2, 0, T - 1)`, straight between neighbours.
///
/// `x` `[B, T, C]` to `[B, length, C]`; frames are intervals of equal length over one span of time, so that their
/// centres meet. `x` itself at `length = T`.
///
/// # Panics
///
/// When `x` has no frame or `length` is 0.
pub fn align_frames(x: Tensor<3>, length: usize) -> Tensor<3> {
    let [batch, frames, channels] = x.dims();
    assert!(frames > 0 && length > 0, "align_frames: cannot bring `x` {:?} to {length} frames", x.dims());
    if frames == length {
        return x;
    }
    let position = |i: usize| {
        let centre = (i as f64 + 0.5) * frames as f64 / length as f64 - 0.5;
        centre.clamp(0.0, (frames - 1) as f64)
    };
    let lower: Vec<usize> = (0..length).map(|i| position(i) as usize).collect();
    let upper: Vec<usize> = lower.iter().map(|lower| (lower + 1).min(frames - 1)).collect();
    let share: Vec<f64> = lower.iter().enumerate().map(|(i, lower)| position(i) - *lower as f64).collect();
    let device = x.device();
    let share = Tensor::<3>::from_data(TensorData::new(share, [1, length, 1]), (&device, x.dtype()))
        .expand([batch, length, channels]);
    let below = x.clone().select(1, indices(lower, &device));
    let above = x.select(1, indices(upper, &device));
    below.clone() + (above - below) * share
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, ramp, values};

    #[test]
    fn frames_are_read_at_their_centres() {
        for device in devices() {
            let x = float32(&[0.0, 10.0, 1.0, 20.0, 2.0, 40.0, 3.0, 80.0], [1, 4, 2], &device);
            // Centres of two frames over four: 0.5 and 2.5.
            assert_close(&values(align_frames(x.clone(), 2)), &[0.5, 15.0, 2.5, 60.0], 1e-6);
            // Of eight: -0.25 (held at 0), 0.25, 0.75, ...
            let eight = values(align_frames(x.clone(), 8));
            assert_close(&eight[..6], &[0.0, 10.0, 0.25, 12.5, 0.75, 17.5], 1e-6);
            assert_close(&eight[14..], &[3.0, 80.0], 1e-6);
            assert_eq!(values(align_frames(x.clone(), 4)), values(x.clone()));
            assert_close(&values(align_frames(x, 1)), &[1.5, 30.0], 1e-6);
            let one = float32(&[7.0, -1.0], [1, 1, 2], &device);
            assert_close(&values(align_frames(one, 3)), &[7.0, -1.0, 7.0, -1.0, 7.0, -1.0], 0.0);
        }
    }

    #[test]
    fn a_straight_line_stays_one() {
        let device = devices().remove(0);
        let line: Vec<f64> = (0..11).map(|t| 0.3 * t as f64 - 1.0).collect();
        let aligned = values(align_frames(float32(&line, [1, 11, 1], &device), 6));
        let want: Vec<f64> = (0..6).map(|i| 0.3 * ((i as f64 + 0.5) * 11.0 / 6.0 - 0.5) - 1.0).collect();
        assert_close(&aligned, &want, 1e-6);
    }

    #[test]
    fn gradients_match_finite_differences() {
        for device in devices() {
            for length in [1, 3, 9] {
                check_gradients(&ramp(20, 1.0), [2, 5, 2], &device, |x| align_frames(x, length).square());
            }
        }
    }

    #[test]
    #[should_panic(expected = "[1, 0, 2] to 3 frames")]
    fn no_frame_cannot_be_read() {
        align_frames(Tensor::zeros([1, 0, 2], &devices().remove(0)), 3);
    }
}
