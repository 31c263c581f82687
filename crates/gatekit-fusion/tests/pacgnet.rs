//! PACGNet: what the golden cases do not ask.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::batch_norm::BatchStatistics;
use gatekit_fusion::pacgnet::prob_iou::{OrientedBox, prob_iou, prob_iou_pairs};
use gatekit_fusion::pacgnet::{Ablation, DetectionTargets, NightScenes, PacgNetConfig, night_scenes};

#[allow(deprecated)] // NdArray is one of the devices that are tested.
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

fn small(ablation: Ablation) -> PacgNetConfig {
    PacgNetConfig::new(2)
        .with_channels(vec![2, 4, 8, 16, 32])
        .with_depths(vec![1; 4])
        .with_reg_max(4)
        .with_min_gate_channels(2)
        .with_ablation(ablation)
}

#[test]
fn similarities_on_the_device_are_those_of_the_host() {
    let boxes: [OrientedBox; 4] = [
        [20.0, 10.0, 12.0, 4.0, 0.4],
        [23.0, 11.0, 10.0, 5.0, 1.9],
        [40.0, 40.0, 3.0, 9.0, -0.5],
        [21.0, 10.5, 11.0, 4.5, 0.2],
    ];
    for device in devices() {
        let pairs: Vec<(OrientedBox, OrientedBox)> =
            boxes.iter().flat_map(|&a| boxes.iter().map(move |&b| (a, b))).collect();
        let side =
            |values: Vec<f64>| Tensor::<2>::from_data(TensorData::new(values, [pairs.len(), 5]), &device);
        let first = side(pairs.iter().flat_map(|(a, _)| *a).collect());
        let second = side(pairs.iter().flat_map(|(_, b)| *b).collect());
        let got: Vec<f64> =
            prob_iou_pairs(first, second).into_data().convert::<f64>().try_into_vec().expect("read");
        for (got, (a, b)) in got.into_iter().zip(&pairs) {
            assert!((got - prob_iou(*a, *b)).abs() < 1e-3, "{a:?} {b:?}: {got} {}", prob_iou(*a, *b));
        }
    }
}

#[test]
fn every_ablation_detects_also_without_a_sensor() {
    let scene = NightScenes::new(64, 0).expect("a size").scene(1);
    for ablation in Ablation::ALL {
        let device = Device::flex();
        let config = small(ablation);
        let model = config.init(&device);
        let (rgb, ir) = night_scenes::batch(&[&scene], &device);
        for (rgb, ir) in [(rgb.clone(), ir.clone()), (rgb.zeros_like(), ir.clone()), (rgb, ir.zeros_like())] {
            let output = model.forward(rgb, ir, None, BatchStatistics::Running);
            assert_eq!(output.fused.pyramidal.len(), if ablation.gates_levels() { 3 } else { 0 });
            let decoded = model.head.decode(output.detections);
            let found = config.detect(&decoded, 0).expect("finite scores");
            assert!(found.boxes.iter().flatten().all(|value| value.is_finite()), "{ablation:?}");
        }
    }
}

#[test]
fn configurations_that_make_no_model_are_refused() {
    let refused = |config: PacgNetConfig| config.try_init(&Device::flex()).expect_err("refused").field;
    let config = || small(Ablation::Full);
    assert_eq!(refused(config().with_channels(vec![2, 4, 8, 16])), "channels");
    assert_eq!(refused(config().with_channels(vec![2, 4, 8, 16, 30])), "channels");
    assert_eq!(refused(config().with_channels(vec![2, 3, 6, 12, 24])), "channels");
    assert_eq!(refused(config().with_reg_max(1)), "reg_max");
    assert_eq!(refused(config().with_scg_reduction(0)), "scg_reduction");
    assert_eq!(refused(config().with_gate_ratio(0)), "gate_ratio");
    assert_eq!(refused(config().with_nms_threshold(1.5)), "nms_threshold");
}

#[test]
fn objects_that_cannot_be_are_named() {
    let device = Device::flex();
    let targets = |boxes: [[f64; 5]; 2], labels: [i64; 2]| {
        let boxes = Tensor::<3>::from_data(TensorData::new(boxes.concat(), [1, 2, 5]), &device);
        let labels = Tensor::<2, Int>::from_data([labels], &device);
        DetectionTargets::new(boxes, labels, Tensor::<2, Bool>::from_data([[true, true]], &device), 2)
    };
    let good = [10.0, 10.0, 8.0, 4.0, 0.1];
    assert_eq!(targets([good, good], [0, 1]).expect("good").of_image(0).count(), 2);
    assert_eq!(targets([good, [10.0, 10.0, 8.0, 1.0, 0.1]], [0, 1]).expect("small").of_image(0).count(), 1);
    for (boxes, labels, word) in [
        ([good, [10.0, 10.0, 0.0, 4.0, 0.1]], [0, 0], "object 1"),
        ([[f64::NAN, 10.0, 8.0, 4.0, 0.1], good], [0, 0], "object 0"),
        ([good, good], [0, 2], "object 1"),
    ] {
        let error = targets(boxes, labels).expect_err("refused").to_string();
        assert!(error.contains("image 0") && error.contains(word), "{error}");
    }
}
