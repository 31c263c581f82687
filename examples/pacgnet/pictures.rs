//! What the detector saw: detections on both images, and its gates beside them.

use std::path::Path;

use burn::prelude::Device;
use burn::tensor::Tensor;
use gatekit::core::batch_norm::BatchStatistics;
use gatekit::core::probe::LinePlot;
use gatekit::fusion::pacgnet::prob_iou::OrientedBox;
use gatekit::fusion::pacgnet::{
    Condition, NightScene, NightScenes, PacgNet, PacgNetConfig, PacgNetOutput, night_scenes,
};
use gatekit_examples::ExampleError;
use jpeg_encoder::{ColorType, Encoder};

/// Screen pixels of a pixel.
const SCALE: usize = 4;
const GAP: usize = 8;
/// Detections are drawn from this score on.
const SURE: f64 = 0.3;
const TRUTH: [u8; 3] = [90, 220, 90];
const FOUND: [[u8; 3]; 2] = [[255, 190, 40], [255, 70, 130]];
/// Bins of the histogram of modality weights.
const BINS: usize = 20;

/// Draws one scene of every condition, and how the weight of RGB is spread over the cells of objects.
pub fn draw(
    model: &PacgNet,
    config: &PacgNetConfig,
    scenes: &NightScenes,
    count: usize,
    out: &Path,
    device: &Device,
) -> Result<(), ExampleError> {
    for (index, condition) in Condition::ALL.into_iter().enumerate() {
        let scene = scenes.scene(index);
        let output = look(model, &scene, device);
        let panels = panels(model, config, &scene, output)?;
        write(&panels, scenes.size(), &out.join(format!("pacgnet-{}.jpg", condition.name())))?;
    }
    weights(model, scenes, count, out, device)
}

fn look(model: &PacgNet, scene: &NightScene, device: &Device) -> PacgNetOutput {
    let (rgb, ir) = night_scenes::batch(&[scene], device);
    model.forward(rgb, ir, None, BatchStatistics::Running)
}

/// A picture of `size` by `size` screen pixels.
type Panel = Vec<[u8; 3]>;

/// RGB and infrared with boxes; then the gates at the finest level: where RGB listens to infrared (`m_r`), how much it
/// takes (`g_r`, mean over channels), the share of RGB (`w_r`), where the finer level points (`s`).
fn panels(
    model: &PacgNet,
    config: &PacgNetConfig,
    scene: &NightScene,
    output: PacgNetOutput,
) -> Result<Vec<Panel>, ExampleError> {
    let size = (scene.ir.len() as f64).sqrt() as usize;
    let found = config.detect(&model.head.decode(output.detections), 0)?;
    let grey = |value: f32| (255.0 * value.clamp(0.0, 1.0)) as u8;
    let pixels = size * size;
    let visible: Vec<[u8; 3]> =
        (0..pixels).map(|pixel| [0, 1, 2].map(|channel| grey(scene.rgb[channel * pixels + pixel]))).collect();
    let infrared: Vec<[u8; 3]> = scene.ir.iter().map(|&value| [grey(value); 3]).collect();
    let mut panels: Vec<Panel> =
        [visible, infrared].iter().map(|image| enlarged(image, size, size * SCALE)).collect();
    for panel in &mut panels {
        for (wanted, _) in &scene.objects {
            outline(panel, size * SCALE, grown(*wanted), TRUTH);
        }
        let boxes = found.boxes.iter().zip(&found.labels).zip(&found.scores);
        for ((one, &label), _) in boxes.filter(|(_, score)| **score >= SURE) {
            outline(panel, size * SCALE, *one, FOUND[label]);
        }
    }
    let mut map = |gate: Tensor<4>| {
        let [_, _, height, width] = gate.dims();
        let values: Vec<f32> =
            gate.mean_dim(1).into_data().convert::<f32>().try_into_vec().unwrap_or_default();
        let colours: Vec<[u8; 3]> = values.iter().map(|&value| colour(value)).collect();
        debug_assert_eq!(height, width);
        panels.push(enlarged(&colours, width, size * SCALE));
    };
    if let (Some(cross), Some(fusion)) = (output.fused.cross_gates.first(), output.fused.pyramidal.first()) {
        let gates = &cross[0];
        map(gates.spatial[0].clone());
        map(gates.guidance[0].clone());
        map(fusion.modality_weights.clone().narrow(1, 0, 1));
        map(fusion.spatial_gate.clone());
    }
    Ok(panels)
}

