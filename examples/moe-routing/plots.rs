//! Lines and maps.

use std::path::Path;

use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit_examples::{ExampleError, Results};

use crate::SLUG;
use crate::network::Load;
use crate::throughput::{COUNTS, MASKED, SORTED};
use crate::variants::{EXPERTS, NO_BALANCE, WITH_BIAS, WITH_LOSS};

/// Columns of a map at most.
const COLUMNS: usize = 100;

/// Values by step of every variant, as sums over seeds.
pub struct Curves(Vec<(&'static str, Vec<f64>, usize)>);

impl Curves {
    /// Without any.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds the values of one seed.
    pub fn add(&mut self, name: &'static str, values: Vec<f64>) {
        match self.0.iter_mut().find(|curve| curve.0 == name) {
            Some((_, sums, seeds)) => {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                *seeds += 1;
            }
            None => self.0.push((name, values, 1)),
        }
    }

    /// Means over the seeds, each point that of a `pieces`-th of the steps.
    pub fn plot(&self, title: &str, y_label: &str, pieces: usize) -> LinePlot {
        self.0.iter().fold(LinePlot::new(title, "step", y_label), |plot, (name, sums, seeds)| {
            let piece = sums.len().div_ceil(pieces);
            let points = sums.chunks(piece).enumerate().map(|(index, values)| {
                let middle = (index * piece) as f64 + values.len() as f64 / 2.0;
                (middle, values.iter().sum::<f64>() / (values.len() * seeds) as f64)
            });
            plot.with_series(name, points)
        })
    }
}

/// The load of every expert of the last layer over training, one map a kind of balance, all in the same colours.
pub fn load_maps(watched: &[(&str, Vec<Vec<Load>>)], out: &Path) -> Result<(), ExampleError> {
    let maps: Vec<(&str, Vec<Vec<f64>>, Vec<f64>)> = watched
        .iter()
        .map(|(name, loads)| {
            let piece = loads.len().div_ceil(COLUMNS);
            let load = |steps: &[Vec<Load>], expert: usize| {
                let shares = steps.iter().filter_map(|layers| Some(layers.last()?.shares[expert]));
                shares.sum::<f64>() / steps.len() as f64 * EXPERTS as f64
            };
            let row = |expert| loads.chunks(piece).map(|steps| load(steps, expert)).collect();
            let steps = (0..loads.len()).step_by(piece).map(|step| step as f64).collect();
            (*name, (0..EXPERTS).map(row).collect(), steps)
        })
        .collect();
    let highest = maps.iter().flat_map(|(_, rows, _)| rows).flatten().copied().fold(1.0, f64::max);
    for (name, rows, steps) in maps {
        let file = match name {
            NO_BALANCE => "none",
            WITH_LOSS => "loss",
            WITH_BIAS => "bias",
            other => other,
        };
        HeatMap::new(&format!("Load of the experts: {name}"), "step", "expert", "load over mean load", rows)
            .with_row_values((1..=EXPERTS).map(|expert| expert as f64))
            .with_column_values(steps)
            .with_range(0.0, highest)
            .with_size(800, 320)
            .write_svg(out.join(format!("{SLUG}-load-{file}.svg")))?;
    }
    Ok(())
}

/// Milliseconds by number of experts.
pub fn speed(results: &Results) -> LinePlot {
    let plot = LinePlot::new("The experts' forward pass", "experts", "milliseconds").with_log_x(true);
    [SORTED, MASKED].into_iter().fold(plot.with_log_y(true), |plot, way| {
        let points = COUNTS
            .into_iter()
            .filter_map(|count| Some((count as f64, results.mean(way, &format!("E = {count}"))?)));
        plot.with_series(way, points)
    })
}
