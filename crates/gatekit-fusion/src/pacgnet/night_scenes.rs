//! Generated scenes, seen from above in visible light and infrared.
//!
//! Neither sensor suffices: visible light is blind at night, infrared when everything is equally warm (thermal
//! crossover), roofs look like vehicles to the one and hot decoys to the other.

use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::ConfigError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::prob_iou::OrientedBox;

/// Length and width of a car and a truck, in pixels.
const SIZES: [[f64; 2]; 2] = [[9.0, 4.0], [15.0, 6.0]];
/// Vehicles are no closer than this.
const CLEARANCE: f64 = 12.0;
/// Places tried for a vehicle before it is left out.
const ATTEMPTS: usize = 40;
/// Deviation of the infrared blur, in pixels.
const BLUR: f64 = 0.8;

/// What the sensors meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Both see.
    Day,
    /// Visible light is dark, noisy and glaring.
    Night,
    /// In infrared everything is equally warm.
    Crossover,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Day, Self::Night, Self::Crossover];

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Night => "night",
            Self::Crossover => "crossover",
        }
    }
}

/// A pair of images and what is in them.
#[derive(Debug, Clone, PartialEq)]
pub struct NightScene {
    /// What the sensors met.
    pub condition: Condition,
    /// Visible light, `[3, size, size]`, in [0, 1].
    pub rgb: Vec<f32>,
    /// Infrared, `[size, size]`, in [0, 1].
    pub ir: Vec<f32>,
    /// Vehicles in pixels, and whether one is a car (0) or a truck (1).
    pub objects: Vec<(OrientedBox, usize)>,
}

/// Scenes of a seed: every number has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NightScenes {
    /// Pixels of a side, a multiple of 32.
    size: usize,
    seed: u64,
}

/// Cars and trucks.
pub const CLASSES: usize = 2;

impl NightScenes {
    /// Scenes of `size` by `size` pixels.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a size that is no multiple of 32.
    pub fn new(size: usize, seed: u64) -> Result<Self, ConfigError> {
        match size >= 32 && size.is_multiple_of(32) {
            true => Ok(Self { size, seed }),
            false => Err(ConfigError::new("size", size, "a multiple of 32, at least 32")),
        }
    }

    /// Pixels of a side.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The scene of a number; conditions take turns.
    pub fn scene(&self, index: usize) -> NightScene {
        let condition = Condition::ALL[index % 3];
        // A generator of its own, so that a scene does not depend on which were drawn before.
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003).wrapping_add(index as u64));
        Painter::new(self.size, &mut random).scene(condition)
    }
}

/// Scenes as a batch: RGB and infrared (repeated), `[B, 3, size, size]` each.
///
/// # Panics
///
/// When the scenes differ in size or there is none.
pub fn batch(scenes: &[&NightScene], device: &Device) -> (Tensor<4>, Tensor<4>) {
    assert!(!scenes.is_empty(), "night_scenes::batch: no scenes");
    let size = (scenes[0].ir.len() as f64).sqrt() as usize;
    assert!(
        scenes.iter().all(|scene| scene.ir.len() == size * size),
        "night_scenes::batch: the scenes differ in size"
    );
    let shape = [scenes.len(), 3, size, size];
    let rgb: Vec<f32> = scenes.iter().flat_map(|scene| scene.rgb.iter().copied()).collect();
    let ir: Vec<f32> = scenes.iter().flat_map(|scene| scene.ir.repeat(3)).collect();
    let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
    (tensor(rgb), tensor(ir))
}

impl NightScene {
    /// The scene seen in a mirror, left and right or top and bottom exchanged.
    pub fn mirrored(&self, horizontally: bool) -> Self {
        let size = (self.ir.len() as f64).sqrt() as usize;
        let mirror = |plane: &[f32]| -> Vec<f32> {
            let at = |y: usize, x: usize| match horizontally {
                true => plane[y * size + size - 1 - x],
                false => plane[(size - 1 - y) * size + x],
            };
            (0..size).flat_map(|y| (0..size).map(move |x| (y, x))).map(|(y, x)| at(y, x)).collect()
        };
        let turn = |(wanted, label): &(OrientedBox, usize)| {
            let [x, y, w, h, theta] = *wanted;
            let (x, y) = if horizontally { (size as f64 - x, y) } else { (x, size as f64 - y) };
            ([x, y, w, h, canonical(-theta)], *label)
        };
        Self {
            condition: self.condition,
            rgb: self.rgb.chunks_exact(size * size).flat_map(mirror).collect(),
            ir: mirror(&self.ir),
            objects: self.objects.iter().map(turn).collect(),
        }
    }
}

