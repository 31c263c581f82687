//! Every form of a scan on every device computes the same function, forward and backward; models
//! stream as they run whole, and train alike on every device.
//!
//! `GATEKIT_DEVICES` names the devices, `PROPTEST_CASES` the number of random problems a property
//! (seeds are fixed).

use burn::{
    optim::{AdamWConfig, GradientsParams},
    tensor::{Bool, Device, Int, Tensor, TensorData},
};
use gatekit::{
    core::scan::ScanForm,
    sequence::{
        GlaConfig, GlaForCausalLm,
        lm::{CausalLm, StreamState, StreamingLm},
    },
};
use gatekit_tests::{
    devices,
    judge::agree,
    models,
    random::Draw,
    scans::{Arrays, DecayKind, ElementwiseProblem, FORMS, Problem},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

/// Relative error allowed to float32 outputs and gradients: those of the golden cases.
const OUTPUT: f64 = 2e-5;
const GRADIENT: f64 = 1e-4;

fn config(default_cases: u32) -> Config {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .map(|text| text.parse().unwrap_or_else(|error| panic!("PROPTEST_CASES=\"{text}\": {error}")));
    Config {
        cases: cases.unwrap_or(default_cases),
        rng_seed: RngSeed::Fixed(231_206_635),
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    }
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1_usize), Just(2), Just(3), Just(5), Just(8), Just(16), Just(17)]
}

/// Ends of random segments of `time` steps.
fn boundaries(time: usize, seed: u64) -> Vec<usize> {
    Draw::new(seed ^ 0xb0).cuts(time, 0.1)
}

prop_compose! {
    fn problem()(
        sizes in (1_usize..=3, 1_usize..=70, 1_usize..=3, width(), width()),
        (sub_chunk_size, sub_chunks) in (prop_oneof![Just(1_usize), Just(4), Just(8), Just(16)], 1_usize..=5),
        scale in prop_oneof![2 => Just(None), 1 => Just(Some(0.7))],
        decay in prop_oneof![Just(DecayKind::None), Just(DecayKind::PerHead), Just(DecayKind::PerKey)],
        (delta, has_state, packed) in (any::<bool>(), any::<bool>(), any::<bool>()),
        seed in any::<u64>(),
    ) -> Problem {
        let (batch, time, heads, key_dim, value_dim) = sizes;
        Problem {
            batch: if packed { 1 } else { batch },
            time,
            heads,
            key_dim,
            value_dim,
            chunk_size: sub_chunk_size * sub_chunks,
            sub_chunk_size,
            scale,
            decay,
            delta,
            has_state,
            cu_seqlens: packed.then(|| boundaries(time, seed)),
            seed,
        }
    }
}

prop_compose! {
    fn elementwise_problem()(
        (batch, time, dim) in (1_usize..=3, 1_usize..=140, 1_usize..=19),
        (has_state, packed) in (any::<bool>(), any::<bool>()),
        seed in any::<u64>(),
    ) -> ElementwiseProblem {
        ElementwiseProblem {
            batch: if packed { 1 } else { batch },
            time,
            dim,
            has_state,
            cu_seqlens: packed.then(|| boundaries(time, seed)),
            seed,
        }
    }
}

fn spread_log_gate(draw: &mut Draw) -> f64 {
    if draw.below(16) == 0 { 0.0 } else { -(10.0_f64.powf(draw.uniform(-4.0, 1.0))) }
}

/// Compares all results; outputs to [`OUTPUT`], everything else (gradients) to [`GRADIENT`].
fn compare(place: &str, got: &Arrays, want: &Arrays) -> Result<(), String> {
    assert!(!want.is_empty(), "{place}: nothing to compare");
    for (name, want) in want {
        let is_output = matches!(*name, "o" | "final_state");
        let got: &TensorData = got.get(name).ok_or_else(|| format!("{place}: no `{name}`"))?;
        let what = format!("{place}: {}{name}", if is_output { "" } else { "gradient of " });
        agree(&what, got, want, if is_output { OUTPUT } else { GRADIENT }).map_err(|failure| failure.0)?;
    }
    Ok(())
}

