//! Importance of layers, and what thresholds cost a model.

use gatekit_core::checkpoint::CheckpointError;
use gatekit_experts::modes::{
    CalibrationLoss, Calibrator, CalibratorConfig, FrontierSearchConfig, LayerImportance, SearchError,
    Thresholds,
};

use super::*;

fn calibrator() -> Calibrator {
    CalibratorConfig::new().try_init().unwrap()
}

fn batches(device: &Device) -> Vec<Batch> {
    [0.3, 1.4].map(|phase| Batch::new(phase, 2, device)).into()
}

#[test]
fn divergence_is_the_one_of_the_definition() {
    let reference = [0.5, -1.0, 2.0, 0.0, 0.3, -0.4];
    let other = [0.1, 0.4, 1.0, -1.0, 0.6, 0.0];
    let softmax = |row: &[f64], temperature: f64| {
        let sum: f64 = row.iter().map(|z| (z / temperature).exp()).sum();
        row.iter().map(|z| (z / temperature).exp() / sum).collect::<Vec<_>>()
    };
    for device in devices() {
        for temperature in [1.0, 2.5] {
            let expected: f64 = (reference.chunks(3).zip(other.chunks(3)))
                .flat_map(|(p, q)| softmax(p, temperature).into_iter().zip(softmax(q, temperature)))
                .map(|(p, q)| p * (p / q).ln())
                .sum();
            let calibrator = CalibratorConfig::new().with_temperature(temperature).try_init().unwrap();
            let got =
                calibrator.divergence(tensor(&reference, [2, 3], &device), tensor(&other, [2, 3], &device));
            assert_close(&[got], &[expected], 1e-6);
        }
        let squared: f64 = reference.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum();
        let calibrator = CalibratorConfig::new().with_loss(CalibrationLoss::Mse).try_init().unwrap();
        let got = calibrator.divergence(tensor(&reference, [2, 3], &device), tensor(&other, [2, 3], &device));
        assert_close(&[got], &[squared], 1e-6);
    }
}

#[test]
fn calibration_measures_every_layer_and_modality() {
    for device in devices() {
        let mut model = Toy::new(3, &device);
        // The second layer's experts do nothing.
        let silent = &mut model.layers[1].layer.experts;
        silent.down_proj = silent.down_proj.clone().map(|value| value.zeros_like());
        let mut passes = 0;
        let calibration = calibrator().calibrate(&model, &batches(&device), || passes += 1).unwrap();
        assert_eq!(passes, 2 * (2 * 3 + 1));
        assert_eq!(calibration.positions, 8);
        let rows = calibration.importance.rows();
        assert_eq!(rows[1], [0.0, 0.0]);
        for modality in 0..2 {
            let sum: f64 = rows.iter().map(|row| row[modality]).sum();
            assert_close(&[sum], &[1.0], 1e-9);
            assert!(rows[0][modality] > 0.0, "{rows:?}");
        }
        // In the last layer patches cannot reach the words any more.
        assert!(rows[2][0] > 0.0 && rows[2][1] == 0.0, "{rows:?}");
        // The model is as it was.
        assert_eq!(model.importance().unwrap().rows(), [[1.0, 1.0]; 3]);
    }
}

#[test]
fn thresholds_and_bypasses_of_the_model_do_not_matter_to_calibration() {
    let device = &devices()[1];
    let model = Toy::new(2, device);
    let plain = calibrator().calibrate(&model, &batches(device), || ()).unwrap();
    let mut set = model.clone();
    set.set_thresholds(Thresholds::new(0.4, 0.4).unwrap());
    set.layers[0].skipper.set_bypass(gatekit_experts::modes::Bypass::Text);
    assert_eq!(calibrator().calibrate(&set, &batches(device), || ()).unwrap(), plain);
}

#[test]
fn a_modality_without_tokens_has_no_importance() {
    let device = &devices()[1];
    let mut batch = Batch::new(0.3, 2, device);
    batch.modalities = TokenModalities::text(14);
    let calibration = calibrator().calibrate(&Toy::new(2, device), &[batch], || ()).unwrap();
    assert!(calibration.importance.rows().iter().all(|row| row[1] == 0.0 && row[0] > 0.0));
}

