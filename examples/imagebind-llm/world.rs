//! A joint space of images and sounds, and words for what is in it.

use burn::tensor::{Device, Tensor, TensorData};
use gatekit_examples::tasks;
use rand::RngExt;
use rand::rngs::StdRng;

/// Begins every caption, and is all of the prompt.
pub const START: usize = 1;
/// Ends every caption.
pub const END: usize = 2;
const A: usize = 3;
const AND: usize = 4;
const FIRST_COLOUR: usize = 5;
const COLOURS: usize = 4;
const THINGS: usize = 6;
/// Padding, start, end, "a", "and", colours, things.
pub const VOCABULARY: usize = FIRST_COLOUR + COLOURS + THINGS;
/// Coloured things.
pub const CONCEPTS: usize = COLOURS * THINGS;
/// Channels of the joint space.
pub const CHANNELS: usize = 32;

/// Norm of the noise in an image, in a sound, and of the offset between them; a concept has norm 1.
const IMAGE_NOISE: f64 = 0.35;
const SOUND_NOISE: f64 = 0.5;
const GAP: f64 = 0.9;

/// One or two concepts, in ascending order.
pub type Scene = Vec<usize>;

/// The caption of a scene, with its end: "a red ball and a blue cup".
pub fn caption(scene: &[usize]) -> Vec<usize> {
    let mut words = Vec::new();
    for concept in scene {
        words.extend((!words.is_empty()).then_some(AND));
        words.extend([A, FIRST_COLOUR + concept / THINGS, FIRST_COLOUR + COLOURS + concept % THINGS]);
    }
    words.push(END);
    words
}

/// Where concepts lie, and how far sounds lie from images.
pub struct World {
    concepts: Vec<Vec<f64>>,
    offset: Vec<f64>,
}

impl World {
    /// A world of this seed.
    pub fn new(seed: u64) -> Self {
        let mut random = tasks::random(seed);
        let concepts = (0..CONCEPTS).map(|_| direction(&mut random)).collect();
        let offset = direction(&mut random).into_iter().map(|value| GAP * value).collect();
        Self { concepts, offset }
    }

    /// A unit vector near the concepts of a scene.
    pub fn image(&self, scene: &[usize], random: &mut StdRng) -> Vec<f64> {
        let clean = unit(sum(scene.iter().map(|concept| self.concepts[*concept].clone())));
        let noise = direction(random).into_iter().map(|value| IMAGE_NOISE * value).collect();
        unit(sum([clean, noise].into_iter()))
    }

    /// A unit vector near the concepts, beyond the gap, with more noise.
    pub fn sound(&self, scene: &[usize], random: &mut StdRng) -> Vec<f64> {
        let clean = unit(sum(scene.iter().map(|concept| self.concepts[*concept].clone())));
        let noise = direction(random).into_iter().map(|value| SOUND_NOISE * value).collect();
        unit(sum([clean, self.offset.clone(), noise].into_iter()))
    }
}

/// A scene of one concept, or every other time of two.
pub fn scene(random: &mut StdRng) -> Scene {
    if random.random::<bool>() { vec![random.random_range(0..CONCEPTS)] } else { pair(random) }
}

/// Two concepts.
pub fn pair(random: &mut StdRng) -> Scene {
    let (first, step) = (random.random_range(0..CONCEPTS), random.random_range(1..CONCEPTS));
    let mut scene = vec![first, (first + step) % CONCEPTS];
    scene.sort_unstable();
    scene
}

/// A random unit vector.
pub fn direction(random: &mut StdRng) -> Vec<f64> {
    // Sums of uniform numbers are near enough to normal.
    let draw = |random: &mut StdRng| (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
    unit((0..CHANNELS).map(|_| draw(random)).collect())
}

fn sum(vectors: impl Iterator<Item = Vec<f64>>) -> Vec<f64> {
    vectors.fold(vec![0.0; CHANNELS], |sum, vector| sum.iter().zip(vector).map(|(a, b)| a + b).collect())
}

fn unit(vector: Vec<f64>) -> Vec<f64> {
    let norm = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    vector.into_iter().map(|value| value / norm).collect()
}

/// Embeddings as rows.
pub fn rows(embeddings: &[Vec<f64>], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(embeddings.concat(), [embeddings.len(), CHANNELS]), device)
}
