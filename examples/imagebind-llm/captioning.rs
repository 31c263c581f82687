//! How many scenes are described as they are.

use burn::tensor::{Device, Tensor};
use gatekit::fusion::imagebind_llm::{
    FlatIndex, GenerationConfig, ImageBindLlm, ModalityMix, VisualCacheConfig,
};
use gatekit_examples::{Condition, ExampleError, Robustness, tasks};

use super::world::{self, CHANNELS, CONCEPTS, END, START, Scene, World};

/// Neighbours and shares that are tried.
pub const NEIGHBOURS: [usize; 4] = [1, 10, 50, 200];
pub const SHARES: [f64; 7] = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0];
/// Images in the cache.
const CACHED: usize = 2000;

/// Scenes that were never seen, as they look and sound.
pub struct Test {
    /// One concept each.
    pub single: Vec<Scene>,
    pub images: Tensor<2>,
    pub sounds: Tensor<2>,
    /// Two concepts each: one image of both, or an image of one and the sound of the other.
    pub pairs: Vec<Scene>,
    pub pair_images: Tensor<2>,
    pub first_images: Tensor<2>,
    pub second_sounds: Tensor<2>,
    noise: Tensor<2>,
    index: FlatIndex,
    device: Device,
}

impl Test {
    /// `count` scenes of either kind, and a cache of images.
    pub fn new(world: &World, count: usize, seed: u64, device: &Device) -> Result<Self, ExampleError> {
        let mut random = tasks::random(seed + 3000);
        let single: Vec<Scene> = (0..count).map(|place| vec![place % CONCEPTS]).collect();
        let pairs: Vec<Scene> = (0..count).map(|_| world::pair(&mut random)).collect();
        let mut draw =
            |of: &dyn Fn(&mut rand::rngs::StdRng) -> Vec<Vec<f64>>| world::rows(&of(&mut random), device);
        let images = draw(&|random| single.iter().map(|scene| world.image(scene, random)).collect());
        let sounds = draw(&|random| single.iter().map(|scene| world.sound(scene, random)).collect());
        let pair_images = draw(&|random| pairs.iter().map(|scene| world.image(scene, random)).collect());
        let first_images = draw(&|random| pairs.iter().map(|pair| world.image(&pair[..1], random)).collect());
        let second_sounds =
            draw(&|random| pairs.iter().map(|pair| world.sound(&pair[1..], random)).collect());
        let noise = draw(&|random| (0..count).map(|_| world::direction(random)).collect());
        let (_, cached) = super::learning::scenes_and_images(world, CACHED, &mut random);
        let index = FlatIndex::new(world::rows(&cached, device))?;
        let device = device.clone();
        Ok(Self {
            single,
            images,
            sounds,
            pairs,
            pair_images,
            first_images,
            second_sounds,
            noise,
            index,
            device,
        })
    }

    /// Share of the scenes whose caption is word for word the right one, at the paper's temperature and nucleus.
    pub fn accuracy(
        &self,
        model: &ImageBindLlm,
        scenes: &[Scene],
        feats: Tensor<2>,
    ) -> Result<f64, ExampleError> {
        let config = GenerationConfig::new().with_max_new_tokens(9).with_eos_token_id(Some(END));
        let prompts = vec![vec![START]; scenes.len()];
        let said = model.generate(&prompts, Some(model.visual(feats)?), &config);
        let said = said.map_err(|error| ExampleError::unusable("captions", error.to_string()))?;
        let right = scenes.iter().zip(said).filter(|(scene, said)| {
            let caption = world::caption(scene);
            caption[..caption.len() - 1] == said[..]
        });
        Ok(right.count() as f64 / scenes.len() as f64)
    }

    /// Embeddings drawn towards the images of the cache, with the paper's inverse temperature.
    pub fn enhanced(
        &self,
        feats: Tensor<2>,
        neighbours: usize,
        share: f64,
    ) -> Result<Tensor<2>, ExampleError> {
        let config = VisualCacheConfig::new().with_cache_size(neighbours).with_cache_weight(share);
        Ok(config.try_init(self.index.clone())?.forward(feats)?.enhanced)
    }

    /// Images and sounds in equal parts.
    pub fn mixed(&self, images: Tensor<2>, sounds: Tensor<2>) -> Result<Tensor<2>, ExampleError> {
        Ok(ModalityMix::new(vec![1.0, 1.0])?.forward(Tensor::stack(vec![images, sounds], 0))?)
    }

    /// An image and a sound of the same concept, with either taken away or replaced by a random direction.
    pub fn robustness(
        &self,
        model: &ImageBindLlm,
        variant: &str,
        seed: u64,
        robustness: &mut Robustness,
    ) -> Result<(), ExampleError> {
        let nothing = Tensor::zeros([self.single.len(), CHANNELS], &self.device);
        let (image, sound) = (|| self.images.clone(), || self.sounds.clone());
        let noise = || self.noise.clone();
        for (condition, images, sounds) in [
            (Condition::Clean, image(), sound()),
            (Condition::Removed("image"), nothing.clone(), sound()),
            (Condition::Removed("sound"), image(), nothing),
            (Condition::Noise("image"), noise(), sound()),
            (Condition::Noise("sound"), image(), noise()),
        ] {
            let accuracy = self.accuracy(model, &self.single, self.mixed(images, sounds)?)?;
            robustness.record(variant, condition, seed, accuracy);
        }
        Ok(())
    }
}