/// The same direction of a rectangle in [-pi / 4, 3 pi / 4).
fn canonical(theta: f64) -> f64 {
    use std::f64::consts::{FRAC_PI_4, PI};
    (theta + FRAC_PI_4).rem_euclid(PI) - FRAC_PI_4
}

/// Draws one scene: reflectance in three colours, temperature in one.
struct Painter<'a> {
    size: usize,
    random: &'a mut StdRng,
    reflectance: Vec<[f64; 3]>,
    temperature: Vec<f64>,
}

impl<'a> Painter<'a> {
    fn new(size: usize, random: &'a mut StdRng) -> Self {
        let pixels = size * size;
        Self { size, random, reflectance: vec![[0.0; 3]; pixels], temperature: vec![0.3; pixels] }
    }

    fn scene(mut self, condition: Condition) -> NightScene {
        self.ground();
        for _ in 0..self.random.random_range(1..=2) {
            self.road();
        }
        for _ in 0..self.random.random_range(3..=6) {
            self.roof();
        }
        let objects = self.vehicles();
        for _ in 0..self.random.random_range(3..=6) {
            self.decoy();
        }
        let rgb = self.visible(condition);
        let ir = self.infrared(condition);
        NightScene { condition, rgb, ir, objects }
    }

    /// Smooth noise, tinted.
    fn ground(&mut self) {
        let noise: [[f64; 6]; 6] =
            std::array::from_fn(|_| std::array::from_fn(|_| self.random.random_range(0.25..0.55)));
        let tint: [f64; 3] = std::array::from_fn(|_| self.random.random_range(0.85..1.15));
        let step = 5.0 / (self.size - 1) as f64;
        for y in 0..self.size {
            for x in 0..self.size {
                let (v, u) = (y as f64 * step, x as f64 * step);
                let (row, column) = ((v as usize).min(4), (u as usize).min(4));
                let (dv, du) = (v - row as f64, u - column as f64);
                let along = |row: usize| noise[row][column] * (1.0 - du) + noise[row][column + 1] * du;
                let value = along(row) * (1.0 - dv) + along(row + 1) * dv;
                self.reflectance[y * self.size + x] = tint.map(|tint| value * tint);
            }
        }
    }

    /// A grey band across the scene.
    fn road(&mut self) {
        let size = self.size as f64;
        let grey = self.random.random_range(0.3..0.45);
        let theta = self.random.random_range(0.0..std::f64::consts::PI);
        let centre = [self.random.random_range(0.2..0.8) * size, self.random.random_range(0.2..0.8) * size];
        let width = self.random.random_range(7.0..11.0);
        self.fill([centre[0], centre[1], 3.0 * size, width, theta], |painter, pixel, _| {
            painter.reflectance[pixel] = [grey; 3];
        });
    }

    /// A rectangle of a vehicle's colour, as warm as the ground.
    fn roof(&mut self) {
        let (colour, place) = (self.colour(), self.place());
        let (w, h) = (self.random.random_range(20.0..32.0), self.random.random_range(14.0..22.0));
        self.fill([place[0], place[1], w, h, place[2]], |painter, pixel, _| {
            painter.reflectance[pixel] = colour;
        });
    }

    /// Cars and trucks that keep their distance.
    fn vehicles(&mut self) -> Vec<(OrientedBox, usize)> {
        let wanted = self.random.random_range(3..=9);
        let mut objects: Vec<(OrientedBox, usize)> = Vec::new();
        for _ in 0..wanted {
            let label = usize::from(self.random.random::<f64>() < 0.4);
            let free = (0..ATTEMPTS).map(|_| self.place()).find(|place| {
                objects.iter().all(|([x, y, ..], _)| (x - place[0]).hypot(y - place[1]) >= CLEARANCE)
            });
            let Some([x, y, theta]) = free else { continue };
            let [length, width] = SIZES[label];
            let (colour, heat) = (self.colour(), self.random.random_range(0.6..0.8));
            self.fill([x, y, length, width, theta], |painter, pixel, along| {
                painter.reflectance[pixel] = colour;
                // The engine is in front.
                painter.temperature[pixel] = heat + if along > length / 6.0 { 0.15 } else { 0.0 };
            });
            objects.push(([x, y, length, width, canonical(theta)], label));
        }
        objects
    }