/// Forward in every form on every device against float64; outputs and gradients of every form on
/// every device against the first device's step-by-step form, differentiated by Burn.
fn check_matrix_scan(problem: &Problem, arrays: &Arrays) -> Result<(), String> {
    let reference = problem.reference(arrays);
    let reference: Arrays = [("o", reference.output), ("final_state", reference.final_state)].into();
    check_everywhere(&reference, |form, device| problem.forward_backward(arrays, form, device))
}

fn check_elementwise_scan(problem: &ElementwiseProblem, arrays: &Arrays) -> Result<(), String> {
    let reference = problem.reference(arrays);
    check_everywhere(&reference, |form, device| problem.forward_backward(arrays, form, device))
}

fn check_everywhere(reference: &Arrays, run: impl Fn(ScanForm, &Device) -> Arrays) -> Result<(), String> {
    let devices = devices::chosen_or_panic();
    let yardstick = run(ScanForm::Recurrent, &devices[0].device);
    let mut misses = Vec::new();
    for device in &devices {
        for form in FORMS {
            let place = format!("{form:?} on {}", device.name);
            let is_yardstick = form == ScanForm::Recurrent && device.name == devices[0].name;
            let results = if is_yardstick { yardstick.clone() } else { run(form, &device.device) };
            misses.extend(compare(&format!("{place} against float64"), &results, reference).err());
            let other = format!("{place} against Recurrent on {}", devices[0].name);
            misses.extend(compare(&other, &results, &yardstick).err());
        }
    }
    if misses.is_empty() { Ok(()) } else { Err(misses.join("\n")) }
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn every_form_computes_the_recurrence_and_its_gradients(problem in problem()) {
        check_matrix_scan(&problem, &problem.draw()).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn every_form_computes_the_elementwise_recurrence_and_its_gradients(problem in elementwise_problem()) {
        let arrays = problem.draw_with(spread_log_gate);
        check_elementwise_scan(&problem, &arrays).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn streaming_in_any_split_equals_the_whole(
        problem in problem(),
        share in prop_oneof![Just(0.0), Just(0.1), Just(0.5), Just(1.0)],
    ) {
        let problem = Problem { cu_seqlens: None, ..problem };
        let arrays = problem.draw();
        let cuts = Draw::new(problem.seed ^ 0x51).cuts(problem.time, share);
        for device in devices::chosen_or_panic() {
            for form in FORMS {
                let whole = problem.forward(&arrays, form, &device.device);
                let streamed = problem.stream(&arrays, &cuts, form, &device.device);
                let place = format!("{form:?} on {}, split at {cuts:?}", device.name);
                compare(&place, &streamed, &whole).map_err(TestCaseError::fail)?;
            }
        }
    }
}

/// Every kind of decay with every kind of write.
fn kinds() -> impl Iterator<Item = (DecayKind, bool)> {
    [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey]
        .into_iter()
        .flat_map(|decay| [false, true].map(|delta| (decay, delta)))
}

/// What failed of a list of problems.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn note(&mut self, place: &str, result: Result<(), String>) {
        self.0.extend(result.err().map(|text| format!("{place}: {text}")));
    }

    fn report(self) {
        assert!(self.0.is_empty(), "{} failed:\n{}", self.0.len(), self.0.join("\n"));
    }
}

#[test]
fn widths_from_one_to_those_of_real_layers() {
    let mut failures = Failures::default();
    let widths = [(1, 1), (3, 3), (17, 17), (64, 64), (33, 65), (128, 32), (128, 128), (256, 256)];
    for (key_dim, value_dim) in widths {
        // Short of the largest: the step-by-step form keeps every state.
        let [batch, time] = if key_dim * value_dim > 64 * 65 { [1, 20] } else { [2, 75] };
        for (decay, delta) in kinds() {
            let problem = Problem::new([batch, time, 2, key_dim, value_dim], decay, delta);
            let place = format!("K {key_dim}, V {value_dim}, {decay:?}, delta {delta}");
            failures.note(&place, check_matrix_scan(&problem, &problem.draw()));
        }
    }
    failures.report();
}

