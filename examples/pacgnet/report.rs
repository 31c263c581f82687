//! Tables and plots over runs.

use std::path::Path;

use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit_examples::{Condition, ExampleError, Results, Robustness, say};

use crate::measure::{Measured, NOISE};

const CONDITIONS: [&str; 4] = ["all", "day", "night", "crossover"];
const SENSORS: [&str; 2] = ["RGB", "infrared"];

/// What a run found, in words: precision by condition, and with a sensor noisy or missing.
pub fn tables(measured: &[Measured], out: &Path) -> Result<(), ExampleError> {
    let (mut found, mut noisy) = (Results::new(), Results::new());
    let mut robust = Robustness::new("PACGNet", "mAP50");
    for run in measured {
        let [day, night, crossover] = run.by_condition;
        for (condition, value) in CONDITIONS.into_iter().zip([run.overall, day, night, crossover]) {
            found.record(&run.variant, condition, run.seed, value);
        }
        noisy.record(&run.variant, "clean", run.seed, run.overall);
        // A single stream has no other sensor to go by.
        let both = !run.variant.ends_with(" alone");
        if both {
            robust.record(&run.variant, Condition::Clean, run.seed, run.overall);
        }
        for (sensor, name) in SENSORS.into_iter().enumerate() {
            let noise = format!("{name} + noise {}", NOISE[2]);
            noisy.record(&run.variant, &noise, run.seed, run.noisy[sensor][2]);
            noisy.record(&run.variant, &format!("no {name}"), run.seed, run.missing[sensor]);
            if both {
                robust.record(&run.variant, Condition::Removed(name), run.seed, run.missing[sensor]);
                if let Some(replaced) = run.replaced {
                    robust.record(&run.variant, Condition::Noise(name), run.seed, replaced[sensor]);
                }
            }
        }
    }
    say("mAP50 by condition");
    say(found.table());
    say("mAP50 with one sensor noisy or missing at test time");
    say(noisy.table());
    say("mAP50 with one sensor removed or replaced by noise at test time");
    say(robust.table());
    say(verdict(&found));
    found.write_csv(out.join("results.csv"))?;
    noisy.write_csv(out.join("noisy.csv"))?;
    robust.save(out)?;
    found.bar_plot("Found in night scenes", "all").with_size(900, 420).write_svg(out.join("pacgnet.svg"))?;
    Ok(())
}

/// Who won, also where an ablation did.
fn verdict(found: &Results) -> String {
    let mean = |variant: &str| found.mean(variant, "all").unwrap_or(f64::NAN);
    let best = found.variants().into_iter().max_by(|a, b| mean(a).total_cmp(&mean(b))).unwrap_or("nothing");
    let (full, added) = (mean("PACGNet"), mean("added streams"));
    let spread = ["PACGNet", "added streams"].map(|variant| found.deviation(variant, "all").unwrap_or(0.0));
    let spread = spread[0].max(spread[1]);
    let gain = full - added;
    let seeds = found.values("PACGNet", "all").len();
    let word = match gain {
        _ if seeds < 2 => "of one seed, which says nothing about chance",
        _ if gain.abs() <= spread => "within the spread of the seeds: no difference shows",
        _ if gain > 0.0 => "the gates help",
        _ => "the gates do not help",
    };
    format!("best: {best} ({:.3}); PACGNet minus added streams: {gain:+.3}, {word}", mean(best))
}

/// Precision over noise, and by variant and condition.
pub fn plots(measured: &[Measured], out: &Path) -> Result<(), ExampleError> {
    let mut variants: Vec<&str> = Vec::new();
    for run in measured {
        if !variants.contains(&run.variant.as_str()) {
            variants.push(&run.variant);
        }
    }
    let mean = |variant: &str, value: &dyn Fn(&Measured) -> f64| {
        let values: Vec<f64> = measured.iter().filter(|run| run.variant == variant).map(value).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    for (sensor, name) in SENSORS.into_iter().enumerate() {
        let title = format!("Noise in {name} at test time");
        let plot = variants.iter().fold(
            LinePlot::new(&title, "deviation of the noise", "mAP50"),
            |plot, variant| {
                let clean = (0.0, mean(variant, &|run| run.overall));
                let noisy = NOISE.iter().enumerate();
                let noisy =
                    noisy.map(|(index, &sigma)| (sigma, mean(variant, &|run| run.noisy[sensor][index])));
                plot.with_series(variant, std::iter::once(clean).chain(noisy))
            },
        );
        plot.write_svg(out.join(format!("pacgnet-noise-{}.svg", name.to_lowercase())))?;
    }
    let rows = variants.iter().map(|variant| {
        let conditions = (0..3).map(|index| mean(variant, &|run| run.by_condition[index]));
        std::iter::once(mean(variant, &|run| run.overall)).chain(conditions).collect()
    });
    HeatMap::new("Found by condition", "", "", "mAP50", rows.collect())
        .with_row_labels(variants.iter().copied())
        .with_column_labels(CONDITIONS)
        .write_svg(out.join("pacgnet-conditions.svg"))?;
    Ok(())
}