    /// As hot and large as a vehicle, and not to be seen.
    fn decoy(&mut self) {
        let [x, y, theta] = self.place();
        let [length, width] = SIZES[usize::from(self.random.random::<f64>() < 0.4)];
        let heat = self.random.random_range(0.6..0.8);
        self.fill([x, y, length, width, theta], |painter, pixel, along| {
            painter.temperature[pixel] = heat + if along > length / 6.0 { 0.15 } else { 0.0 };
        });
    }

    /// Very dark or very bright.
    fn colour(&mut self) -> [f64; 3] {
        let value = match self.random.random() {
            true => self.random.random_range(0.03..0.12),
            false => self.random.random_range(0.8..0.95),
        };
        std::array::from_fn(|_| value * self.random.random_range(0.9..1.05))
    }

    /// Centre and direction of something that lies within the scene.
    fn place(&mut self) -> [f64; 3] {
        let size = self.size as f64;
        let mut along = || self.random.random_range(7.0..size - 7.0);
        let (x, y) = (along(), along());
        [x, y, self.random.random_range(-std::f64::consts::PI..std::f64::consts::PI)]
    }

    /// Calls `paint` for every pixel whose centre lies in the box, with how far along its length it is.
    fn fill(&mut self, [x, y, w, h, theta]: OrientedBox, paint: impl Fn(&mut Self, usize, f64)) {
        let (sin, cos) = theta.sin_cos();
        for row in 0..self.size {
            for column in 0..self.size {
                let (dx, dy) = (column as f64 + 0.5 - x, row as f64 + 0.5 - y);
                let (along, across) = (dx * cos + dy * sin, dy * cos - dx * sin);
                if along.abs() <= w / 2.0 && across.abs() <= h / 2.0 {
                    paint(self, row * self.size + column, along);
                }
            }
        }
    }

