//! Arms of a spiral: near the centre sectors of a disc, further out more and more twisted.

use std::f64::consts::TAU;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt;
use rand::rngs::StdRng;

/// Arms, which are the classes.
pub const CLASSES: usize = 4;
/// Bands of equal width that the radius is divided into, the easiest first.
pub const DIFFICULTIES: usize = 4;
/// Turns of an arm from the centre to the rim.
const TURNS: f64 = 2.0;
/// Share of the radius that is left out at the centre, where all arms meet.
const HOLE: f64 = 0.1;

/// Points of the plane, the arms they lie on and how hard they are.
#[derive(Clone)]
pub struct Points {
    /// `[points, 2]`.
    pub inputs: Tensor<2>,
    /// `[points]`.
    pub labels: Tensor<1, Int>,
    /// The band of every point's radius.
    pub difficulty: Vec<usize>,
}

impl Points {
    /// `count` points, even over radius and angle.
    pub fn draw(count: usize, random: &mut StdRng, device: &Device) -> Self {
        let (mut inputs, mut labels, mut difficulty) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let (way, angle) = (random.random::<f64>(), random.random::<f64>() * TAU);
            let radius = HOLE + (1.0 - HOLE) * way;
            inputs.extend([2.0 * radius * angle.cos(), 2.0 * radius * angle.sin()]);
            let turned = (angle / TAU - TURNS * way).rem_euclid(1.0);
            labels.push(((turned * CLASSES as f64) as i64).min(CLASSES as i64 - 1));
            difficulty.push(((way * DIFFICULTIES as f64) as usize).min(DIFFICULTIES - 1));
        }
        Self {
            inputs: Tensor::from_data(TensorData::new(inputs, [count, 2]), device),
            labels: Tensor::from_data(TensorData::new(labels, [count]), device),
            difficulty,
        }
    }
}
