//! Generated speech, and three ways to forge it.

use std::f32::consts::TAU;

use rand::RngExt;
use rand::rngs::StdRng;

/// Samples a second.
pub const RATE: usize = 16_000;
/// Samples of an utterance, half a second.
pub const LENGTH: usize = 8_000;
/// Samples in which pitch and formants stand still, 4 ms.
const BLOCK: usize = 64;
/// Silence at either end, 60 ms.
const SILENCE: usize = 960;
/// Formants of five vowels in hertz.
const VOWELS: [[f32; 3]; 5] = [
    [730.0, 1090.0, 2440.0],
    [270.0, 2290.0, 3010.0],
    [300.0, 870.0, 2240.0],
    [530.0, 1840.0, 2480.0],
    [570.0, 840.0, 2410.0],
];

/// A way to forge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgery {
    /// Every harmonic's phase wanders by itself, as a vocoder's that guesses phases.
    PhaseNoise,
    /// Nothing is left of the top band, as of a model trained on narrower speech.
    MissingTop,
    /// Every other sample is weaker, as after a careless upsampling: the spectrum is mirrored into the top band.
    TwoSamplePeriod,
}

impl Forgery {
    /// All of them.
    pub const ALL: [Forgery; 3] = [Forgery::PhaseNoise, Forgery::MissingTop, Forgery::TwoSamplePeriod];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::PhaseNoise => "phase noise",
            Self::MissingTop => "missing top band",
            Self::TwoSamplePeriod => "2-sample period",
        }
    }
}

/// A voice.
#[derive(Clone, Debug)]
pub struct Speaker {
    /// Mean pitch in hertz.
    pitch: f32,
    /// Vibrato in hertz, and its share of the pitch.
    vibrato: (f32, f32),
    /// Length of the vocal tract against the mean: formants are divided by it.
    tract: f32,
    /// How fast harmonics weaken upwards.
    tilt: f32,
    /// Strength of the four formants of the top.
    top: [f32; 4],
}

fn between(low: f32, high: f32, random: &mut StdRng) -> f32 {
    low + (high - low) * random.random::<f32>()
}

/// A number of the standard normal distribution.
pub fn normal(random: &mut StdRng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt();
    radius * (TAU * random.random::<f32>()).cos()
}

impl Speaker {
    /// Somebody.
    pub fn draw(random: &mut StdRng) -> Self {
        Self {
            pitch: between(90.0, 240.0, random),
            vibrato: (between(4.0, 7.0, random), between(0.01, 0.04, random)),
            tract: between(0.85, 1.18, random),
            tilt: between(0.7, 1.3, random),
            top: [0; 4].map(|_| between(0.05, 0.25, random)),
        }
    }

    /// Gain of the vocal tract at `f` hertz for formants in hertz.
    fn gain(&self, f: f32, formants: &[f32; 3]) -> f32 {
        let resonance = |centre: f32, width: f32| 1.0 / (1.0 + ((f - centre / self.tract) / width).powi(2));
        let low: f32 = (formants.iter().enumerate())
            .map(|(index, centre)| resonance(*centre, 70.0 + 30.0 * index as f32))
            .sum();
        let high: f32 = (self.top.iter().enumerate())
            .map(|(index, gain)| gain * resonance(3500.0 + 1100.0 * index as f32, 250.0))
            .sum();
        (low + high + 0.01) / (1.0 + f / 800.0).powf(self.tilt)
    }