#[test]
fn measurements_grow_with_the_thresholds() {
    for device in devices() {
        let mut model = Toy::new(3, &device);
        let batches = batches(&device);
        let calibration = calibrator().calibrate(&model, &batches, || ()).unwrap();
        model.set_importance(&calibration.importance).unwrap();
        let references = calibrator().references(&model, &batches).unwrap();
        let measure = |text, vision| {
            let thresholds = Thresholds::new(text, vision).unwrap();
            calibrator().measure(&model, &references, &batches, thresholds).unwrap()
        };
        let none = measure(0.0, 0.0);
        assert_eq!((none.loss, none.skip_ratio), (0.0, 0.0));
        let all = measure(2.0, 2.0);
        // Everything but the special tokens, one of seven.
        assert_close(&[all.skip_ratio], &[6.0 / 7.0], 1e-12);
        let some = measure(0.1, 0.1);
        assert!(some.skip_ratio > 0.0 && some.skip_ratio < all.skip_ratio, "{some:?}");
        assert!(some.loss > 0.0 && some.loss < all.loss, "{some:?} {all:?}");
    }
}

#[test]
fn a_search_over_a_model_finds_its_target() {
    let device = &devices()[1];
    let mut model = Toy::new(3, device);
    let batches = batches(device);
    let calibration = calibrator().calibrate(&model, &batches, || ()).unwrap();
    model.set_importance(&calibration.importance).unwrap();
    let references = calibrator().references(&model, &batches).unwrap();
    let search = |target| {
        let search = FrontierSearchConfig::new(target).with_grid_num(8).try_init().unwrap();
        search.run(|i, j| calibrator().measure(&model, &references, &batches, search.thresholds((i, j))))
    };
    let frontier = search(0.3).unwrap();
    assert!(frontier.measured.skip_ratio >= 0.3 && frontier.evaluations() <= 25, "{frontier:?}");
    let again = calibrator().measure(&model, &references, &batches, frontier.thresholds).unwrap();
    assert_eq!(again, frontier.measured);
    // Special tokens are never skipped.
    assert!(matches!(search(0.9), Err(SearchError::Infeasible { largest, .. }) if largest < 0.87));
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let device = &devices()[1];
    let mut model = Toy::new(3, device);
    let table = LayerImportance::new(vec![[0.5, 0.5]; 2]).unwrap();
    assert_refused(model.set_importance(&table), &["importance", "2 layers", "3"]);
    assert_refused(LayerImportance::new(vec![[0.5, 0.5], [0.5, -0.1]]), &["-0.1 in layer 2"]);
    assert_refused(LayerImportance::new(vec![[f64::NAN, 0.5]]), &["NaN in layer 1"]);
    assert_refused(LayerImportance::new(Vec::new()), &["0 layers"]);
    assert_refused(LayerImportance::from_tensor(&Tensor::zeros([2, 3], device)), &["[2, 3]", "[layers, 2]"]);
    let normal = LayerImportance::from_divergence(&[[3.0, 0.0], [1.0, 0.0]]).unwrap();
    assert_eq!(normal.rows(), [[0.75, 0.0], [0.25, 0.0]]);
    assert_eq!(LayerImportance::from_tensor(&normal.to_tensor(device)).unwrap(), normal);
}

#[test]
fn calibrations_without_answers_or_numbers_are_refused() {
    let device = &devices()[1];
    let model = Toy::new(2, device);
    let silent = || vec![Batch::new(0.3, 0, device)];
    let needles = ["answer positions", "got 0"];
    assert_refused(calibrator().calibrate(&model, &silent(), || ()), &needles);
    assert_refused(calibrator().calibrate(&model, &[], || ()), &needles);
    assert_refused(calibrator().references(&model, &silent()), &needles);
    let none = Tensor::<2>::zeros([0, 4], device);
    assert_refused(calibrator().importance(none.clone(), &[[none.clone(), none]]), &needles);
    let reference = Tensor::<2>::zeros([1, 2], device);
    let broken = tensor(&[f64::NAN, 0.0], [1, 2], device);
    let ablated = [[reference.clone(), broken]];
    assert_refused(calibrator().importance(reference, &ablated), &["importance", "NaN in layer 1"]);
    for temperature in [0.0, -1.0, f64::NAN] {
        let config = CalibratorConfig::new().with_temperature(temperature);
        assert_eq!(config.try_init().unwrap_err().field, "temperature");
    }
}

#[test]
fn a_table_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("importance.safetensors");
    let table = LayerImportance::new(vec![[0.5, 0.25], [0.5, 0.75]]).unwrap();
    table.save(&path).unwrap();
    assert_eq!(LayerImportance::load(&path).unwrap(), table);
    let missing = LayerImportance::load(folder.path().join("none.safetensors"));
    assert!(matches!(missing, Err(CheckpointError::Io { .. })));
    let data =
        std::collections::BTreeMap::from([("importance".to_string(), TensorData::from([[1.0f32], [0.0]]))]);
    gatekit_core::checkpoint::SafetensorsFile::write(&path, data, Default::default()).unwrap();
    let error = LayerImportance::load(&path).unwrap_err().to_string();
    assert!(error.contains("importance.safetensors") && error.contains("[layers, 2]"), "{error}");
}
