//! Which bytes go to which experts.

use burn::tensor::Device;
use gatekit::core::probe::HeatMap;
use gatekit_examples::ExampleError;
use gatekit_examples::tasks::{self, Corpus};
use rand::seq::SliceRandom;

use crate::learning::held_out;
use crate::network::{LAYERS, Network, Task};
use crate::variants::EXPERTS;

/// Characters in the picture.
const CHARACTERS: usize = 44;

/// Byte and first expert of every held-out token, a layer.
pub struct Choices(Vec<Vec<(u8, usize)>>);

impl Choices {
    /// What the routers of a trained model choose; empty for a model without.
    pub fn of(
        network: &Network,
        corpus: &Corpus,
        windows: usize,
        device: &Device,
    ) -> Result<Self, ExampleError> {
        let mut layers = vec![Vec::new(); LAYERS];
        for ids in held_out(corpus, windows, device) {
            let bytes: Vec<u8> = ids.to_data().iter::<i64>().map(|id| id as u8).collect();
            let (_, decisions) = network.forward(ids, Task::Next)?;
            for (layer, routing) in layers.iter_mut().zip(decisions.iter().filter_map(|it| it.routing())) {
                let k = routing.assignment.per_token();
                let first = routing.assignment.experts().iter().step_by(k);
                layer.extend(bytes.iter().copied().zip(first.copied()));
            }
        }
        layers.retain(|layer| !layer.is_empty());
        Ok(Self(layers))
    }

    /// Mean over layers of the information in bits that the first expert gives about the byte, and the same for bytes
    /// in another order: what chance alone makes of so few tokens. `None` without routers.
    pub fn information(&self, seed: u64) -> Option<(f64, f64)> {
        let layers = self.0.len() as f64;
        let shuffled = |layer: &Vec<(u8, usize)>| {
            let (mut bytes, experts): (Vec<u8>, Vec<usize>) = layer.iter().copied().unzip();
            bytes.shuffle(&mut tasks::random(seed));
            information(&bytes.into_iter().zip(experts).collect::<Vec<_>>())
        };
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / layers;
        (layers > 0.0).then(|| {
            (
                mean(self.0.iter().map(|layer| information(layer)).collect()),
                mean(self.0.iter().map(shuffled).collect()),
            )
        })
    }

    /// The share of every frequent character that goes to each expert of the last layer first.
    pub fn map(&self, title: &str) -> Option<HeatMap> {
        let pairs = self.0.last()?;
        let mut counts = vec![[0usize; EXPERTS]; 256];
        for (byte, expert) in pairs {
            counts[usize::from(*byte)][*expert] += 1;
        }
        let total = |byte: &u8| counts[usize::from(*byte)].iter().sum::<usize>();
        let mut bytes: Vec<u8> = (0..=u8::MAX).filter(|byte| total(byte) > 0).collect();
        bytes.sort_by_key(|byte| std::cmp::Reverse(total(byte)));
        bytes.truncate(CHARACTERS);
        bytes.sort_by_key(|byte| (class(*byte), *byte));
        let row = |expert: usize| -> Vec<f64> {
            bytes.iter().map(|byte| counts[usize::from(*byte)][expert] as f64 / total(byte) as f64).collect()
        };
        let map = HeatMap::new(
            title,
            "character",
            "expert",
            "share of a character",
            (0..EXPERTS).map(row).collect(),
        )
        .with_row_values((1..=EXPERTS).map(|expert| expert as f64))
        .with_column_labels(bytes.iter().map(|byte| character(*byte)))
        .with_range(0.0, 1.0)
        .with_size(1000, 400);
        Some(map)
    }
}

/// `I(byte; expert)` in bits, from counts.
fn information(pairs: &[(u8, usize)]) -> f64 {
    let mut joint = vec![0.0; 256 * EXPERTS];
    for (byte, expert) in pairs {
        joint[usize::from(*byte) * EXPERTS + expert] += 1.0 / pairs.len() as f64;
    }
    let entropy = |shares: &mut dyn Iterator<Item = f64>| -> f64 {
        shares.filter(|share| *share > 0.0).map(|share| -share * share.log2()).sum()
    };
    let bytes = entropy(&mut joint.chunks(EXPERTS).map(|row| row.iter().sum()));
    let experts = entropy(&mut (0..EXPERTS).map(|expert| joint.iter().skip(expert).step_by(EXPERTS).sum()));
    bytes + experts - entropy(&mut joint.iter().copied())
}

/// Spaces, punctuation, vowels, other small letters, capitals.
fn class(byte: u8) -> usize {
    match byte {
        b' ' | b'\n' | b'\t' | b'\r' => 0,
        b'a' | b'e' | b'i' | b'o' | b'u' | b'y' => 2,
        b'a'..=b'z' => 3,
        b'A'..=b'Z' => 4,
        _ => 1,
    }
}

fn character(byte: u8) -> String {
    match byte {
        b' ' => "␣".to_string(),
        b'\n' => "¶".to_string(),
        0x21..=0x7e => char::from(byte).to_string(),
        _ => "·".to_string(),
    }
}
