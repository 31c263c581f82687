//! What the experiment shows, as pictures.

use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit::experts::acm::BLOCK_ACMS;
use gatekit_examples::Results;

use crate::shapes::{GRID, PATCH, SIDE};
use crate::timing::SHARES;
use crate::training::{Judgement, LEARNERS, Study};
use crate::vit::LAYERS;
use crate::{ACCURACY, BUDGETS, FLOPS, MIDDLE};

/// Pictures that are shown.
const SHOWN: usize = 4;

/// Accuracy against executed FLOPs.
pub fn curves(results: &Results) -> LinePlot {
    let point = |name: &str| {
        let (flops, accuracy) = (results.mean(name, FLOPS), results.mean(name, ACCURACY));
        Some((flops?, accuracy?))
    };
    let curve = |name: &str| -> Vec<(f64, f64)> {
        BUDGETS.iter().filter_map(|budget| point(&format!("{name} {budget}"))).collect()
    };
    LinePlot::new("Shapes among clutter: accuracy against what is computed", FLOPS, ACCURACY)
        .with_series("adaptive computation modules", curve("ACM"))
        .with_series("choices by chance", curve("chance"))
        .with_series("pruned in width", curve("pruned"))
        .with_series("dense", point("dense"))
}

/// Share of the tokens by module and number of learners.
pub fn histogram(judgement: &Judgement) -> HeatMap {
    let title = format!("How many learners tokens use, budget {}", MIDDLE);
    let short =
        |module: &str| module.trim_start_matches("self_attention.").trim_end_matches("_proj").to_string();
    let names = (1..=LAYERS).flat_map(|layer| BLOCK_ACMS.map(|module| format!("{layer} {}", short(module))));
    HeatMap::new(&title, "learners", "layer and module", "share of tokens", judgement.histogram())
        .with_row_labels(names)
        .with_column_values((0..=LEARNERS).map(|learners| learners as f64))
        .with_range(0.0, 1.0)
        .with_size(640, 480)
}

/// Some pictures side by side.
pub fn pictures(study: &Study) -> HeatMap {
    let rows = (0..SIDE).map(|row| {
        side_by_side(study, SIDE, |picture, column| {
            f64::from(study.tests[picture].pixels[row * SIDE + column])
        })
    });
    HeatMap::new("Pictures", "pixel", "pixel", "brightness", rows.collect())
        .with_range(0.0, 1.0)
        .with_column_labels(numbers(study, SIDE))
        .with_size(960, 300)
}

/// What is computed in their patches.
pub fn patches(study: &Study, judgement: &Judgement) -> HeatMap {
    let title = format!("Share of the learners' cost by patch, budget {}", MIDDLE);
    let rows = (0..GRID).map(|row| {
        side_by_side(study, GRID, |picture, column| {
            judgement.share(|other, token| (other, token) == (picture, row * GRID + column))
        })
    });
    HeatMap::new(&title, "patch", "patch", "share", rows.collect())
        .with_column_labels(numbers(study, GRID))
        .with_size(960, 300)
}

/// One row of several pictures, with a gap between them.
fn side_by_side(study: &Study, width: usize, value: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let gap = width / GRID.max(PATCH);
    let shown = SHOWN.min(study.tests.len());
    let picture = |picture: usize| {
        let gap = if picture + 1 < shown { gap } else { 0 };
        let value = &value;
        (0..width).map(move |column| value(picture, column)).chain(std::iter::repeat_n(f64::NAN, gap))
    };
    (0..shown).flat_map(picture).collect()
}

/// Numbers of the columns of [`side_by_side`].
fn numbers(study: &Study, width: usize) -> Vec<String> {
    let gap = width / GRID.max(PATCH);
    let shown = SHOWN.min(study.tests.len());
    let of = |picture: usize| {
        let gap = if picture + 1 < shown { gap } else { 0 };
        (0..width).map(|column| column.to_string()).chain(std::iter::repeat_n(String::new(), gap))
    };
    (0..shown).flat_map(of).collect()
}

/// Milliseconds against the share of learners that run.
pub fn times(times: &Results) -> LinePlot {
    let mut plot = LinePlot::new(
        "One module, time against what is computed",
        "share of learners",
        "share of the time of all learners",
    );
    for learners in [4, 8] {
        let of = |name: &str, metric: &str| times.mean(&format!("{name}, N = {learners}"), metric);
        let full = of("all learners", "milliseconds").unwrap_or(f64::NAN);
        let points = SHARES.iter().filter_map(|share| {
            let name = format!("{share} of the budget");
            Some((of(&name, "share of learners")?, of(&name, "milliseconds")? / full))
        });
        plot = plot.with_series(&format!("gate and {learners} learners"), points);
    }
    plot.with_series("proportional", [(0.0, 0.0), (1.0, 1.0)])
}
