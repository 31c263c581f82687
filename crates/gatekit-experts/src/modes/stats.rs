//! How much was skipped, and where.

use std::fmt::Write as _;

use gatekit_core::probe::Probe;

use super::Modality;

/// Skipped and all slots of one layer by modality ([`Modality::code`]); padding is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SkipCounts {
    /// Skipped slots.
    pub skipped: [usize; 3],
    /// All slots.
    pub total: [usize; 3],
}

impl SkipCounts {
    /// The share of slots that are skipped, over all modalities; 0 without slots.
    pub fn ratio(&self) -> f64 {
        share(self.skipped.iter().sum(), self.total.iter().sum())
    }

    /// The same for one modality.
    pub fn ratio_of(&self, modality: Modality) -> f64 {
        share(self.skipped[modality.code()], self.total[modality.code()])
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        for modality in Modality::ALL.map(Modality::code) {
            self.skipped[modality] += other.skipped[modality];
            self.total[modality] += other.total[modality];
        }
    }
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Skipped and all slots of a model by layer and modality.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SkipStats {
    layers: Vec<SkipCounts>,
}

impl SkipStats {
    /// From the counts of every layer, in the order of the layers.
    pub fn new(layers: Vec<SkipCounts>) -> Self {
        Self { layers }
    }

    /// The counts of every layer.
    pub fn layers(&self) -> &[SkipCounts] {
        &self.layers
    }

    /// The counts of all layers together.
    pub fn total(&self) -> SkipCounts {
        let mut total = SkipCounts::default();
        self.layers.iter().for_each(|layer| total.add(layer));
        total
    }

    /// Skipped slots over all slots, of all layers and modalities; 0 without slots.
    pub fn ratio(&self) -> f64 {
        self.total().ratio()
    }

    /// Adds a further pass of the same model.
    ///
    /// # Panics
    ///
    /// When it has another number of layers, unless this one is still empty.
    pub fn merge(&mut self, other: &Self) {
        if self.layers.is_empty() {
            self.layers = vec![SkipCounts::default(); other.layers.len()];
        }
        let (own, others) = (self.layers.len(), other.layers.len());
        assert!(own == others, "SkipStats: {others} layers cannot be added to {own}");
        self.layers.iter_mut().zip(&other.layers).for_each(|(own, other)| own.add(other));
    }

    /// Adds every ratio to a probe at `step`: `skipped`, `skipped/text`, `skipped/vision`, and
    /// `skipped/layer N` (from 1).
    pub fn record(&self, probe: &mut Probe, step: usize) {
        let total = self.total();
        probe.record("skipped", step, total.ratio());
        probe.record("skipped/text", step, total.ratio_of(Modality::Text));
        probe.record("skipped/vision", step, total.ratio_of(Modality::Vision));
        for (index, layer) in self.layers.iter().enumerate() {
            probe.record(&format!("skipped/layer {}", index + 1), step, layer.ratio());
        }
    }

    /// A text table: skipped of all slots in percent, by layer and modality.
    pub fn table(&self) -> String {
        let mut table = format!("{:>5} {:>8} {:>8} {:>8} {:>8}\n", "layer", "text", "vision", "other", "all");
        let rows = self.layers.iter().enumerate().map(|(index, layer)| ((index + 1).to_string(), *layer));
        for (name, counts) in rows.chain([("all".to_string(), self.total())]) {
            let _ = write!(table, "{name:>5}");
            for modality in Modality::ALL {
                let _ = match counts.total[modality.code()] {
                    0 => write!(table, " {:>8}", "-"),
                    _ => write!(table, " {:>7.1}%", 100.0 * counts.ratio_of(modality)),
                };
            }
            let _ = writeln!(table, " {:>7.1}%", 100.0 * counts.ratio());
        }
        table
    }
}
