//! Reproducible data: the same seed gives the same numbers on every machine and device.

use burn::tensor::TensorData;

/// A stream of random numbers (SplitMix64: Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `[low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number of the normal distribution (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(0.0, 1.0)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(0.0, 1.0)).cos()
    }

    /// An integer in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// A float array of independent draws.
    pub fn array(&mut self, shape: &[usize], mut one: impl FnMut(&mut Self) -> f64) -> TensorData {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| one(self) as f32).collect();
        TensorData::new(values, shape.to_vec())
    }

    /// An array of normal draws.
    pub fn normals(&mut self, shape: &[usize]) -> TensorData {
        self.array(shape, Self::normal)
    }

    /// Token ids below `vocab_size`.
    pub fn tokens(&mut self, shape: &[usize], vocab_size: usize) -> TensorData {
        let ids: Vec<i64> = (0..shape.iter().product()).map(|_| self.below(vocab_size) as i64).collect();
        TensorData::new(ids, shape.to_vec())
    }

    /// Cuts `0..total` into pieces of at least one element: the ends `[0, .., total]`.
    pub fn cuts(&mut self, total: usize, share: f64) -> Vec<usize> {
        let mut cuts = vec![0];
        cuts.extend((1..total).filter(|_| self.uniform(0.0, 1.0) < share));
        cuts.push(total);
        cuts
    }
}
