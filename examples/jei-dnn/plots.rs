//! Curves over the mean cost, and who leaves where.

use gatekit::core::probe::LinePlot;

use crate::spiral::DIFFICULTIES;
use crate::{AFTER, CONFIDENCE, JOINT, Run};

/// Means over the seeds of (x, y), a point a setting, in the order of x.
fn curve(runs: &[Run], policy: &str, point: impl Fn(&Run) -> Option<(f64, f64)>) -> Vec<(f64, f64)> {
    let settings = runs.iter().map(|run| run.setting).max().map_or(0, |last| last + 1);
    let mean = |setting: usize| {
        let of = runs.iter().filter(|run| run.policy == policy && run.setting == setting);
        let points: Vec<(f64, f64)> = of.filter_map(&point).collect();
        let count = points.len() as f64;
        (!points.is_empty()).then(|| {
            (points.iter().map(|p| p.0).sum::<f64>() / count, points.iter().map(|p| p.1).sum::<f64>() / count)
        })
    };
    let mut curve: Vec<(f64, f64)> = (0..settings).filter_map(mean).collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    curve
}

fn by_cost(runs: &[Run], title: &str, label: &str, value: impl Fn(&Run) -> f64) -> LinePlot {
    let plot = LinePlot::new(title, "mean cost of the exits taken", label);
    [JOINT, AFTER, CONFIDENCE].into_iter().fold(plot, |plot, policy| {
        plot.with_series(policy, curve(runs, policy, |run| Some((run.outcome.cost, value(run)))))
    })
}

/// Accuracy against cost.
pub fn accuracy(runs: &[Run]) -> LinePlot {
    by_cost(runs, "Quality against compute", "accuracy", |run| run.outcome.accuracy)
}

/// Calibration error against cost.
pub fn calibration(runs: &[Run]) -> LinePlot {
    by_cost(runs, "Do confidences mean what they say?", "expected calibration error", |run| run.outcome.ece)
}

/// Mean exit by band of the radius, a line a price.
pub fn exits_by_difficulty(runs: &[Run], difficulty: &[usize], tradeoffs: &[f64]) -> LinePlot {
    let plot = LinePlot::new("Where points leave (JEI-DNN)", "difficulty: twist of the spiral", "mean exit");
    tradeoffs.iter().enumerate().fold(plot, |plot, (setting, tradeoff)| {
        let mean = |band: usize| {
            let levels = runs.iter().filter(|run| run.policy == JOINT && run.setting == setting);
            let levels = levels.flat_map(|run| run.outcome.levels.iter().zip(difficulty));
            let of_band: Vec<f64> =
                levels.filter(|(_, of)| **of == band).map(|(level, _)| *level as f64).collect();
            (band as f64 + 1.0, of_band.iter().sum::<f64>() / of_band.len() as f64)
        };
        plot.with_series(&format!("price {tradeoff}"), (0..DIFFICULTIES).map(mean).collect::<Vec<_>>())
    })
}

/// Measured time against counted cost, and their agreement.
pub fn time(runs: &[Run]) -> LinePlot {
    let measured = curve(runs, JOINT, |run| run.time.map(|time| (run.outcome.cost, time)));
    LinePlot::new("Time that stopping saves", "mean cost of the exits taken", "time over the whole network's")
        .with_series("infer, measured", measured)
        .with_series("counted", [(0.15, 0.15), (1.0, 1.0)])
}
