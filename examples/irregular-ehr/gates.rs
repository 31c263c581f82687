//! What the gates do, by hour and channel.

use burn::tensor::Device;
use gatekit::core::InputError;
use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit::fusion::irregular_ehr::{BagOfWords, EhrNetwork, Stay, StayLoader};
use gatekit_examples::Results;

use crate::stays::{self, HOURS};

/// The mean gate of test stays, by hour and channel.
pub struct Gates {
    /// `[HOURS][D]`, or one column for a gate that is the same in all channels.
    pub by_hour: Vec<Vec<f64>>,
    /// Mean gate of hours without, with one or two, and with more observations; NaN where there is no such hour.
    pub by_observations: [f64; 3],
}

impl Gates {
    /// Of a trained network.
    pub fn of(
        network: &EhrNetwork<BagOfWords>,
        stays: &[&Stay],
        loader: &StayLoader,
        device: &Device,
    ) -> Result<Self, InputError> {
        let mut by_hour = vec![Vec::new(); HOURS];
        let (mut sums, mut counts) = ([0.0; 3], [0.0; 3]);
        for part in stays.chunks(64) {
            let gate = network.model.forward(&loader.batch(part, &network.encoder, device)?).series.gate;
            let [_, _, channels] = gate.dims();
            let gate = gate.expand([part.len(), HOURS, channels]);
            let values: Vec<f64> = gate.into_data().iter::<f64>().collect();
            for (index, row) in values.chunks_exact(channels).enumerate() {
                let hour = index % HOURS;
                let seen = stays::observations(part[index / HOURS])[hour];
                let kind = seen.div_ceil(2).min(2);
                sums[kind] += row.iter().sum::<f64>() / channels as f64;
                counts[kind] += 1.0;
                by_hour[hour].resize(channels, 0.0);
                for (sum, value) in by_hour[hour].iter_mut().zip(row) {
                    *sum += value / stays.len() as f64;
                }
            }
        }
        let by_observations = std::array::from_fn(|kind| sums[kind] / counts[kind]);
        Ok(Self { by_hour, by_observations })
    }
}

/// Names of the columns of [`Gates::by_observations`].
pub const OBSERVATIONS: [&str; 3] = ["no observation", "1 or 2", "more"];

/// Records the means over channels: into `hours` by hour, into `seen` by number of observations.
pub fn record(gates: &Gates, variant: &str, seed: u64, hours: &mut Results, seen: &mut Results) {
    for (hour, row) in gates.by_hour.iter().enumerate() {
        hours.record(variant, &hour.to_string(), seed, row.iter().sum::<f64>() / row.len() as f64);
    }
    for (kind, value) in OBSERVATIONS.into_iter().zip(gates.by_observations) {
        seen.record(variant, kind, seed, value);
    }
}

/// A line a gate over the hours, and how often was measured.
pub fn by_hour_plot(hours: &Results, stays: &[Stay]) -> LinePlot {
    let plot = LinePlot::new("Share of the interpolation by hour", "hour", "mean gate");
    let plot = hours.variants().into_iter().fold(plot, |plot, variant| {
        let point = |hour: usize| Some((hour as f64 + 0.5, hours.mean(variant, &hour.to_string())?));
        plot.with_series(variant, (0..HOURS).filter_map(point).collect::<Vec<_>>())
    });
    let mut counts = vec![0.0; HOURS];
    for stay in stays {
        for (sum, count) in counts.iter_mut().zip(stays::observations(stay)) {
            *sum += count as f64;
        }
    }
    let most = counts.iter().copied().fold(1.0, f64::max);
    let share = counts.iter().enumerate().map(|(hour, count)| (hour as f64 + 0.5, count / most));
    plot.with_series("observations, share of the most", share.collect::<Vec<_>>())
}

/// Channels ordered by their mean.
pub fn by_channel_plot(gates: &Gates) -> HeatMap {
    let channels = gates.by_hour[0].len();
    let mean = |channel: usize| gates.by_hour.iter().map(|row| row[channel]).sum::<f64>();
    let mut order: Vec<usize> = (0..channels).collect();
    order.sort_by(|a, b| mean(*a).total_cmp(&mean(*b)));
    let rows = order.iter().map(|channel| gates.by_hour.iter().map(|row| row[*channel]).collect());
    HeatMap::new(
        "Share of the interpolation by channel",
        "hour",
        "channel, ordered",
        "mean gate",
        rows.collect::<Vec<Vec<f64>>>(),
    )
    .with_range(0.0, 1.0)
}
