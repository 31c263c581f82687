//! Generated stays: a hidden severity, two channels that show half of it each, and notes about it.

use std::f64::consts::TAU;

use gatekit::fusion::irregular_ehr::{Note, Stay};
use rand::RngExt;
use rand::rngs::StdRng;

/// Hours of a stay, and of the grid.
pub const HOURS: usize = 24;
/// The smooth channel and the one of steps.
pub const CHANNELS: usize = 2;
/// Hours in which the smooth channel is rarely measured.
pub const RARE: std::ops::Range<f64> = 8.0..16.0;
/// Severity at the end above which the label is 1.
const GRAVE: f64 = 0.6;
/// Deviations of what is measured.
const NOISE: [f64; CHANNELS] = [0.7, 0.1];

const WORDS: [[&str; 4]; 3] = [
    ["calm", "stable", "resting", "improved"],
    ["grave", "distress", "worse", "unstable"],
    ["seen", "reviewed", "continue", "plan"],
];

/// All words of notes.
pub fn vocabulary() -> Vec<String> {
    WORDS.concat().into_iter().map(String::from).collect()
}

/// Draws stays whose observations are each left out with a probability drawn from `missing`.
pub fn draw(count: usize, missing: std::ops::RangeInclusive<f64>, random: &mut StdRng) -> Vec<Stay> {
    (0..count as u64).map(|patient| stay(patient, random.random_range(missing.clone()), random)).collect()
}

fn stay(patient: u64, missing: f64, random: &mut StdRng) -> Stay {
    let hidden = Severity::draw(random);
    let mut observed: Vec<(f64, usize)> = Vec::new();
    // The smooth channel: about twice an hour, but in some hours once in three.
    let mut hour = random.random_range(0.0..0.5);
    while hour < HOURS as f64 {
        observed.push((hour, 0));
        hour +=
            if RARE.contains(&hour) { random.random_range(2.0..4.0) } else { random.random_range(0.2..0.8) };
    }
    // The steps: soon after a change, and now and then.
    observed.extend(hidden.steps.iter().map(|(change, _)| (change + random.random_range(0.0..1.0), 1)));
    observed.extend((0..2).map(|_| (random.random_range(0.0..HOURS as f64), 1)));
    observed.retain(|(hour, _)| *hour < HOURS as f64 && random.random::<f64>() >= missing);
    observed.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut values, mut mask) = (Vec::new(), Vec::new());
    for (hour, channel) in &observed {
        let truth = [hidden.smooth(*hour), hidden.step(*hour)][*channel];
        let value = truth + NOISE[*channel] * normal(random);
        // Of the other channel nothing is known.
        values.extend((0..CHANNELS).map(|other| if other == *channel { value as f32 } else { f32::NAN }));
        mask.extend((0..CHANNELS).map(|other| other == *channel));
    }
    let notes = (0..random.random_range(2..=5)).map(|_| {
        let hour = random.random_range(0.0..HOURS as f64);
        Note { hour, text: text(hidden.smooth(hour) + hidden.step(hour), random) }
    });
    let notes = notes.collect();
    let end = HOURS as f64;
    let label = u8::from(hidden.smooth(end) + hidden.step(end) > GRAVE);
    Stay {
        patient,
        hours: observed.iter().map(|(hour, _)| *hour).collect(),
        values,
        mask,
        notes,
        labels: vec![label],
    }
}

/// Eight words; the graver, the more of the second kind.
fn text(severity: f64, random: &mut StdRng) -> String {
    let grave = 1.0 / (1.0 + (-1.2 * severity).exp());
    let word = |_| {
        let kind = match random.random::<f64>() {
            neutral if neutral < 0.4 => 2,
            _ => usize::from(random.random::<f64>() < grave),
        };
        WORDS[kind][random.random_range(0..4)]
    };
    (0..8).map(word).collect::<Vec<_>>().join(" ")
}

/// The same stays with the same times and a standard normal number for every measured value.
pub fn with_noise_for_series(stays: &[Stay], random: &mut StdRng) -> Vec<Stay> {
    let mut noisy = stays.to_vec();
    for stay in &mut noisy {
        stay.values.iter_mut().for_each(|value| *value = normal(random) as f32);
    }
    noisy
}

/// The same stays with words that say nothing.
pub fn with_noise_for_notes(stays: &[Stay], random: &mut StdRng) -> Vec<Stay> {
    let (mut noisy, words) = (stays.to_vec(), WORDS.concat());
    for note in noisy.iter_mut().flat_map(|stay| &mut stay.notes) {
        let drawn: Vec<&str> = (0..8).map(|_| words[random.random_range(0..words.len())]).collect();
        note.text = drawn.join(" ");
    }
    noisy
}

/// Observations in every hour, `[HOURS]`.
pub fn observations(stay: &Stay) -> Vec<usize> {
    let mut counts = vec![0; HOURS];
    for hour in &stay.hours {
        counts[(*hour as usize).min(HOURS - 1)] += 1;
    }
    counts
}

/// A wave, and steps.
struct Severity {
    amplitude: f64,
    period: f64,
    phase: f64,
    /// Hours of change and levels from then on; the first at hour 0.
    steps: Vec<(f64, f64)>,
}

impl Severity {
    fn draw(random: &mut StdRng) -> Self {
        let mut steps = vec![(0.0, normal(random))];
        let mut hour = random.random_range(3.0..15.0);
        while hour < HOURS as f64 {
            steps.push((hour, normal(random)));
            hour += random.random_range(3.0..15.0);
        }
        Self {
            amplitude: random.random_range(0.8..1.6),
            period: random.random_range(10.0..30.0),
            phase: random.random_range(0.0..TAU),
            steps,
        }
    }

    fn smooth(&self, hour: f64) -> f64 {
        self.amplitude * (TAU * hour / self.period + self.phase).sin()
    }

    fn step(&self, hour: f64) -> f64 {
        self.steps.iter().rev().find(|(from, _)| *from <= hour).map_or(0.0, |(_, level)| *level)
    }
}

/// By Box and Muller.
fn normal(random: &mut StdRng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (TAU * random.random::<f64>()).cos()
}
