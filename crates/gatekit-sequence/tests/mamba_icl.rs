//! Learning in context: the closed form against the recurrence, prompts, training, and what is refused.

mod support;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::scan::ScanForm;
use gatekit_core::{ConfigError, ModuleConfig};
use gatekit_sequence::checkpoint::{NamedTensors, load_tensors, named_gradients, named_parameters};
use gatekit_sequence::mamba_icl::{
    ContextLearner, Gating, IclPredictor, IclPredictorConfig, IclStackConfig, IclTrainingConfig,
    OutlierLabels, OutlierPlacement, OutlierPromptsConfig, PromptBatch, PromptDistribution, SelectiveSsm,
    SelectiveSsmConfig, UNSEEN_COMBINATIONS, UnseenOutliers, check_prompt, error_rate, hinge_loss, train,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use support::*;

const GATINGS: [Gating; 2] = [Gating::Mamba, Gating::None];

/// Features of the small prompts here.
const FEATURES: usize = 12;

fn small_prompts() -> OutlierPromptsConfig {
    OutlierPromptsConfig::new()
        .with_input_dim(FEATURES)
        .with_relevant_patterns(3)
        .with_irrelevant_patterns(2)
        .with_outlier_directions(3)
}

fn draw(distribution: &PromptDistribution, batch: usize, seed: u64) -> PromptBatch {
    let prompts = small_prompts().try_init().unwrap();
    prompts.draw(distribution, batch, &mut StdRng::seed_from_u64(seed)).unwrap()
}

fn predictor(gating: Gating, device: &Device) -> IclPredictor {
    let config =
        IclPredictorConfig::new().with_input_dim(FEATURES).with_state_dim(Some(7)).with_gating(gating);
    enlivened(config.init(device))
}

fn ssm(gating: Gating, device: &Device) -> SelectiveSsm {
    let config = SelectiveSsmConfig::new(FEATURES + 1).with_state_dim(Some(7)).with_gating(gating);
    enlivened(config.init(device))
}

/// A recurrence whose last channel has the predictor's gate.
fn recurrence_of(predictor: &IclPredictor, gating: Gating, device: &Device) -> SelectiveSsm {
    let ssm = ssm(gating, device);
    let parameters = named_parameters(predictor);
    let mut tensors = named_parameters(&ssm);
    let width = FEATURES + 1;
    let mut w: Vec<f32> = tensors["W"].iter::<f32>().collect();
    w.splice((width - 1) * width.., parameters["w"].iter::<f32>());
    tensors.insert("W".into(), TensorData::new(w, [width, width]));
    for name in ["W_B", "W_C"] {
        tensors.insert(name.into(), parameters[name].clone());
    }
    load_tensors(ssm, tensors).unwrap()
}

#[test]
fn the_closed_form_is_the_recurrence_at_the_query() {
    for device in devices() {
        for gating in GATINGS {
            let predictor = predictor(gating, &device);
            let ssm = recurrence_of(&predictor, gating, &device);
            for length in [1, 2, 20] {
                let distribution = PromptDistribution::training().with_context_length(length);
                let prompt = draw(&distribution, 5, 3).prompt(&device);
                let want = values(&predictor.forward(prompt.clone()).score);
                for form in [ScanForm::Auto, ScanForm::Portable, ScanForm::Recurrent] {
                    let (o, _) = ssm.clone().with_scan_form(form).forward(prompt.clone(), None);
                    let got = values(&o.narrow(1, length, 1).narrow(2, FEATURES, 1));
                    assert_close(&got, &want, 2e-5, &format!("{gating}, {length} examples, {form:?}"));
                }
            }
        }
    }
}

#[test]
fn a_stack_of_one_layer_is_a_predictor() {
    for device in devices() {
        for gating in GATINGS {
            let predictor = predictor(gating, &device);
            let config =
                IclStackConfig::new().with_input_dim(FEATURES).with_num_layers(1).with_state_dim(Some(7));
            let stack = config.with_gating(gating).init(&device);
            let layer = named_parameters(&recurrence_of(&predictor, gating, &device));
            let layer: NamedTensors =
                layer.into_iter().map(|(name, data)| (format!("layers.0.{name}"), data)).collect();
            let stack = load_tensors(stack, layer).unwrap();
            let prompt = draw(&PromptDistribution::training(), 4, 5).prompt(&device);
            let want = values(&predictor.score(prompt.clone()));
            assert_close(&values(&stack.score(prompt)), &want, 2e-5, &gating.to_string());
        }
    }
}

#[test]
fn the_recurrence_streams() {
    for device in devices() {
        for gating in GATINGS {
            let ssm = ssm(gating, &device);
            let u = draw(&PromptDistribution::training().with_context_length(12), 3, 1).prompt(&device);
            let (whole, last) = ssm.forward(u.clone(), None);
            let mut state = ssm.empty_state(3, &device);
            let (first, next) = ssm.forward(u.clone().narrow(1, 0, 4), Some(state));
            state = next;
            let mut pieces = vec![first];
            for t in 4..13 {
                let (o, next) = ssm.step(u.clone().narrow(1, t, 1).squeeze_dim(1), state);
                state = next;
                pieces.push(o.unsqueeze_dim(1));
            }
            assert_close(&values(&Tensor::cat(pieces, 1)), &values(&whole), 1e-5, &gating.to_string());
            assert_close(&values(&state), &values(&last), 1e-5, &gating.to_string());
        }
    }
}

#[test]
fn gates_of_clean_examples_halve_and_a_closed_gate_skips() {
    let device = Device::flex();
    let config = IclPredictorConfig::new().with_input_dim(2);
    let with_gate = |w: [f32; 3]| {
        let mut tensors = named_parameters(&config.init(&device));
        tensors.insert("w".into(), TensorData::from(w));
        load_tensors(config.init(&device), tensors).unwrap()
    };
    let prompt = Tensor::<3>::from_data(
        [[[1.0, 0.0, 1.0], [0.0, 1.0, -1.0], [1.0, 0.0, 1.0], [0.0, 1.0, -1.0], [1.0, 0.0, 0.0]]],
        &device,
    );
    let gates = values(&with_gate([0.0; 3]).forward(prompt.clone()).gates);
    assert_close(&gates, &[1.0 / 32.0, 1.0 / 16.0, 1.0 / 8.0, 1.0 / 4.0, 1.0 / 2.0], 1e-6, "half open");
    // The second feature closes the gate: those examples are passed over and cost nothing.
    let gates = values(&with_gate([0.0, -200.0, 0.0]).forward(prompt.clone()).gates);
    assert_close(&gates, &[1.0 / 8.0, 0.0, 1.0 / 4.0, 0.0, 1.0 / 2.0], 1e-6, "closed");
    // Fully open: the last row takes everything.
    let open = with_gate([200.0, 200.0, 0.0]).forward(prompt);
    assert_close(&values(&open.gates), &[0.0, 0.0, 0.0, 0.0, 1.0], 1e-6, "open");
    assert_eq!(values(&open.score), [0.0]);
}

#[test]
fn the_start_is_the_papers() {
    for device in devices() {
        device.seed(2);
        let predictor = IclPredictorConfig::new().with_input_dim(4).with_state_dim(Some(6)).init(&device);
        for weight in [&predictor.W_B, &predictor.W_C] {
            let weight = values(&weight.val());
            for (index, value) in weight.iter().enumerate() {
                let (row, column) = (index / 5, index % 5);
                let want = if row == column && row < 4 { 0.2 } else { 0.0 };
                assert_eq!(*value, want, "[{row}, {column}]");
            }
        }
        // normal(0, 1 / (d + 1)): the mean square of a thousand draws.
        let w = values(&IclPredictorConfig::new().with_input_dim(999).init(&device).w.val());
        let square: f32 = w.iter().map(|w| w * w).sum();
        assert!((0.8..1.2).contains(&square), "{square}");
        let rows = values(&SelectiveSsmConfig::new(40).init(&device).W.val());
        let square: f32 = rows.iter().map(|w| w * w).sum();
        assert!((32.0..48.0).contains(&square), "{square}");
    }
}

#[test]
fn losses_and_errors_are_counted_by_hand() {
    for device in devices() {
        let score = Tensor::<1>::from_data([2.0, 0.5, -0.25, 0.0], &device);
        let labels = Tensor::<1>::from_data([1.0, -1.0, -1.0, 1.0], &device);
        // Margins 2, -0.5, 0.25, 0.
        assert_eq!(values(&hinge_loss(score.clone(), labels.clone())), [(1.5 + 0.75 + 1.0) / 4.0]);
        assert_eq!(values(&error_rate(score.clone(), labels.clone())), [0.25]);
        // What is no number is no right answer.
        assert_eq!(values(&error_rate(score * f32::NAN, labels)), [1.0]);
    }
}

#[test]
fn without_a_gate_its_weight_is_not_trained() {
    for device in devices() {
        for gating in GATINGS {
            let predictor = predictor(gating, &device.clone().autodiff());
            let batch = draw(&PromptDistribution::training(), 8, 2);
            let device = device.clone().autodiff();
            // The scores are large here; scaled so that no margin is beyond 1.
            let score = predictor.score(batch.prompt(&device)) * 1e-3;
            let gradients = hinge_loss(score, batch.labels(&device)).backward();
            let gradients = named_gradients(&predictor, &gradients);
            let names: Vec<&str> = gradients.keys().map(String::as_str).collect();
            match gating {
                Gating::Mamba => assert_eq!(names, ["W_B", "W_C", "w"]),
                Gating::None => assert_eq!(names, ["W_B", "W_C"]),
            }
        }
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

#[test]
fn patterns_are_orthogonal_and_of_one_norm() {
    let config = OutlierPromptsConfig::new();
    let prompts = config.try_init().unwrap();
    let all: Vec<&Vec<f64>> =
        [prompts.relevant(), prompts.irrelevant(), prompts.outliers()].into_iter().flatten().collect();
    assert_eq!(all.len(), 6 + 10 + 3);
    for (i, x) in all.iter().enumerate() {
        for (j, y) in all.iter().enumerate() {
            let want = if i == j { 9.0 } else { 0.0 };
            assert!((dot(x, y) - want).abs() < 1e-10, "{i}, {j}");
        }
    }
    let again = config.try_init().unwrap();
    assert_eq!(again.relevant(), prompts.relevant());
    let other = config.with_seed(1).try_init().unwrap();
    assert_ne!(other.relevant(), prompts.relevant());
}

/// The rows of a batch: features and label.
fn rows(batch: &PromptBatch) -> Vec<Vec<(Vec<f64>, f64)>> {
    let prompt = batch.prompt(&Device::flex());
    let [_, length, width] = prompt.dims();
    let values: Vec<f64> = values(&prompt).into_iter().map(f64::from).collect();
    values
        .chunks(length * width)
        .map(|prompt| {
            prompt.chunks(width).map(|row| (row[..width - 1].to_vec(), row[width - 1])).collect::<Vec<_>>()
        })
        .collect()
}

/// Projections on the patterns say what a prompt was made of.
#[test]
fn prompts_are_made_as_described() {
    let prompts = small_prompts().try_init().unwrap();
    let share = |x: &[f64], pattern: &[f64]| dot(x, pattern) / 9.0;
    for labels in [OutlierLabels::Random, OutlierLabels::Flipped, OutlierLabels::Target(-1.0)] {
        let distribution = PromptDistribution::training().with_outlier_labels(labels);
        let batch = draw(&distribution, 400, 9);
        let queries = values(&batch.labels(&Device::flex()));
        let (mut outliers, mut positive, mut agree, mut wrong) = (0, 0, 0, 0);
        let mut tasks = std::collections::BTreeMap::new();
        for (index, rows) in rows(&batch).iter().enumerate() {
            let relevant = |x: &[f64]| prompts.relevant().iter().position(|mu| share(x, mu) > 0.5).unwrap();
            let (query, examples) = rows.split_last().unwrap();
            assert_eq!((query.1, examples.len()), (0.0, 20));
            let asked = relevant(&query.0);
            let mut classes = std::collections::BTreeMap::new();
            for (place, (x, y)) in examples.iter().enumerate() {
                let is_outlier = batch.outliers()[20 * index + place];
                let matches = batch.matches()[20 * index + place];
                assert_eq!(matches, relevant(x) == asked);
                let lambda: Vec<f64> = prompts.outliers().iter().map(|v| share(x, v)).collect();
                let size = lambda.iter().filter(|lambda| (*lambda - 2.0).abs() < 1e-5).count();
                assert_eq!(size, usize::from(is_outlier), "one direction, twice its length: {lambda:?}");
                let kappa: f64 = prompts.irrelevant().iter().map(|nu| share(x, nu).abs()).sum();
                assert!(kappa <= 0.5 + 1e-5, "{kappa}");
                let label = f64::from(queries[index]) * if matches { 1.0 } else { -1.0 };
                if is_outlier {
                    outliers += 1;
                    agree += usize::from(*y == label);
                    wrong += usize::from(*y == -1.0);
                } else {
                    assert_eq!(*y, label);
                    assert_eq!(*classes.entry(relevant(x)).or_insert(*y), *y, "one label a pattern");
                }
            }
            let no_outlier: f64 = prompts.outliers().iter().map(|v| share(&query.0, v).abs()).sum();
            assert!(no_outlier < 1e-5, "the query is clean");
            positive += usize::from(queries[index] > 0.0);
            if let (2, Some((one, y))) = (classes.len(), classes.iter().next()) {
                let other = classes.keys().nth(1).unwrap();
                *tasks.entry(if *y > 0.0 { (*one, *other) } else { (*other, *one) }).or_insert(0) += 1;
            }
        }
        assert!((4600..5000).contains(&outliers), "60 % of 8000: {outliers}");
        assert!((150..250).contains(&positive), "half of 400: {positive}");
        match labels {
            OutlierLabels::Random => assert!((2200..2600).contains(&agree), "{agree} of {outliers}"),
            OutlierLabels::Flipped => assert_eq!(agree, 0),
            OutlierLabels::Target(_) => assert_eq!(wrong, outliers),
        }
        assert_eq!(tasks.len(), 6, "all ordered pairs of three patterns: {tasks:?}");
        assert!(tasks.values().all(|count| (30..100).contains(count)), "{tasks:?}");
    }
}

#[test]
fn unseen_outliers_are_combinations() {
    let prompts = small_prompts().try_init().unwrap();
    let unseen = UnseenOutliers::new(UNSEEN_COMBINATIONS.iter().map(|lambda| lambda.to_vec()).collect());
    for norm in [0.0, 1.5] {
        let distribution = PromptDistribution::test(0.5, OutlierLabels::Flipped)
            .with_unseen_outliers(Some(unseen.clone().with_orthogonal_norm(norm)));
        let batch = draw(&distribution, 50, 4);
        let mut seen = [0; 3];
        for (index, rows) in rows(&batch).iter().enumerate() {
            for (place, (x, _)) in rows[..20].iter().enumerate() {
                let is_outlier = batch.outliers()[20 * index + place];
                let lambda: Vec<f64> = prompts.outliers().iter().map(|v| dot(x, v) / 36.0).collect();
                let known = UNSEEN_COMBINATIONS
                    .iter()
                    .position(|known| known.iter().zip(&lambda).all(|(a, b)| (a - b).abs() < 1e-5));
                assert_eq!(known.is_some(), is_outlier, "{lambda:?}");
                if let Some(known) = known {
                    seen[known] += 1;
                    let patterns = [prompts.relevant(), prompts.irrelevant(), prompts.outliers()];
                    let within: f64 = patterns.into_iter().flatten().map(|p| dot(x, p).powi(2) / 9.0).sum();
                    let outside = (dot(x, x) - within).max(0.0).sqrt();
                    // Its share is scaled as the whole direction is.
                    assert!((outside - 4.0 * norm).abs() < 1e-2, "{outside}");
                }
            }
        }
        assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
    }
}

#[test]
fn outliers_are_placed_where_they_are_wanted() {
    let outliers = |placement, seed| {
        let distribution =
            PromptDistribution::training().with_outlier_probability(0.3).with_placement(placement);
        draw(&distribution, 30, seed).outliers().to_vec()
    };
    for row in outliers(OutlierPlacement::Farthest, 1).chunks(20) {
        assert_eq!(row, (0..20).map(|place| place < 6).collect::<Vec<_>>());
    }
    for row in outliers(OutlierPlacement::Closest, 1).chunks(20) {
        assert_eq!(row, (0..20).map(|place| place >= 14).collect::<Vec<_>>());
    }
    let random = outliers(OutlierPlacement::Random, 1);
    let mut places = [0; 20];
    for row in random.chunks(20) {
        assert_eq!(row.iter().filter(|outlier| **outlier).count(), 6);
        row.iter().zip(&mut places).for_each(|(outlier, count)| *count += usize::from(*outlier));
    }
    assert!(places.iter().all(|&count| count > 0), "every place takes its turn: {places:?}");
    assert_eq!(outliers(OutlierPlacement::Random, 1), random);
    assert_ne!(outliers(OutlierPlacement::Random, 2), random);
}

/// The paper's claim in small: after training both models answer clean prompts, and with flipped
/// outliers past one half only the gated one does.
#[test]
fn training_teaches_the_gate_to_skip_outliers() {
    let device = Device::flex();
    let prompts = small_prompts().try_init().unwrap();
    let trained = |gating, learning_rate| {
        let training = device.clone().autodiff();
        training.seed(0);
        let model = IclPredictorConfig::new().with_input_dim(FEATURES).with_gating(gating).init(&training);
        let config =
            IclTrainingConfig::new().with_steps(250).with_batch_size(64).with_learning_rate(learning_rate);
        let mut losses = Vec::new();
        let distribution = PromptDistribution::training();
        let model = train(model, &config, &prompts, &distribution, &training, |_, loss, _| losses.push(loss))
            .unwrap();
        assert_eq!(losses.len(), 250);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        assert!(mean(&losses[240..]) < 0.5 * mean(&losses[..3]), "{losses:?}");
        model.valid()
    };
    let error = |model: &IclPredictor, alpha| {
        let distribution = PromptDistribution::test(alpha, OutlierLabels::Flipped);
        let batch = draw(&distribution, 500, 77);
        values(&error_rate(model.score(batch.prompt(&device)), batch.labels(&device)))[0]
    };
    let (gated, linear) = (trained(Gating::Mamba, 0.5), trained(Gating::None, 0.05));
    assert!(error(&gated, 0.0) < 0.02 && error(&linear, 0.0) < 0.02);
    assert!(error(&gated, 0.7) < 0.1, "{}", error(&gated, 0.7));
    assert!(error(&linear, 0.7) > 0.8, "{}", error(&linear, 0.7));

    let batch = draw(&PromptDistribution::test(0.5, OutlierLabels::Flipped), 200, 5);
    let gates = values(&gated.forward(batch.prompt(&device)).gates);
    let mean = |outlier: bool| {
        let chosen: Vec<f32> = (batch.outliers().iter().enumerate())
            .filter(|(_, is_outlier)| **is_outlier == outlier)
            .map(|(index, _)| gates[index / 20 * 21 + index % 20])
            .collect();
        chosen.iter().sum::<f32>() / chosen.len() as f32
    };
    assert!(mean(true) < 0.05 * mean(false), "{} of {}", mean(true), mean(false));
}

#[test]
fn prompts_that_are_none_are_refused() {
    let device = Device::flex();
    let prompt = |rows: [[f32; 3]; 3]| Tensor::<3>::from_data([rows], &device);
    let good = [[1.0, 0.0, 1.0], [0.0, 1.0, -1.0], [1.0, 0.0, 0.0]];
    check_prompt(&prompt(good), 3).unwrap();
    let refused = |prompt: &Tensor<3>, width| {
        let error = check_prompt(prompt, width).unwrap_err();
        assert_eq!(error.field, "prompt");
        error.got
    };
    assert_eq!(refused(&prompt(good), 4), "rows of 3 values");
    assert_eq!(refused(&Tensor::zeros([2, 0, 3], &device), 3), "shape [2, 0, 3]");
    let mut labelled = good;
    labelled[2][2] = 1.0;
    assert_eq!(refused(&prompt(labelled), 3), "label 1 at [0, 2]");
    for label in [0.0, 0.5, f32::NAN] {
        let mut unlabelled = good;
        unlabelled[1][2] = label;
        assert_eq!(refused(&prompt(unlabelled), 3), format!("label {label} at [0, 1]"));
    }
}

#[test]
#[should_panic(expected = "`prompt` [1, 0, 13] must be [batch, l + 1, 13]")]
fn a_prompt_without_rows_panics() {
    let device = Device::flex();
    predictor(Gating::Mamba, &device).forward(Tensor::zeros([1, 0, 13], &device));
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "input `prompt`: got label 1 at [0, 2], need 0")]
fn a_labelled_query_panics_in_debug_builds() {
    let device = Device::flex();
    predictor(Gating::Mamba, &device).forward(Tensor::ones([1, 3, 13], &device));
}

#[test]
#[should_panic(expected = "input `state`: got shape [1, 7, 13], need [1, 13, 7]")]
fn a_state_of_another_shape_panics() {
    let device = Device::flex();
    let state = Tensor::zeros([1, 7, 13], &device);
    ssm(Gating::Mamba, &device).forward(Tensor::zeros([1, 2, 13], &device), Some(state));
}

#[test]
#[should_panic(expected = "`u` has no time step")]
fn no_time_step_panics() {
    let device = Device::flex();
    ssm(Gating::Mamba, &device).forward(Tensor::zeros([1, 0, 13], &device), None);
}

fn field<T>(result: Result<T, ConfigError>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.field,
    }
}

#[test]
fn configurations_that_describe_nothing_are_refused() {
    let device = Device::flex();
    let predictor = IclPredictorConfig::new();
    assert_eq!(field(predictor.clone().with_input_dim(0).try_init(&device)), "input_dim");
    assert_eq!(field(predictor.clone().with_input_dim(usize::MAX).try_init(&device)), "input_dim");
    assert_eq!(field(predictor.clone().with_state_dim(Some(0)).try_init(&device)), "state_dim");
    assert_eq!(field(predictor.with_initial_scale(0.0).try_init(&device)), "initial_scale");
    assert_eq!(field(SelectiveSsmConfig::new(0).try_init(&device)), "channels");
    assert_eq!(field(SelectiveSsmConfig::new(3).with_state_dim(Some(0)).try_init(&device)), "state_dim");
    assert_eq!(field(IclStackConfig::new().with_num_layers(0).try_init(&device)), "num_layers");

    let prompts = small_prompts();
    assert_eq!(field(prompts.clone().with_input_dim(7).try_init()), "input_dim");
    prompts.clone().with_input_dim(8).try_init().unwrap();
    assert_eq!(field(prompts.clone().with_irrelevant_patterns(usize::MAX).try_init()), "input_dim");
    assert_eq!(field(prompts.clone().with_relevant_patterns(1).try_init()), "relevant_patterns");
    assert_eq!(field(prompts.clone().with_pattern_norm(0.9).try_init()), "pattern_norm");
    assert_eq!(field(prompts.with_pattern_norm(f64::NAN).try_init()), "pattern_norm");
}

#[test]
fn distributions_that_cannot_be_drawn_from_are_refused() {
    let prompts = small_prompts().try_init().unwrap();
    let refused = |distribution: &PromptDistribution| {
        field(prompts.draw(distribution, 2, &mut StdRng::seed_from_u64(0)))
    };
    let plain = PromptDistribution::training();
    for probability in [-0.1, 1.0, f64::NAN] {
        assert_eq!(refused(&plain.clone().with_outlier_probability(probability)), "outlier_probability");
    }
    assert_eq!(refused(&plain.clone().with_context_length(0)), "context_length");
    assert_eq!(refused(&plain.clone().with_irrelevant_scale(-1.0)), "irrelevant_scale");
    assert_eq!(refused(&plain.clone().with_outlier_scale(f64::INFINITY)), "outlier_scale");
    let target = plain.clone().with_outlier_labels(OutlierLabels::Target(0.5));
    assert_eq!(refused(&target), "outlier_labels");
    for combinations in [vec![], vec![vec![1.0, 1.0]], vec![vec![1.0, -0.5, -0.5]]] {
        let unseen = plain.clone().with_unseen_outliers(Some(UnseenOutliers::new(combinations)));
        assert_eq!(refused(&unseen), "unseen_outliers.combinations");
    }
    let whole = small_prompts().with_input_dim(8).try_init().unwrap();
    let unseen = UnseenOutliers::new(vec![vec![1.0; 3]]).with_orthogonal_norm(1.0);
    let distribution = plain.clone().with_unseen_outliers(Some(unseen));
    let drawn = whole.draw(&distribution, 2, &mut StdRng::seed_from_u64(0));
    assert_eq!(field(drawn), "unseen_outliers.orthogonal_norm");

    let without = small_prompts().with_outlier_directions(0).try_init().unwrap();
    let drawn = without.draw(&plain, 2, &mut StdRng::seed_from_u64(0));
    assert_eq!(field(drawn), "outlier_probability");
    let clean = plain.clone().with_outlier_probability(0.0);
    without.draw(&clean, 2, &mut StdRng::seed_from_u64(0)).unwrap();
    assert_eq!(field(prompts.draw(&plain, 0, &mut StdRng::seed_from_u64(0))), "batch");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_training() {
    let device = Device::flex().autodiff();
    let prompts = small_prompts().try_init().unwrap();
    let mut model = predictor(Gating::Mamba, &device);
    model.w = model.w.map(|w| w * f32::NAN);
    let before = values(&model.W_B.val());
    let mut losses = Vec::new();
    let (config, distribution) = (IclTrainingConfig::new(), PromptDistribution::training());
    let model =
        train(model, &config, &prompts, &distribution, &device, |_, loss, _| losses.push(loss)).unwrap();
    assert!(losses.len() == 1 && losses[0].is_nan(), "{losses:?}");
    assert_eq!(values(&model.W_B.val()), before);
}

#[test]
fn trainings_that_cannot_run_are_refused() {
    let device = Device::flex().autodiff();
    let prompts = small_prompts().try_init().unwrap();
    for (name, config) in [
        ("learning_rate", IclTrainingConfig::new().with_learning_rate(1.5)),
        ("learning_rate", IclTrainingConfig::new().with_learning_rate(0.0)),
        ("batch_size", IclTrainingConfig::new().with_batch_size(0)),
    ] {
        let model = predictor(Gating::Mamba, &device);
        let distribution = PromptDistribution::training();
        let result = train(model, &config, &prompts, &distribution, &device, |_, _, _| ());
        assert_eq!(field(result), name);
    }
}
