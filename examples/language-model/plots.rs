//! What a run measured, drawn as SVG: the loss beside the n-gram models, and how open the gates are.

use std::path::Path;

use gatekit::core::probe::LinePlot;

use crate::error::RunError;
use crate::metrics::{GateRow, StepRow};
use crate::ngram::Estimates;

/// The first steps start at eight bits per byte; shown to scale they would flatten the rest.
const HIGHEST_BITS: f64 = 4.5;

/// `loss.svg`: bits per byte over the steps on the training batches and on held-out text, and the n-gram models.
pub fn loss(folder: &Path, rows: &[StepRow], steps: usize, baselines: &Estimates) -> Result<(), RunError> {
    let validation = rows.iter().filter_map(|row| Some((row.step as f64, row.validation_bits_per_byte?)));
    let shown = |points: Vec<(f64, f64)>| points.into_iter().filter(|point| point.1 <= HIGHEST_BITS);
    let mut plot = LinePlot::new("Loss", "step", "bits per byte")
        .with_series("training", shown(smoothed(rows)))
        .with_series("held-out text, a part of it", shown(validation.collect()));
    for order in [5, 4, 3] {
        let bits = baselines.kneser_ney[order - 1];
        plot = plot.with_series(&format!("Kneser-Ney, order {order}"), [(0.0, bits), (steps as f64, bits)]);
    }
    write(&plot, &folder.join("loss.svg"))
}

/// `forget-gates.svg` and `output-gates.svg`: the mean value of every layer's gate over the steps.
pub fn gates(folder: &Path, rows: &[GateRow]) -> Result<(), RunError> {
    for (gate, title, axis) in [
        ("forget", "Forget gates", "mean share of the memory that survives a byte"),
        ("output", "Output gates", "mean size of the factor on a channel's output"),
    ] {
        let rows: Vec<&GateRow> = rows.iter().filter(|row| row.gate == gate).collect();
        let Some(layers) = rows.iter().map(|row| row.layer).max() else {
            continue;
        };
        let plot = (1..=layers).fold(LinePlot::new(title, "step", axis), |plot, layer| {
            let of_layer = rows.iter().filter(|row| row.layer == layer);
            plot.with_series(&format!("layer {layer}"), of_layer.map(|row| (row.step as f64, row.mean)))
        });
        write(&plot, &folder.join(format!("{gate}-gates.svg")))?;
    }
    Ok(())
}

fn write(plot: &LinePlot, path: &Path) -> Result<(), RunError> {
    plot.write_svg(path).map_err(|source| RunError::Plot { path: path.to_path_buf(), source })
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
        for text in ["training", "held-out text", "Kneser-Ney, order 5", "bits per byte"] {
            assert!(picture.contains(text), "{text}");
        }

        let rows: Vec<GateRow> = (0..=200)
            .step_by(20)
            .flat_map(|step| [1, 2, 3].map(|layer| (step, layer)))
            .map(|(step, layer)| GateRow {
                step,
                layer,
                gate: "forget".into(),
                mean: 0.9 + 0.02 * layer as f64,
                deviation: 0.1,
                closed: 0.0,
                open: 1.0,
                entropy: 0.2,
            })
            .collect();
        gates(folder.path(), &rows).expect("drawn");
        let picture = fs::read_to_string(folder.path().join("forget-gates.svg")).expect("read");
        assert!(picture.contains("layer 3") && !picture.contains("layer 4"));
        assert!(!folder.path().join("output-gates.svg").exists());
    }

    #[test]
    fn a_model_without_gates_has_no_plot_of_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        gates(folder.path(), &[]).expect("nothing to do");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 0);
    }
}
