//! What a trained network sees: pictures, the parts of their features, its maps, its gates.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use gatekit::core::batch_norm::BatchStatistics;
use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit::fusion::fpro::FPro;
use gatekit_examples::ExampleError;
use gatekit_examples::panels::{Panel, write_panels};

use crate::images::{self, Degradation, Pair};
use crate::run::Settings;

/// Screen pixels of a pixel.
const SCALE: usize = 4;
/// Pictures of each degradation.
const SHOWN: usize = 2;
const BINS: usize = 25;

/// Draws all of them; what `seed` trained is looked at on its test pictures.
pub fn draw(
    model: &FPro,
    settings: &Settings,
    seed: u64,
    out: &Path,
    device: &Device,
) -> Result<(), ExampleError> {
    let mut rows = Vec::new();
    let mut gates = LinePlot::new("Gates of the dynamic filter", "gate", "share of the gates");
    for degradation in Degradation::ALL {
        let pairs = settings.test_images(degradation, seed);
        rows.extend(panels(model, &pairs[..SHOWN.min(pairs.len())], settings.size, device)?);
        gates = gates.with_series(degradation.name(), histogram(model, &pairs, settings.size, device)?);
    }
    write_panels(&rows, settings.size, SCALE, out.join("fpro.jpg"))?;
    gates.write_svg(out.join("fpro-gates.svg"))?;
    maps(model, out)
}

/// Spoilt, restored, clean; then the low part and the size of the high part, means over the channels.
fn panels(
    model: &FPro,
    pairs: &[Pair],
    size: usize,
    device: &Device,
) -> Result<Vec<Vec<Panel>>, ExampleError> {
    let [spoilt, clean] = images::batch(pairs, size, device);
    let output = model.forward(spoilt.clone(), BatchStatistics::Running)?;
    let mut columns = vec![spoilt, output.image, clean];
    if let Some(parts) = output.parts {
        let grey = |map: Tensor<4>| stretched(map.mean_dim(1)).repeat_dim(1, 3);
        columns.extend([grey(parts.low), grey(parts.high.abs())]);
    }
    let columns: Vec<Vec<Panel>> = columns.into_iter().map(|images| colours(images, size)).collect();
    Ok((0..pairs.len()).map(|row| columns.iter().map(|column| column[row].clone()).collect()).collect())
}

/// Each map from its least value, 0, to its largest, 1.
fn stretched(map: Tensor<4>) -> Tensor<4> {
    let least = map.clone().min_dim(2).min_dim(3);
    let most = map.clone().max_dim(2).max_dim(3);
    (map - least.clone()) / (most - least).clamp_min(1e-6)
}

fn colours(images: Tensor<4>, size: usize) -> Vec<Panel> {
    let values: Vec<f32> = images.into_data().iter::<f32>().collect();
    let pixels = size * size;
    let byte = |value: f32| (255.0 * value.clamp(0.0, 1.0)).round() as u8;
    values
        .chunks(3 * pixels)
        .map(|image| (0..pixels).map(|at| [0, 1, 2].map(|c| byte(image[c * pixels + at]))).collect())
        .collect()
}

/// Shares of the gate values in bins of equal width.
fn histogram(
    model: &FPro,
    pairs: &[Pair],
    size: usize,
    device: &Device,
) -> Result<Vec<(f64, f64)>, ExampleError> {
    let [spoilt, _] = images::batch(pairs, size, device);
    let parts = model.forward(spoilt, BatchStatistics::Running)?.parts;
    let gates: Vec<f64> = parts
        .and_then(|parts| parts.gate)
        .map_or_else(Vec::new, |gate| gate.into_data().iter::<f64>().collect());
    let mut counts = [0usize; BINS];
    for gate in &gates {
        counts[((gate * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    let middle = |bin: usize| (bin as f64 + 0.5) / BINS as f64;
    Ok(counts
        .iter()
        .enumerate()
        .map(|(bin, &count)| (middle(bin), count as f64 / gates.len().max(1) as f64))
        .collect())
}

/// `|Z|` and `|M|` of the last stage, means over the channels.
fn maps(model: &FPro, out: &Path) -> Result<(), ExampleError> {
    let Some(module) = model.prompting.as_ref().and_then(|prompting| prompting.modules.last()) else {
        return Ok(());
    };
    let rows = |map: Tensor<2>| -> Vec<Vec<f64>> {
        let [_, columns] = map.dims();
        let values: Vec<f64> = map.into_data().iter::<f64>().collect();
        values.chunks(columns).map(<[f64]>::to_vec).collect()
    };
    if let Some(low) = &module.low_generator {
        let size = low.complex_weight.val().square().sum_dim(4).sqrt().mean_dim(1);
        let [_, _, height, columns, _] = size.dims();
        let mut rows = rows(size.reshape([height, columns]));
        // Frequency 0 in the middle.
        rows.rotate_left(height.div_ceil(2));
        let frequencies = (0..height).map(|row| row as f64 - (height / 2) as f64);
        HeatMap::new(
            "Learned map of the spectrum |Z|, refinement",
            "frequency along columns",
            "frequency along rows",
            "mean |Z|",
            rows,
        )
        .with_row_values(frequencies)
        .with_size(560, 560)
        .write_svg(out.join("fpro-z.svg"))?;
    }
    if let Some(high) = &module.high_generator {
        let size = high.weight.val().abs().mean_dim(1);
        let [_, _, height, width] = size.dims();
        let rows = rows(size.reshape([height, width]));
        HeatMap::new("Learned map of the image |M|, refinement", "column", "row", "mean |M|", rows)
            .with_size(640, 560)
            .write_svg(out.join("fpro-m.svg"))?;
    }
    Ok(())
}