#[test]
fn lengths_around_a_chunk() {
    let mut failures = Failures::default();
    for time in [1, 63, 64, 65] {
        for (decay, delta) in kinds() {
            let problem = Problem::new([1, time, 1, 4, 3], decay, delta);
            let place = format!("T {time}, {decay:?}, delta {delta}");
            failures.note(&place, check_matrix_scan(&problem, &problem.draw()));
        }
        let problem =
            ElementwiseProblem { batch: 1, time, dim: 5, has_state: true, cu_seqlens: None, seed: 3 };
        let arrays = problem.draw_with(spread_log_gate);
        failures.note(&format!("T {time}, elementwise"), check_elementwise_scan(&problem, &arrays));
    }
    failures.report();
}

#[test]
fn a_thousand_steps() {
    let mut failures = Failures::default();
    for (decay, delta) in [(DecayKind::PerKey, false), (DecayKind::PerHead, true), (DecayKind::PerKey, true)]
    {
        let problem = Problem::new([1, 1000, 1, 4, 4], decay, delta);
        let place = format!("{decay:?}, delta {delta}");
        failures.note(&place, check_matrix_scan(&problem, &problem.draw()));
    }
    let problem =
        ElementwiseProblem { batch: 1, time: 1000, dim: 3, has_state: true, cu_seqlens: None, seed: 3 };
    let arrays = problem.draw_with(spread_log_gate);
    failures.note("elementwise", check_elementwise_scan(&problem, &arrays));
    failures.report();
}

