//! Pictures made by a program, and what spoils them.

use std::f64::consts::PI;

use burn::tensor::{Device, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// What spoils a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Degradation {
    /// Bright lines of a few pixels, all in about one direction: high frequencies.
    Rain,
    /// A smooth grey veil: low frequencies.
    Haze,
}

impl Degradation {
    pub const ALL: [Self; 2] = [Self::Rain, Self::Haze];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rain => "rain",
            Self::Haze => "haze",
        }
    }
}

/// A spoilt picture and the clean one, `[3, S, S]` each.
#[derive(Clone, Debug)]
pub struct Pair {
    pub spoilt: Vec<f32>,
    pub clean: Vec<f32>,
}

/// Pairs of a degradation.
pub fn pairs(size: usize, degradation: Degradation, count: usize, random: &mut StdRng) -> Vec<Pair> {
    (0..count)
        .map(|_| {
            let clean = picture(size, random);
            let spoilt = match degradation {
                Degradation::Rain => rained(&clean, size, random),
                Degradation::Haze => hazed(&clean, size, random),
            };
            Pair { spoilt, clean }
        })
        .collect()
}

/// Spoilt and clean pictures, `[B, 3, S, S]`.
pub fn batch(pairs: &[Pair], size: usize, device: &Device) -> [Tensor<4>; 2] {
    [|pair: &Pair| pair.spoilt.clone(), |pair: &Pair| pair.clean.clone()].map(|part| {
        let values: Vec<f32> = pairs.iter().flat_map(part).collect();
        Tensor::from_data(TensorData::new(values, [pairs.len(), 3, size, size]), device)
    })
}

fn between(random: &mut impl Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * random.random::<f64>()
}

/// A gradient with discs, bars and striped rectangles on it.
fn picture(size: usize, random: &mut StdRng) -> Vec<f32> {
    let side = size as f64;
    let colour = |random: &mut StdRng| [0; 3].map(|_| between(random, 0.05, 0.95));
    let corners = [0; 4].map(|_| colour(random));
    let mut image: Vec<[f64; 3]> = (0..size * size)
        .map(|at| {
            let (y, x) = ((at / size) as f64 / side, (at % size) as f64 / side);
            [0, 1, 2].map(|c| {
                let top = corners[0][c] * (1.0 - x) + corners[1][c] * x;
                let bottom = corners[2][c] * (1.0 - x) + corners[3][c] * x;
                top * (1.0 - y) + bottom * y
            })
        })
        .collect();
    for _ in 0..random.random_range(2..=5) {
        let (row, column) = (between(random, 0.0, side), between(random, 0.0, side));
        let (half_height, half_width) =
            (between(random, 0.08, 0.3) * side, between(random, 0.08, 0.3) * side);
        let (sin, cos) = between(random, 0.0, PI).sin_cos();
        let (disc, colours) = (random.random::<bool>(), [colour(random), colour(random)]);
        let stripes = if random.random_range(0..3) == 0 { between(random, 3.0, 6.0) } else { f64::INFINITY };
        for (at, pixel) in image.iter_mut().enumerate() {
            let (dy, dx) = ((at / size) as f64 + 0.5 - row, (at % size) as f64 + 0.5 - column);
            let (u, v) = (dx * cos + dy * sin, dy * cos - dx * sin);
            // Pixels inside the border; edges are a pixel soft.
            let inside = match disc {
                true => half_height - u.hypot(v),
                false => (half_width - u.abs()).min(half_height - v.abs()),
            };
            let share = (inside + 0.5).clamp(0.0, 1.0);
            let chosen = colours[((u / stripes).floor() as i64).rem_euclid(2) as usize];
            for (value, colour) in pixel.iter_mut().zip(chosen) {
                *value += share * (colour - *value);
            }
        }
    }
    (0..3).flat_map(|c| image.iter().map(move |pixel| pixel[c] as f32)).collect()
}

/// Streaks of light added to all channels.
fn rained(clean: &[f32], size: usize, random: &mut StdRng) -> Vec<f32> {
    let side = size as f64;
    let slant = between(random, -0.5, 0.5);
    let mut light = vec![0.0; size * size];
    for _ in 0..random.random_range(6..=12) {
        let (sin, cos) = (slant + between(random, -0.05, 0.05)).sin_cos();
        let (row, column) = (between(random, 0.0, side), between(random, 0.0, side));
        let (half, brightness) = (between(random, 3.0, 8.0), between(random, 0.3, 0.7));
        for (at, light) in light.iter_mut().enumerate() {
            let (dy, dx) = ((at / size) as f64 + 0.5 - row, (at % size) as f64 + 0.5 - column);
            let (along, across) = (dy * cos + dx * sin, dx * cos - dy * sin);
            let ends = (half + 0.5 - along.abs()).clamp(0.0, 1.0);
            *light += brightness * ends * (-across * across / 0.7).exp();
        }
    }
    clean.iter().enumerate().map(|(at, value)| (value + light[at % light.len()] as f32).min(1.0)).collect()
}

/// Mixed with a grey: `t J + (1 - t) A`, the transmission t smooth.
fn hazed(clean: &[f32], size: usize, random: &mut StdRng) -> Vec<f32> {
    const GRID: usize = 3;
    let air = between(random, 0.7, 0.95);
    let transmissions = [0; GRID * GRID].map(|_| between(random, 0.25, 0.8));
    let place = |at: usize| {
        let s = at as f64 / (size - 1) as f64 * (GRID - 1) as f64;
        let first = (s as usize).min(GRID - 2);
        // Smooth also where cells meet.
        let rest = s - first as f64;
        (first, rest * rest * (3.0 - 2.0 * rest))
    };
    let pixels = size * size;
    let veil: Vec<f64> = (0..pixels)
        .map(|at| {
            let ((i, v), (j, u)) = (place(at / size), place(at % size));
            let t = |i: usize, j: usize| transmissions[i * GRID + j];
            let row = |i: usize| t(i, j) * (1.0 - u) + t(i, j + 1) * u;
            row(i) * (1.0 - v) + row(i + 1) * v
        })
        .collect();
    let mixed = |(at, value): (usize, &f32)| {
        let t = veil[at % pixels];
        (t * f64::from(*value) + (1.0 - t) * air) as f32
    };
    clean.iter().enumerate().map(mixed).collect()
}