    fn normal(&mut self) -> f64 {
        let (u, v): (f64, f64) = (1.0 - self.random.random::<f64>(), self.random.random());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Illumination times reflectance, glare and noise: `[3, size, size]`.
    fn visible(&mut self, condition: Condition) -> Vec<f32> {
        let night = condition == Condition::Night;
        let (light, sigma) = match night {
            true => (self.random.random_range(0.03..0.10), 0.08),
            false => (self.random.random_range(0.7..1.0), 0.015),
        };
        let glares: Vec<[f64; 2]> = match night {
            true => {
                (0..self.random.random_range(1..=2)).map(|_| self.place()).map(|[x, y, _]| [x, y]).collect()
            }
            false => Vec::new(),
        };
        let glare = |pixel: usize| -> f64 {
            let (x, y) = ((pixel % self.size) as f64, (pixel / self.size) as f64);
            glares.iter().map(|[gx, gy]| 0.8 * (-((x - gx).powi(2) + (y - gy).powi(2)) / 72.0).exp()).sum()
        };
        let lit: Vec<[f64; 3]> = (0..self.size * self.size)
            .map(|pixel| self.reflectance[pixel].map(|value| light * value + glare(pixel)))
            .collect();
        let mut image = Vec::with_capacity(3 * lit.len());
        for channel in 0..3 {
            for colours in &lit {
                image.push((colours[channel] + sigma * self.normal()).clamp(0.0, 1.0) as f32);
            }
        }
        image
    }

    /// Blurred temperature and noise; at crossover next to no contrast, but stripes: `[size, size]`.
    fn infrared(&mut self, condition: Condition) -> Vec<f32> {
        let crossover = condition == Condition::Crossover;
        let contrast = if crossover { 0.02 } else { 1.0 };
        let stripes: Vec<f64> =
            (0..self.size).map(|_| if crossover { 0.1 * self.normal() } else { 0.0 }).collect();
        let warm: Vec<f64> = self.temperature.iter().map(|value| 0.3 + contrast * (value - 0.3)).collect();
        let blurred = blur(&warm, self.size);
        blurred
            .into_iter()
            .enumerate()
            .map(|(pixel, value)| {
                (value + stripes[pixel % self.size] + 0.03 * self.normal()).clamp(0.0, 1.0) as f32
            })
            .collect()
    }
}

/// A Gaussian over rows, then columns; edges are repeated.
fn blur(image: &[f64], size: usize) -> Vec<f64> {
    let taps: Vec<f64> = (-3i64..=3).map(|d| (-(d * d) as f64 / (2.0 * BLUR * BLUR)).exp()).collect();
    let total: f64 = taps.iter().sum();
    let pass = |image: &[f64], step: [i64; 2]| -> Vec<f64> {
        let last = size as i64 - 1;
        (0..size as i64)
            .flat_map(|y| (0..size as i64).map(move |x| (y, x)))
            .map(|(y, x)| {
                let tap = |(d, tap): (i64, &f64)| {
                    let row = (y + d * step[0]).clamp(0, last) as usize;
                    let column = (x + d * step[1]).clamp(0, last) as usize;
                    tap * image[row * size + column]
                };
                (-3i64..=3).zip(&taps).map(tap).sum::<f64>() / total
            })
            .collect()
    };
    pass(&pass(image, [0, 1]), [1, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_contrast(scene: &NightScene, infrared: bool) -> f64 {
        // How far vehicles stand out from the mean, by their centres.
        let size = (scene.ir.len() as f64).sqrt() as usize;
        let plane = if infrared { &scene.ir[..] } else { &scene.rgb[..size * size] };
        let mean = plane.iter().sum::<f32>() as f64 / plane.len() as f64;
        let centres =
            scene.objects.iter().map(|([x, y, ..], _)| plane[*y as usize * size + *x as usize] as f64);
        centres.map(|value| (value - mean).abs()).sum::<f64>() / scene.objects.len() as f64
    }

    #[test]
    fn scenes_come_from_their_seed_and_number() {
        let scenes = NightScenes::new(64, 3).unwrap();
        assert_eq!(scenes.scene(5), scenes.scene(5));
        assert_ne!(scenes.scene(5).ir, scenes.scene(8).ir);
        assert_ne!(scenes.scene(5).ir, NightScenes::new(64, 4).unwrap().scene(5).ir);
        assert_eq!(scenes.scene(4).condition, Condition::Night);
        assert_eq!(NightScenes::new(65, 0).unwrap_err().field, "size");
    }

    #[test]
    fn each_sensor_is_blind_in_its_own_condition() {
        let scenes = NightScenes::new(64, 0).unwrap();
        let contrast = |condition: usize, infrared: bool| -> f64 {
            (0..20).map(|i| mean_contrast(&scenes.scene(3 * i + condition), infrared)).sum::<f64>() / 20.0
        };
        assert!(contrast(1, false) < contrast(0, false) / 2.0, "night is dark");
        assert!(contrast(2, true) < contrast(0, true) / 3.0, "crossover has no contrast");
        assert!(contrast(2, false) > 0.2 && contrast(1, true) > 0.2);
    }

    #[test]
    fn vehicles_keep_their_distance_and_lie_within() {
        for index in 0..60 {
            let scene = NightScenes::new(64, 9).unwrap().scene(index);
            assert!((1..=9).contains(&scene.objects.len()));
            for (i, ([x, y, w, h, theta], label)) in scene.objects.iter().enumerate() {
                assert!(*label < CLASSES && [*w, *h] == SIZES[*label]);
                assert!((7.0..57.0).contains(x) && (7.0..57.0).contains(y));
                assert!(canonical(*theta) == *theta);
                for ([a, b, ..], _) in &scene.objects[..i] {
                    assert!((a - x).hypot(b - y) >= CLEARANCE);
                }
            }
            assert!(scene.rgb.iter().chain(&scene.ir).all(|value| (0.0..=1.0).contains(value)));
        }
    }

    #[test]
    fn mirrored_twice_is_the_scene() {
        let scene = NightScenes::new(32, 1).unwrap().scene(0);
        for horizontally in [true, false] {
            let back = scene.mirrored(horizontally).mirrored(horizontally);
            assert_eq!((&back.rgb, &back.ir), (&scene.rgb, &scene.ir));
            for ((a, _), (b, _)) in back.objects.iter().zip(&scene.objects) {
                assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9));
            }
        }
    }
}
