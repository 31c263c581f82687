//! Pictures of one shape among clutter, as patches.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt;
use rand::rngs::StdRng;

/// Pixels of a picture's side, of a patch's, and of a shape's.
pub const SIDE: usize = 20;
pub const PATCH: usize = 4;
const SHAPE: usize = 9;
/// Patches of a side, of a picture, and pixels of a patch.
pub const GRID: usize = SIDE / PATCH;
pub const TOKENS: usize = GRID * GRID;
pub const PIXELS: usize = PATCH * PATCH;
/// Kinds of shapes: square, diamond, plus, cross, triangle, disc.
pub const CLASSES: usize = 6;
/// Most strokes of clutter.
pub const CLUTTER: usize = 8;

/// One picture.
pub struct Picture {
    /// Brightness, row by row, about 0 to 1.
    pub pixels: Vec<f32>,
    /// Kind of its shape.
    pub class: usize,
    /// Strokes of clutter in it.
    pub clutter: usize,
    /// Whether a patch touches the shape's square.
    pub object: [bool; TOKENS],
}

impl Picture {
    /// A shape somewhere, some strokes elsewhere, and noise.
    pub fn draw(random: &mut StdRng) -> Self {
        let class = random.random_range(0..CLASSES);
        let clutter = random.random_range(0..=CLUTTER);
        let mut pixels = vec![0.0f32; SIDE * SIDE];
        let (top, left) = (random.random_range(0..=SIDE - SHAPE), random.random_range(0..=SIDE - SHAPE));
        for _ in 0..clutter {
            // Strokes have the shapes' brightness, so that they must be told from sides of one.
            let (mut row, mut column) =
                (random.random_range(0..SIDE as i32), random.random_range(0..SIDE as i32));
            let direction = [(0, 1), (1, 0), (1, 1), (1, -1)][random.random_range(0..4usize)];
            for _ in 0..random.random_range(3..6) {
                set(&mut pixels, row, column);
                (row, column) = (row + direction.0, column + direction.1);
            }
        }
        for (row, column) in outline(class) {
            set(&mut pixels, (top + row) as i32, (left + column) as i32);
        }
        for pixel in &mut pixels {
            *pixel += 0.15 * (random.random::<f32>() - 0.5);
        }
        let touches =
            |patch: usize, start: usize| patch * PATCH < start + SHAPE && start < (patch + 1) * PATCH;
        let object = std::array::from_fn(|patch| touches(patch / GRID, top) && touches(patch % GRID, left));
        Self { pixels, class, clutter, object }
    }
}

fn set(pixels: &mut [f32], row: i32, column: i32) {
    let inside = 0..SIDE as i32;
    if inside.contains(&row) && inside.contains(&column) {
        pixels[row as usize * SIDE + column as usize] = 1.0;
    }
}

/// Pixels of a shape in its square.
fn outline(class: usize) -> Vec<(usize, usize)> {
    let last = SHAPE as i32 - 1;
    let middle = last / 2;
    let on = |row: i32, column: i32| match class {
        0 => row == 0 || row == last || column == 0 || column == last,
        1 => (row - middle).abs() + (column - middle).abs() == middle,
        2 => row == middle || column == middle,
        3 => row == column || row + column == last,
        4 => row == last || 2 * (column - middle).abs() == row || 2 * (column - middle).abs() == row + 1,
        _ => (row - middle).pow(2) + (column - middle).pow(2) <= 18,
    };
    let cells = (0..=last).flat_map(|row| (0..=last).map(move |column| (row, column)));
    cells
        .filter(|(row, column)| on(*row, *column))
        .map(|(row, column)| (row as usize, column as usize))
        .collect()
}

/// Pictures as patches `[count, TOKENS, PIXELS]`, and their classes `[count]`.
pub fn tensors(pictures: &[Picture], device: &Device) -> (Tensor<3>, Tensor<1, Int>) {
    let count = pictures.len();
    let mut patches = Vec::with_capacity(count * SIDE * SIDE);
    for picture in pictures {
        for patch in 0..TOKENS {
            for row in 0..PATCH {
                let start = (patch / GRID * PATCH + row) * SIDE + patch % GRID * PATCH;
                patches.extend_from_slice(&picture.pixels[start..start + PATCH]);
            }
        }
    }
    let classes: Vec<i64> = pictures.iter().map(|picture| picture.class as i64).collect();
    (
        Tensor::from_data(TensorData::new(patches, [count, TOKENS, PIXELS]), device),
        Tensor::from_data(TensorData::new(classes, [count]), device),
    )
}
