//! Tables and plots.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit_examples::{ExampleError, Results, Robustness, say};

use crate::clips::Clips;
use crate::detectors::Detector;
use crate::speech::Forgery;

/// Mean over the kinds that were left out.
const MEAN: &str = "mean";

/// Results with the mean over the kinds as a further metric.
pub fn with_mean(results: &Results) -> Results {
    let mut all = results.clone();
    for variant in results.variants() {
        let kinds = Forgery::ALL.map(|kind| results.values(variant, kind.name()));
        for seed in 0..kinds[0].len() {
            let mean = kinds.iter().map(|values| values[seed]).sum::<f64>() / kinds.len() as f64;
            all.record(variant, MEAN, seed as u64, mean);
        }
    }
    all
}

/// Gate values on the test clips, the shares of the self-supervised view, summed over detectors.
#[derive(Default)]
pub struct Gates {
    /// By channel of the first detector: bona fide, spoof.
    channels: Option<[Vec<f64>; 2]>,
    /// By frame, summed: bona fide, spoof.
    frames: [Vec<f64>; 2],
    detectors: usize,
}

impl Gates {
    /// Adds what the gate of `detector` does on `clips`.
    pub fn add(&mut self, detector: &Detector, clips: &Clips, device: &Device) -> Result<(), ExampleError> {
        let genuine = clips.of(&[]);
        let forged: Vec<usize> = (0..clips.kinds.len()).filter(|row| clips.kinds[*row].is_some()).collect();
        let mut channels = [vec![], vec![]];
        for (class, rows) in [genuine, forged].into_iter().enumerate() {
            let Some(gate) = detector.forward(clips.views(&rows, device))?.gate else { return Ok(()) };
            let values = |x: Tensor<3>| x.into_data().iter::<f64>().collect::<Vec<_>>();
            let frames = values(gate.clone().mean_dim(0).mean_dim(2));
            channels[class] = values(gate.mean_dim(0).mean_dim(1));
            self.frames[class].resize(frames.len(), 0.0);
            self.frames[class].iter_mut().zip(&frames).for_each(|(sum, value)| *sum += value);
        }
        self.detectors += 1;
        self.channels.get_or_insert(channels);
        Ok(())
    }

    fn plots(&self, out: &Path) -> Result<(), ExampleError> {
        let classes = ["bona fide", "spoof"];
        if let Some(channels) = &self.channels {
            let mut order: Vec<usize> = (0..channels[0].len()).collect();
            order.sort_by(|a, b| channels[0][*a].total_cmp(&channels[0][*b]));
            let plot = LinePlot::new(
                "Gate by channel (first detector)",
                "channel, in the order of its gate on genuine speech",
                "share of the self-supervised view",
            );
            let series = |class: usize| {
                order.iter().enumerate().map(|(at, channel)| (at as f64, channels[class][*channel])).collect()
            };
            let series: [Vec<(f64, f64)>; 2] = [series(0), series(1)];
            series
                .into_iter()
                .zip(classes)
                .fold(plot, |plot, (points, class)| plot.with_series(class, points))
                .write_svg(out.join("two-views-channels.svg"))?;
        }
        let plot = LinePlot::new(
            "Gate over time (mean over channels and detectors)",
            "milliseconds",
            "share of the self-supervised view",
        );
        let count = self.detectors.max(1) as f64;
        let points = |class: usize| {
            let points = self.frames[class].iter().enumerate();
            points.map(|(frame, sum)| (20.0 * frame as f64 + 10.0, sum / count)).collect::<Vec<_>>()
        };
        (0..2)
            .fold(plot, |plot, class| plot.with_series(classes[class], points(class)))
            .write_svg(out.join("two-views-time.svg"))?;
        Ok(())
    }
}

/// Prints the tables and writes all files.
pub fn write(
    out: &Path,
    unseen: &Results,
    seen: &Results,
    robustness: &Robustness,
    gates: &Gates,
) -> Result<(), ExampleError> {
    say("\nEqual error rate on the kind that was left out of the training (chance: 0.5):\n");
    say(unseen.table());
    say("On the two other kinds, by the kind that was left out:\n");
    say(seen.table());
    say("1 - equal error rate on the kinds trained on, with a view removed or replaced by noise:\n");
    say(robustness.table());
    for (name, results) in [("unseen", unseen), ("seen", seen)] {
        results.write_csv(out.join(format!("{name}.csv")))?;
        results.write_json(out.join(format!("{name}.json")))?;
    }
    robustness.save(out)?;
    unseen
        .bar_plot("Equal error rate on a kind of forgery not trained on", MEAN)
        .write_svg(out.join("two-views.svg"))?;
    seen.bar_plot("Equal error rate on the kinds trained on", MEAN)
        .write_svg(out.join("two-views-seen.svg"))?;
    let rows = |variant: &&str| {
        Forgery::ALL.map(|kind| unseen.mean(variant, kind.name()).unwrap_or(f64::NAN)).to_vec()
    };
    HeatMap::new(
        "Equal error rate by the kind that was left out",
        "kind",
        "detector",
        "equal error rate",
        unseen.variants().iter().map(rows).collect(),
    )
    .with_row_labels(unseen.variants())
    .with_column_labels(Forgery::ALL.map(Forgery::name))
    .with_range(0.0, 1.0)
    .write_svg(out.join("two-views-kinds.svg"))?;
    gates.plots(out)
}
