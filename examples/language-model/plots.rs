//! What a run measured, drawn as SVG: the loss beside the n-gram models, and how open the gates are.

use std::ops::Range;
use std::path::Path;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::error::RunError;
use crate::metrics::{GateRow, StepRow};
use crate::ngram::{Estimates, MAX_ORDER};

const SIZE: (u32, u32) = (900, 520);
const INK: RGBColor = RGBColor(40, 44, 52);
const PALE: RGBColor = RGBColor(168, 192, 226);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 90, 166),
    RGBColor(200, 82, 0),
    RGBColor(44, 132, 76),
    RGBColor(143, 62, 151),
    RGBColor(190, 30, 60),
    RGBColor(112, 96, 48),
];

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// `loss.svg`: bits per byte over the steps on the training batches and on held-out text, and the n-gram models.
pub fn loss(folder: &Path, rows: &[StepRow], steps: usize, baselines: &Estimates) -> Result<(), RunError> {
    let Some(least) = rows.iter().map(|row| row.bits_per_byte).reduce(f64::min) else {
        return Ok(());
    };
    let bits = 0.9 * least.min(baselines.best())..5.2;
    draw(&folder.join("loss.svg"), "Loss", "bits per byte", 0.0..steps as f64, bits, |chart| {
        let points = |row: &StepRow| (row.step as f64, row.bits_per_byte);
        chart.draw_series(LineSeries::new(rows.iter().map(points), PALE))?;
        let smooth = LineSeries::new(smoothed(rows), COLOURS[0].stroke_width(2));
        chart.draw_series(smooth)?.label("training, running mean").legend(line_key(COLOURS[0]));

        let looks: Vec<(f64, f64)> =
            (rows.iter()).filter_map(|row| Some((row.step as f64, row.validation_bits_per_byte?))).collect();
        let dots = looks.iter().map(|&look| Circle::new(look, 4, COLOURS[1].filled()));
        chart.draw_series(LineSeries::new(looks.clone(), COLOURS[1]))?;
        (chart.draw_series(dots)?)
            .label("held-out text, its beginning")
            .legend(|(x, y)| Circle::new((x + 9, y), 4, COLOURS[1].filled()));

        for order in 2..=MAX_ORDER {
            let height = baselines.kneser_ney[order - 1];
            let line = [(0.0, height), (steps as f64, height)];
            let series =
                chart.draw_series(DashedLineSeries::new(line, 6, 4, INK.mix(0.6).stroke_width(1)))?;
            if order == MAX_ORDER {
                series.label("n-gram models, Kneser-Ney").legend(line_key(INK));
            }
            let style = ("sans-serif", 13).into_font().color(&INK);
            let place = (0.985 * steps as f64, height + 0.03);
            let style = style.pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Right,
                plotters::style::text_anchor::VPos::Bottom,
            ));
            chart.draw_series([Text::new(format!("order {order}"), place, style)])?;
        }
        Ok(())
    })
}

