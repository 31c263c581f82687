//! Digits drawn by a shaky hand: strokes that are shifted, scaled, slanted, turned, of any thickness, and noise.

use std::f32::consts::PI;

use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;
use rand::rngs::StdRng;

/// Pixels of a picture's side, and of a picture.
pub const SIDE: usize = 28;
pub const PIXELS: usize = SIDE * SIDE;
/// Digits there are.
const DIGITS: usize = 10;

type Point = [f32; 2];

/// A line through some points of the unit square, y downwards.
type Stroke = Vec<Point>;

/// Part of an ellipse, between two angles in degrees that grow clockwise from the right.
fn arc(centre: Point, radii: Point, from: f32, to: f32) -> Stroke {
    const PIECES: usize = 14;
    (0..=PIECES)
        .map(|piece| {
            let angle = (from + (to - from) * piece as f32 / PIECES as f32) * PI / 180.0;
            [centre[0] + radii[0] * angle.cos(), centre[1] + radii[1] * angle.sin()]
        })
        .collect()
}

fn strokes(digit: usize) -> Vec<Stroke> {
    match digit {
        0 => vec![arc([0.5, 0.5], [0.21, 0.34], 0.0, 360.0)],
        1 => vec![vec![[0.38, 0.28], [0.53, 0.15], [0.53, 0.85]]],
        2 => {
            let mut line = arc([0.5, 0.36], [0.21, 0.21], 180.0, 395.0);
            line.extend([[0.29, 0.84], [0.73, 0.84]]);
            vec![line]
        }
        3 => {
            let mut line = arc([0.47, 0.32], [0.19, 0.17], 200.0, 450.0);
            line.extend(arc([0.47, 0.67], [0.22, 0.18], 270.0, 520.0));
            vec![line]
        }
        4 => vec![vec![[0.6, 0.85], [0.6, 0.15], [0.27, 0.61], [0.76, 0.61]]],
        5 => {
            let mut line = vec![[0.69, 0.16], [0.36, 0.16], [0.33, 0.47]];
            line.extend(arc([0.48, 0.63], [0.22, 0.21], 235.0, 510.0));
            vec![line]
        }
        6 => vec![
            vec![[0.62, 0.15], [0.42, 0.33], [0.32, 0.52], [0.29, 0.66]],
            arc([0.5, 0.66], [0.21, 0.19], 0.0, 360.0),
        ],
        7 => vec![vec![[0.26, 0.16], [0.73, 0.16], [0.43, 0.85]]],
        8 => vec![arc([0.5, 0.32], [0.17, 0.17], 0.0, 360.0), arc([0.5, 0.67], [0.21, 0.18], 0.0, 360.0)],
        _ => vec![arc([0.49, 0.35], [0.19, 0.19], 0.0, 360.0), vec![[0.68, 0.35], [0.66, 0.6], [0.58, 0.85]]],
    }
}

fn distance(point: Point, [from, to]: [Point; 2]) -> f32 {
    let along = [to[0] - from[0], to[1] - from[1]];
    let offset = [point[0] - from[0], point[1] - from[1]];
    let length = along[0] * along[0] + along[1] * along[1];
    let share = ((along[0] * offset[0] + along[1] * offset[1]) / length.max(1e-9)).clamp(0.0, 1.0);
    (offset[0] - share * along[0]).hypot(offset[1] - share * along[1])
}

/// One picture, row by row, ink 1 on paper 0.
pub fn draw(digit: usize, random: &mut StdRng) -> Vec<f32> {
    let mut around = |middle: f32, reach: f32| middle + reach * (2.0 * random.random::<f32>() - 1.0);
    let (turn, slant) = (around(0.0, 0.15), around(0.1, 0.25));
    let (scale, shift) = ([around(0.95, 0.15), around(1.0, 0.12)], [around(0.0, 0.09), around(0.0, 0.09)]);
    let thickness = around(0.05, 0.02);
    let place = |[x, y]: Point| -> Point {
        let (x, y) = (scale[0] * (x - 0.5), scale[1] * (y - 0.5));
        let x = x - slant * y;
        let (sin, cos) = turn.sin_cos();
        [0.5 + shift[0] + cos * x - sin * y, 0.5 + shift[1] + sin * x + cos * y]
    };
    let lines: Vec<Stroke> =
        strokes(digit).into_iter().map(|line| line.into_iter().map(place).collect()).collect();
    let pieces: Vec<[Point; 2]> =
        lines.iter().flat_map(|line| line.windows(2).map(|pair| [pair[0], pair[1]])).collect();
    let pixel = 1.0 / SIDE as f32;
    (0..PIXELS)
        .map(|index| {
            let point = [(index % SIDE) as f32 + 0.5, (index / SIDE) as f32 + 0.5].map(|at| at * pixel);
            let near = pieces.iter().map(|piece| distance(point, *piece)).fold(f32::INFINITY, f32::min);
            let ink = ((thickness - near) / pixel + 0.5).clamp(0.0, 1.0);
            (ink + around(0.0, 0.1)).clamp(0.0, 1.0)
        })
        .collect()
}

/// Pictures `[count, 1, SIDE, SIDE]`, half of them of a digit and half of the others, and 1 for the first half.
pub fn against_the_rest(
    digit: usize,
    count: usize,
    random: &mut StdRng,
    device: &Device,
) -> (Tensor<4>, Tensor<2>) {
    let mut pixels = Vec::with_capacity(count * PIXELS);
    for picture in 0..count {
        let other = (digit + random.random_range(1..DIGITS)) % DIGITS;
        pixels.extend(draw(if picture < count / 2 { digit } else { other }, random));
    }
    let labels: Vec<f32> = (0..count).map(|picture| f32::from(picture < count / 2)).collect();
    (
        Tensor::from_data(TensorData::new(pixels, [count, 1, SIDE, SIDE]), device),
        Tensor::from_data(TensorData::new(labels, [count, 1]), device),
    )
}

/// The mean picture of a digit.
pub fn mean_picture(digit: usize, count: usize, random: &mut StdRng) -> Vec<f32> {
    let mut mean = vec![0.0; PIXELS];
    for _ in 0..count {
        mean.iter_mut().zip(draw(digit, random)).for_each(|(mean, pixel)| *mean += pixel / count as f32);
    }
    mean
}
