//! Rotary positions against their equation.

use crate::attention::{RotaryEmbedding, pairs_to_halves};
use crate::sequence::Boundaries;
use crate::test_util::{assert_close, devices, float32, float64, ramp, values};

#[test]
fn rotation_matches_its_equation_at_far_positions() {
    let (dim, width, heads) = (4, 5, 2);
    let x = ramp(3 * heads * width, 1.0);
    for device in devices() {
        let rotary = RotaryEmbedding::new(dim, 10000.0).unwrap();
        for offset in [0, 5, 3, 1_000_000] {
            let expected: Vec<f64> = (0..x.len())
                .map(|i| {
                    let (c, head) = (i % width, i - i % width);
                    if c >= dim {
                        return x[i];
                    }
                    let position = (offset + i / (heads * width)) as f64;
                    let angle = position * 10000f64.powf(-((c % 2) as f64) / 2.0);
                    let (first, second) = (x[head + c % 2], x[head + 2 + c % 2]);
                    if c < 2 {
                        first * angle.cos() - second * angle.sin()
                    } else {
                        second * angle.cos() + first * angle.sin()
                    }
                })
                .collect();
            assert_close(
                &values(rotary.apply(float32(&x, [1, 3, heads, width], &device), offset)),
                &expected,
                1e-6,
            );
            let exact = rotary.apply(float64(&x, [1, 3, heads, width], &device), offset);
            assert_close(&values(exact), &expected, 1e-12);
        }
        // Packed: every segment starts again at 0.
        let boundaries = Boundaries::new(&[0, 1, 3], 3).unwrap();
        let x_tensor = float32(&x, [1, 3, heads, width], &device);
        let packed = values(rotary.apply_packed(x_tensor.clone(), &boundaries));
        assert_eq!(packed[..10], values(rotary.apply(x_tensor.clone().narrow(1, 0, 1), 0)));
        assert_eq!(packed[10..], values(rotary.apply(x_tensor.narrow(1, 1, 2), 0)));
    }
}

#[test]
fn the_reversed_rotation_undoes_the_usual_one() {
    let x = ramp(3 * 2 * 5, 1.0);
    for device in devices() {
        let rotary = RotaryEmbedding::new(4, 100.0).unwrap();
        let input = float64(&x, [1, 3, 2, 5], &device);
        let turned = rotary.apply(input, 7);
        assert!(values(turned.clone()).iter().zip(&x).any(|(turned, x)| (turned - x).abs() > 0.1));
        assert_close(&values(rotary.reversed().apply(turned, 7)), &x, 1e-12);
    }
}

#[test]
fn neighbouring_channels_are_rotated_as_pairs_once_they_are_halves_apart() {
    let (dim, heads, steps) = (6, 2, 3);
    let x = ramp(steps * heads * dim, 1.0);
    // What a rotation of the pairs (2j, 2j + 1) gives, with its channels in the order of halves.
    let expected: Vec<f64> = (0..x.len())
        .map(|i| {
            let (c, head, step) = (i % dim, i - i % dim, i / (heads * dim));
            let pair = c % (dim / 2);
            let (sin, cos) = (step as f64 / 10000f64.powf(2.0 * pair as f64 / dim as f64)).sin_cos();
            let (first, second) = (x[head + 2 * pair], x[head + 2 * pair + 1]);
            if c < dim / 2 { first * cos - second * sin } else { second * cos + first * sin }
        })
        .collect();
    for device in devices() {
        let rotary = RotaryEmbedding::new(dim, 10000.0).unwrap();
        let rotated = rotary.apply(pairs_to_halves(float64(&x, [1, steps, heads, dim], &device)), 0);
        assert_close(&values(rotated), &expected, 1e-12);
    }
}
