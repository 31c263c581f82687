//! Where the gates of a trained model open.

use burn::tensor::{Int, Tensor};
use gatekit::core::probe::LinePlot;
use gatekit::sequence::mixture_of_value_embeddings::MoveTextModel;
use gatekit_examples::Results;

use crate::facts::Facts;
use crate::text::Lab;

/// A slot is called open where it is amplified.
const NEUTRAL: f32 = 1.0;

/// Gates of every layer and head, and slots open by how often a token occurs.
pub struct Gates {
    means: Results,
    /// `open[layer]`: (occurrences, mean number of open slots a head), by powers of two.
    open: Vec<Vec<(f64, f64)>>,
}

/// Runs the model over facts and held-out text.
pub fn probe(model: &MoveTextModel, facts: &Facts, lab: &Lab) -> Gates {
    let ids: Tensor<2, Int> = lab.sample(facts);
    let tokens: Vec<usize> = ids.to_data().iter::<i64>().map(|id| id as usize).collect();
    let mut counts = vec![0usize; facts.vocabulary()];
    tokens.iter().for_each(|token| counts[*token] += 1);

    let (mut means, mut open) = (Results::new(), Vec::new());
    for (layer, gates) in model.gate_values(ids).into_iter().enumerate() {
        let Some(gates) = gates else { continue };
        let [_, _, heads, count] = gates.dims();
        let gates: Vec<f32> = gates.to_data().iter::<f32>().collect();
        for head in 0..heads {
            let mean = |gate: usize| {
                let of_gate = gates.chunks(heads * count).map(|token| f64::from(token[head * count + gate]));
                of_gate.sum::<f64>() / tokens.len() as f64
            };
            let slots: Vec<f64> = (1..count).map(mean).collect();
            let row = format!("layer {layer}, head {head}");
            means.record(&row, "own value", 0, mean(0));
            means.record(&row, "slots, mean", 0, slots.iter().sum::<f64>() / slots.len() as f64);
            means.record(&row, "slots, lowest", 0, slots.iter().copied().fold(f64::INFINITY, f64::min));
            means.record(&row, "slots, highest", 0, slots.iter().copied().fold(0.0, f64::max));
        }
        let mut by_frequency = vec![(0.0, 0.0); usize::BITS as usize];
        for (token, gates) in tokens.iter().zip(gates.chunks(heads * count)) {
            let open =
                gates.chunks(count).flat_map(|head| &head[1..]).filter(|gate| **gate > NEUTRAL).count();
            let (seen, total) = &mut by_frequency[counts[*token].ilog2() as usize];
            *seen += 1.0;
            *total += open as f64 / heads as f64;
        }
        let points = by_frequency.into_iter().enumerate().filter(|(_, (seen, _))| *seen > 0.0);
        open.push(
            points.map(|(power, (seen, total))| (f64::powi(2.0, power as i32), total / seen)).collect(),
        );
    }
    Gates { means, open }
}

impl Gates {
    /// Mean gates, a row a head.
    pub fn table(&self) -> String {
        self.means.table()
    }

    /// Open slots over the frequency of a token, a line a layer.
    pub fn plot(&self) -> LinePlot {
        let plot =
            LinePlot::new("Slots with a gate above 1, mean of a head", "occurrences of the token", "slots");
        let lines = self.open.iter().enumerate();
        lines.fold(plot.with_log_x(true), |plot, (layer, points)| {
            plot.with_series(&format!("layer {layer}"), points.iter().copied())
        })
    }
}