/// The truth a little larger, so that a detection on it stays visible.
fn grown([x, y, w, h, theta]: OrientedBox) -> OrientedBox {
    [x, y, w + 2.0, h + 2.0, theta]
}

/// From dark blue at 0 over grey to yellow at 1.
fn colour(value: f32) -> [u8; 3] {
    let value = value.clamp(0.0, 1.0);
    let between = |low: f32, high: f32| (low + (high - low) * value) as u8;
    [between(0.0, 255.0), between(32.0, 234.0), between(110.0, 70.0)]
}

fn enlarged(image: &[[u8; 3]], from: usize, to: usize) -> Panel {
    let at = |index: usize| image[(index / to) * from / to * from + (index % to) * from / to];
    (0..to * to).map(at).collect()
}

/// The four sides of a box given in pixels, on a panel of `size` screen pixels.
fn outline(panel: &mut Panel, size: usize, [x, y, w, h, theta]: OrientedBox, colour: [u8; 3]) {
    let (sin, cos) = theta.sin_cos();
    let corner = |along: f64, across: f64| {
        let (dx, dy) = (along * w / 2.0, across * h / 2.0);
        [x + dx * cos - dy * sin, y + dx * sin + dy * cos].map(|value| value * SCALE as f64)
    };
    let corners = [corner(-1.0, -1.0), corner(1.0, -1.0), corner(1.0, 1.0), corner(-1.0, 1.0)];
    for (from, to) in (0..4).map(|side| (corners[side], corners[(side + 1) % 4])) {
        let steps = (from[0] - to[0]).hypot(from[1] - to[1]).ceil().max(1.0) as usize;
        for step in 0..=steps {
            let share = step as f64 / steps as f64;
            let [column, row] = [0, 1].map(|axis| (from[axis] + share * (to[axis] - from[axis])).round());
            if (0.0..size as f64).contains(&column) && (0.0..size as f64).contains(&row) {
                panel[row as usize * size + column as usize] = colour;
            }
        }
    }
}

/// The panels side by side.
fn write(panels: &[Panel], size: usize, path: &Path) -> Result<(), ExampleError> {
    let side = size * SCALE;
    let width = panels.len() * (side + GAP) - GAP;
    let mut pixels = vec![255u8; 3 * width * side];
    for (number, panel) in panels.iter().enumerate() {
        for (index, colour) in panel.iter().enumerate() {
            let at = 3 * ((index / side) * width + number * (side + GAP) + index % side);
            pixels[at..at + 3].copy_from_slice(colour);
        }
    }
    let refused = |reason: String| ExampleError::unusable(path, reason);
    let size =
        |value: usize| u16::try_from(value).map_err(|_| refused(format!("{value} pixels are too many")));
    let encoder = Encoder::new_file(path, 90).map_err(|error| refused(error.to_string()))?;
    let encoded = encoder.encode(&pixels, size(width)?, size(side)?, ColorType::Rgb);
    encoded.map_err(|error| refused(error.to_string()))
}

/// How the weight of RGB is spread over the cells of objects, by condition.
fn weights(
    model: &PacgNet,
    scenes: &NightScenes,
    count: usize,
    out: &Path,
    device: &Device,
) -> Result<(), ExampleError> {
    let mut counts = [[0usize; BINS]; 3];
    for index in 0..count {
        let scene = scenes.scene(index);
        let Some(fusion) = look(model, &scene, device).fused.pyramidal.into_iter().next() else {
            return Ok(());
        };
        let share = fusion.modality_weights.narrow(1, 0, 1);
        let [_, _, _, width] = share.dims();
        let cell = scenes.size() / width;
        let values: Vec<f32> = share.into_data().convert::<f32>().try_into_vec().unwrap_or_default();
        for ([x, y, ..], _) in &scene.objects {
            let value = values[(*y as usize / cell) * width + *x as usize / cell];
            counts[index % 3][((value * BINS as f32) as usize).min(BINS - 1)] += 1;
        }
    }
    let title = "Weight of RGB at the cells of vehicles";
    let plot = Condition::ALL.into_iter().zip(counts).fold(
        LinePlot::new(title, "weight of RGB in the fusion", "share of the vehicles"),
        |plot, (condition, counts)| {
            let total = counts.iter().sum::<usize>().max(1) as f64;
            let middle = |bin: usize| (bin as f64 + 0.5) / BINS as f64;
            let points = counts.iter().enumerate().map(|(bin, &count)| (middle(bin), count as f64 / total));
            plot.with_series(condition.name(), points.collect::<Vec<_>>())
        },
    );
    Ok(plot.write_svg(out.join("pacgnet-weights.svg"))?)
}