/// Log decays at the ends of what a gate can say.
fn extreme_gates() -> [(&'static str, fn(&mut Draw) -> f64); 5] {
    [
        ("decay 1e-30", |_| -69.077_55),
        ("decay 1", |_| 0.0),
        ("resets among slow decays", |draw| if draw.below(4) == 0 { -1000.0 } else { -1e-3 }),
        ("decay 0 among slow decays", |draw| if draw.below(4) == 0 { f64::NEG_INFINITY } else { -1e-3 }),
        ("from 1e-30 to 1", |draw| [-69.0, -30.0, -1.0, -1e-3, 0.0][draw.below(5)]),
    ]
}

#[test]
fn extreme_decays() {
    let mut failures = Failures::default();
    for (name, log_gate) in extreme_gates() {
        for (decay, delta) in kinds().filter(|(decay, _)| *decay != DecayKind::None) {
            let problem = Problem::new([1, 97, 2, 5, 3], decay, delta);
            let arrays = problem.draw_with(log_gate, |draw| draw.uniform(0.0, 2.0));
            let place = format!("{name}, {decay:?}, delta {delta}");
            failures.note(&place, check_matrix_scan(&problem, &arrays));
        }
        let problem =
            ElementwiseProblem { batch: 2, time: 97, dim: 4, has_state: true, cu_seqlens: None, seed: 5 };
        let arrays = problem.draw_with(log_gate);
        failures.note(&format!("{name}, elementwise"), check_elementwise_scan(&problem, &arrays));
    }
    failures.report();
}

#[test]
fn extreme_betas() {
    let mut failures = Failures::default();
    for beta in [0.0, 1.0, 2.0] {
        for decay in [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey] {
            let problem = Problem::new([1, 97, 2, 5, 3], decay, true);
            let arrays = problem.draw_with(spread_log_gate, |_| beta);
            let place = format!("beta {beta}, {decay:?}");
            failures.note(&place, check_matrix_scan(&problem, &arrays));
        }
    }
    failures.report();
}

/// Small models that between them use every option of the layer.
fn models() -> Vec<(&'static str, GlaConfig)> {
    let small = || GlaConfig::new(19, 16, 2).with_num_heads(2).with_intermediate_size(Some(24));
    vec![
        ("plain", small()),
        (
            "convolutions, grouped heads, tied",
            small()
                .with_num_heads(4)
                .with_num_kv_heads(Some(2))
                .with_use_short_conv(true)
                .with_conv_bias(true)
                .with_tie_word_embeddings(true),
        ),
        (
            // Relu features can all be 0; a larger epsilon keeps the norm from magnifying rounding.
            "no output gate, feature map, clamped gate",
            small()
                .with_norm_eps(1e-3)
                .with_use_output_gate(false)
                .with_feature_map(Some("relu".into()))
                .with_clamp_min(Some(-0.05))
                .with_gate_logit_normalizer(2.0),
        ),
    ]
}

/// Logits of a whole model, to this relative error.
const LOGITS: f64 = 5e-5;

fn ids(batch: usize, time: usize, seed: u64) -> TensorData {
    Draw::new(seed).tokens(&[batch, time], 19)
}

/// The logits of the pieces between `cuts`; pieces of one token go through `step`, and after every
/// piece `carry` may replace model and state.
fn stream(
    model: GlaForCausalLm,
    ids: &TensorData,
    cuts: &[usize],
    device: &Device,
    mut carry: impl FnMut(GlaForCausalLm, State, Device) -> (GlaForCausalLm, State, Device),
) -> TensorData {
    let batch = ids.shape()[0];
    let mut state = model.empty_state(batch, device);
    let (mut model, mut device, home) = (model, device.clone(), device.clone());
    let mut logits: Vec<Tensor<3>> = Vec::new();
    for ends in cuts.windows(2) {
        let tokens = Tensor::<2, Int>::from_data(ids.clone(), &device).narrow(1, ends[0], ends[1] - ends[0]);
        let (piece, next) = if ends[1] - ends[0] == 1 {
            let (piece, next) = model.step(tokens.squeeze_dim::<1>(1), state);
            (piece.unsqueeze_dim::<3>(1), next)
        } else {
            model.prefill(tokens, state)
        };
        // The pieces may come from several devices.
        logits.push(Tensor::from_data(piece.into_data(), &home));
        (model, state, device) = carry(model, next, device);
    }
    Tensor::cat(logits, 1).into_data()
}

type State = <GlaForCausalLm as StreamingLm>::State;

proptest! {
    #![proptest_config(config(16))]

    #[test]
    fn models_stream_in_any_split_as_they_run_whole(
        (batch, time) in (1_usize..=3, 1_usize..=40),
        share in prop_oneof![Just(0.0), Just(0.2), Just(1.0)],
        seed in any::<u64>(),
    ) {
        let ids = ids(batch, time, seed);
        let cuts = Draw::new(seed ^ 0x51).cuts(time, share);
        for (name, config) in models() {
            for device in devices::chosen_or_panic() {
                let model = models::gla(&config, 0.3, seed, &device.device);
                let tokens = Tensor::<2, Int>::from_data(ids.clone(), &device.device);
                let whole = model.forward(tokens, None).into_data();
                let streamed = stream(model, &ids, &cuts, &device.device, |m, s, d| (m, s, d));
                let place = format!("{name} on {}, split at {cuts:?}", device.name);
                agree(&place, &streamed, &whole, LOGITS).map_err(|failure| TestCaseError::fail(failure.0))?;
            }
        }
    }

    #[test]
    fn models_agree_on_every_device(batch in 1_usize..=3, time in 1_usize..=80, seed in any::<u64>()) {
        let devices = devices::chosen_or_panic();
        let ids = ids(batch, time, seed);
        for (name, config) in models() {
            let logits = |device: &Device| {
                let tokens = Tensor::<2, Int>::from_data(ids.clone(), device);
                models::gla(&config, 0.3, seed, device).forward(tokens, None).into_data()
            };
            let first = logits(&devices[0].device);
            for device in &devices {
                let place = format!("{name}: {} against {}", device.name, devices[0].name);
                agree(&place, &logits(&device.device), &first, LOGITS)
                    .map_err(|failure| TestCaseError::fail(failure.0))?;
            }
        }
    }

    #[test]
    fn padding_anywhere_changes_no_real_token(batch in 1_usize..=3, time in 1_usize..=30, seed in any::<u64>()) {
        let ids = ids(batch, time, seed);
        let mut draw = Draw::new(seed ^ 0x3a);
        let mut mask: Vec<bool> = (0..batch * time).map(|_| draw.below(3) > 0).collect();
        for row in mask.chunks_mut(time) {
            row[draw.below(time)] = true;
        }
        for (name, config) in models() {
            for device in devices::chosen_or_panic() {
                let model = models::gla(&config, 0.3, seed, &device.device);
                let tokens = Tensor::<2, Int>::from_data(ids.clone(), &device.device);
                let tensor = Tensor::<2, Bool>::from_data(TensorData::new(mask.clone(), [batch, time]), &device.device);
                let padded = model.forward(tokens.clone(), Some(tensor));
                for row in 0..batch {
                    let real: Vec<i64> = (0..time).filter(|at| mask[row * time + at]).map(|at| at as i64).collect();
                    let count = real.len();
                    let real = Tensor::<1, Int>::from_data(TensorData::new(real, [count]), &device.device);
                    let alone = model.forward(tokens.clone().narrow(0, row, 1).select(1, real.clone()), None);
                    let padded = padded.clone().narrow(0, row, 1).select(1, real);
                    let place = format!("{name} on {}, row {row}", device.name);
                    agree(&place, &padded.into_data(), &alone.into_data(), LOGITS)
                        .map_err(|failure| TestCaseError::fail(failure.0))?;
                }
            }
        }
    }
}

#[test]
fn a_state_moves_between_devices() {
    let devices = devices::chosen_or_panic();
    let ids = ids(2, 12, 4);
    for (name, config) in models() {
        for from in &devices {
            for to in &devices {
                let model = models::gla(&config, 0.3, 4, &from.device);
                let tokens = Tensor::<2, Int>::from_data(ids.clone(), &from.device);
                let whole = model.forward(tokens, None).into_data();
                let moved = stream(model, &ids, &[0, 5, 6, 12], &from.device, |_, state, _| {
                    let model = models::gla(&config, 0.3, 4, &to.device);
                    (model, state.to_device(&to.device), to.device.clone())
                });
                agree(&format!("{name}: from {} to {}", from.name, to.name), &moved, &whole, LOGITS)
                    .unwrap_or_else(|failure| panic!("{failure}"));
            }
        }
    }
}

/// Steps of the training run, and how far its loss must fall.
const TRAINING_STEPS: usize = 20;
const TRAINING_FACTOR: f64 = 0.5;

/// The losses of a short run on one batch: every token is the one before plus 5 (modulo 19).
fn train(device: &Device) -> Vec<f64> {
    let device = device.clone().autodiff();
    let config = GlaConfig::new(19, 16, 2)
        .with_num_heads(2)
        .with_intermediate_size(Some(24))
        .with_use_short_conv(true);
    let mut model = models::gla(&config, 0.05, 11, &device);
    let (batch, time) = (4, 24);
    let ids: Vec<i64> = (0..batch).flat_map(|row| (0..time).map(move |at| (3 * row + 5 * at) % 19)).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [batch as usize, time as usize]), &device);
    let mut optimizer = AdamWConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..TRAINING_STEPS {
        let loss = model
            .loss(model.forward(ids.clone(), None), ids.clone())
            .unwrap_or_else(|error| panic!("{error}"));
        losses.push(loss.clone().into_data().iter::<f64>().next().expect("a loss is one number"));
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(2e-2, model, gradients);
    }
    losses
}

#[test]
fn training_runs_alike_on_every_device() {
    let devices = devices::chosen_or_panic();
    let first = train(&devices[0].device);
    for device in &devices {
        let losses = train(&device.device);
        let (start, end) = (losses[0], losses[TRAINING_STEPS - 1]);
        assert!(end < TRAINING_FACTOR * start, "{}: the loss goes from {start} to {end}", device.name);
        for (step, (loss, first)) in losses.iter().zip(&first).enumerate() {
            assert!(
                (loss - first).abs() <= 1e-3 * first.abs(),
                "step {step}: loss {loss} on {}, {first} on {}",
                device.name,
                devices[0].name
            );
        }
    }
}