    /// Two syllables of this voice, genuine or forged.
    pub fn utterance(&self, forgery: Option<Forgery>, random: &mut StdRng) -> Vec<f32> {
        let vowels = [0; 2].map(|_| VOWELS[random.random_range(0..VOWELS.len())]);
        let pitch = self.pitch * between(0.9, 1.1, random);
        let start = between(0.0, TAU, random);
        let wander = if forgery == Some(Forgery::PhaseNoise) { between(0.25, 0.6, random) } else { 0.0 };
        let most = (RATE as f32 / 2.0 / (0.8 * self.pitch)) as usize;
        let mut drift = vec![0.0f32; most + 1];
        let (mut wave, mut phase) = (vec![0.0f32; LENGTH], 0.0f32);
        for block in 0..LENGTH / BLOCK {
            let share = block as f32 / (LENGTH / BLOCK) as f32;
            let seconds = (block * BLOCK) as f32 / RATE as f32;
            let f0 = pitch
                * (1.0 + self.vibrato.1 * (TAU * self.vibrato.0 * seconds + start).sin())
                * (1.06 - 0.12 * share);
            let glide = (6.0 * (share - 0.5)).tanh() * 0.5 + 0.5;
            let formants: [f32; 3] =
                std::array::from_fn(|i| vowels[0][i] + glide * (vowels[1][i] - vowels[0][i]));
            let step = TAU * f0 / RATE as f32;
            let samples = &mut wave[block * BLOCK..(block + 1) * BLOCK];
            for (harmonic, drift) in drift.iter_mut().enumerate().skip(1) {
                let f = f0 * harmonic as f32;
                if f > 0.49 * RATE as f32 {
                    break;
                }
                *drift += wander * normal(random);
                let gain = self.gain(f, &formants);
                // A harmonic turns by the same angle from sample to sample.
                let (mut sine, mut cosine) = (phase * harmonic as f32 + *drift).sin_cos();
                let (turn_sine, turn_cosine) = (step * harmonic as f32).sin_cos();
                for sample in samples.iter_mut() {
                    *sample += gain * cosine;
                    (sine, cosine) =
                        (sine * turn_cosine + cosine * turn_sine, cosine * turn_cosine - sine * turn_sine);
                }
            }
            phase = (phase + step * BLOCK as f32) % TAU;
        }
        for (index, sample) in wave.iter_mut().enumerate() {
            *sample *= loudness(index);
        }
        scale(&mut wave, 0.1);
        let hiss = 0.1 * between(0.003, 0.01, random);
        wave.iter_mut().for_each(|sample| *sample += hiss * normal(random));
        match forgery {
            Some(Forgery::MissingTop) => wave = low_pass(&wave, between(5200.0, 6800.0, random)),
            Some(Forgery::TwoSamplePeriod) => {
                let depth = between(0.02, 0.08, random);
                wave.iter_mut().skip(1).step_by(2).for_each(|sample| *sample *= 1.0 - depth);
            }
            Some(Forgery::PhaseNoise) | None => {}
        }
        scale(&mut wave, 0.1);
        wave
    }
}

/// Two syllables between silences.
fn loudness(index: usize) -> f32 {
    let Some(at) = index.checked_sub(SILENCE).filter(|at| *at < LENGTH - 2 * SILENCE) else { return 0.0 };
    let share = at as f32 / (LENGTH - 2 * SILENCE) as f32;
    (TAU * share).sin().abs().sqrt()
}

/// To a root mean square.
fn scale(wave: &mut [f32], to: f32) {
    let square = wave.iter().map(|sample| sample * sample).sum::<f32>() / wave.len() as f32;
    let factor = to / square.sqrt().max(1e-6);
    wave.iter_mut().for_each(|sample| *sample *= factor);
}

/// What lies below `cutoff` hertz (a windowed sinc of 127 samples).
pub fn low_pass(wave: &[f32], cutoff: f32) -> Vec<f32> {
    const HALF: usize = 63;
    let turn = TAU * cutoff / RATE as f32;
    let mut filter: Vec<f32> = (0..=2 * HALF)
        .map(|i| {
            let at = i as f32 - HALF as f32;
            let sinc = if at == 0.0 { turn } else { (turn * at).sin() / at };
            sinc * (0.54 + 0.46 * (TAU / 2.0 * at / HALF as f32).cos())
        })
        .collect();
    let sum: f32 = filter.iter().sum();
    filter.iter_mut().for_each(|weight| *weight /= sum);
    let mut padded = vec![0.0; wave.len() + 2 * HALF];
    padded[HALF..HALF + wave.len()].copy_from_slice(wave);
    padded.windows(filter.len()).map(|part| part.iter().zip(&filter).map(|(x, w)| x * w).sum()).collect()
}