/// `forget-gates.svg` and `output-gates.svg`: the mean value of every layer's gate over the steps.
pub fn gates(folder: &Path, rows: &[GateRow]) -> Result<(), RunError> {
    for (gate, title, axis) in [
        ("forget", "Forget gates", "mean share of the memory that survives a byte"),
        ("output", "Output gates", "mean size of what a channel's output is multiplied by"),
    ] {
        let rows: Vec<&GateRow> = rows.iter().filter(|row| row.gate == gate).collect();
        let (Some(last), Some(layers)) =
            (rows.iter().map(|row| row.step).max(), rows.iter().map(|row| row.layer).max())
        else {
            continue;
        };
        let least = rows.iter().map(|row| row.mean).fold(f64::INFINITY, f64::min);
        let most = rows.iter().map(|row| row.mean).fold(0.0, f64::max);
        let margin = (0.1 * (most - least)).max(0.01);
        let range = (least - margin).max(0.0)..most + margin;
        let path = folder.join(format!("{gate}-gates.svg"));
        draw(&path, title, axis, 0.0..last.max(1) as f64, range, |chart| {
            for layer in 1..=layers {
                let colour = COLOURS[(layer - 1) % COLOURS.len()];
                let of_layer = rows.iter().filter(|row| row.layer == layer);
                let points = of_layer.map(|row| (row.step as f64, row.mean));
                (chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?)
                    .label(format!("layer {layer}"))
                    .legend(line_key(colour));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A chart over training steps with a legend; `content` draws the series.
fn draw(
    path: &Path,
    title: &str,
    axis: &str,
    steps: Range<f64>,
    values: Range<f64>,
    content: impl FnOnce(&mut Chart) -> Drawn,
) -> Result<(), RunError> {
    let result = (|| -> Drawn {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 22).into_font().color(&INK))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(steps, values)?;
        (chart.configure_mesh())
            .light_line_style(WHITE)
            .bold_line_style(INK.mix(0.12))
            .axis_style(INK.mix(0.5))
            .label_style(("sans-serif", 14).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
            .x_desc("steps")
            .y_desc(axis)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .draw()?;
        content(&mut chart)?;
        (chart.configure_series_labels())
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(INK.mix(0.3))
            .label_font(("sans-serif", 14).into_font().color(&INK))
            .draw()?;
        area.present()?;
        Ok(())
    })();
    result.map_err(|error| RunError::Plot { path: path.to_path_buf(), reason: error.to_string() })
}

/// The stroke in front of a legend's entry.
fn line_key(colour: RGBColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
}

/// The mean over a fiftieth of the run around every step.
fn smoothed(rows: &[StepRow]) -> Vec<(f64, f64)> {
    let half = rows.len() / 100;
    (0..rows.len())
        .map(|index| {
            let around = &rows[index.saturating_sub(half)..(index + half + 1).min(rows.len())];
            let mean = around.iter().map(|row| row.bits_per_byte).sum::<f64>() / around.len() as f64;
            (rows[index].step as f64, mean)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_run_is_drawn_with_its_baselines_and_layers() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let steps: Vec<StepRow> = (1..=200)
            .map(|step| StepRow {
                step,
                loss: 0.0,
                bits_per_byte: 2.4 + 5.6 * (-(step as f64) / 30.0).exp(),
                learning_rate: 1e-3,
                bytes_per_second: 1e4,
                validation_bits_per_byte: step.is_multiple_of(20).then_some(2.6),
            })
            .collect();
        let baselines =
            Estimates { kneser_ney: [4.8, 3.7, 3.1, 2.6, 2.4], witten_bell: [4.8, 3.7, 3.2, 2.8, 2.7] };
        loss(folder.path(), &steps, 400, &baselines).expect("drawn");
        let picture = fs::read_to_string(folder.path().join("loss.svg")).expect("read");
        assert!(picture.contains("order 5") && picture.contains("held-out text"));
        assert_eq!(picture.matches("<circle").count(), 10 + 1, "a dot a look, and one in the legend");

        let rows: Vec<GateRow> = (0..=200)
            .step_by(20)
            .flat_map(|step| [1, 2, 3].map(|layer| (step, layer)))
            .map(|(step, layer)| GateRow {
                step,
                layer,
                gate: "forget".into(),
                mean: 0.9 + 0.02 * layer as f64,
                below_0_1: 0.0,
                above_0_9: 1.0,
            })
            .collect();
        gates(folder.path(), &rows).expect("drawn");
        let picture = fs::read_to_string(folder.path().join("forget-gates.svg")).expect("read");
        assert!(picture.contains("layer 3") && !picture.contains("layer 4"));
        assert!(!folder.path().join("output-gates.svg").exists());
    }

    #[test]
    fn nothing_measured_is_nothing_drawn() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        loss(folder.path(), &[], 10, &Estimates::default()).expect("nothing to do");
        gates(folder.path(), &[]).expect("nothing to do");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 0);
    }
}
