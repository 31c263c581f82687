//! What cannot be computed is refused, with a message that names what is wrong.
//!
//! A wrong shape panics (a programming error) and names the argument and both shapes. Bad
//! configurations and data from outside are `Err`. Values in `forward` are checked in debug builds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit::{
    core::{
        ConfigError, InputError, ModuleConfig,
        scan::{
            Decay, Discretisation, ScanForm, ScanOptions, SelectiveOptions, StepDecay, Write, delta_rule,
            elementwise_recurrence, gated_delta_rule, gated_linear_attention, hgrn2, kimi_delta_attention,
            linear_recurrence, linear_recurrence_step, retention, selective_scan, selective_scan_step,
        },
        sequence::{Boundaries, Packing},
    },
    sequence::{
        GatedLinearAttentionConfig, GlaConfig, GlaForCausalLm,
        checkpoint::PretrainedConfig,
        gla::GlaState,
        lm::{CausalLm, StreamingLm},
    },
};
use gatekit_tests::{devices, failure::panic_text};

/// Runs `body`, which must panic with a message that holds every needle.
fn refuses<T>(needles: &[&str], body: impl FnOnce() -> T) {
    let Err(payload) = catch_unwind(AssertUnwindSafe(body)) else {
        panic!("accepted, although a message with {needles:?} was due");
    };
    let text = panic_text(payload.as_ref());
    for needle in needles {
        assert!(text.contains(needle), "the message {text:?} does not name {needle:?}");
    }
}

/// As [`refuses`], for a value in a tensor: `forward` reads values back in debug builds only.
fn refuses_value<T>(needles: &[&str], body: impl FnOnce() -> T) {
    if cfg!(debug_assertions) {
        refuses(needles, body);
    }
}

fn on_every_device(test: impl Fn(&Device)) {
    for device in devices::chosen_or_panic() {
        test(&device.device);
    }
}

fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::zeros(shape, device)
}

/// The arguments of a scan, all of shapes that fit: B 2, T 3, H 2, K 4, V 5.
struct Arguments {
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    decay: Decay,
    write: Write,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<Boundaries>,
    options: ScanOptions,
}

impl Arguments {
    fn new(device: &Device) -> Self {
        Self {
            q: zeros([2, 3, 2, 4], device),
            k: zeros([2, 3, 2, 4], device),
            v: zeros([2, 3, 2, 5], device),
            decay: Decay::PerKey(zeros([2, 3, 2, 4], device)),
            write: Write::Delta(zeros([2, 3, 2], device)),
            initial_state: Some(zeros([2, 2, 4, 5], device)),
            boundaries: None,
            options: ScanOptions::default(),
        }
    }

    fn run(self) {
        let Self { q, k, v, decay, write, initial_state, boundaries, options } = self;
        linear_recurrence(q, k, v, decay, write, initial_state, boundaries.as_ref(), &options);
    }
}

/// Every form refuses what `edit` makes of good arguments.
fn scan_refuses(needles: &[&str], edit: impl Fn(&mut Arguments, &Device)) {
    on_every_device(|device| {
        for form in [ScanForm::Auto, ScanForm::Portable, ScanForm::Recurrent] {
            let mut arguments = Arguments::new(device);
            arguments.options.form = form;
            edit(&mut arguments, device);
            refuses(needles, || arguments.run());
        }
    });
}

#[test]
fn the_good_arguments_are_accepted() {
    on_every_device(|device| {
        for form in [ScanForm::Auto, ScanForm::Portable, ScanForm::Recurrent] {
            let mut arguments = Arguments::new(device);
            arguments.options.form = form;
            arguments.run();
        }
    });
}

#[test]
fn scan_shapes_that_disagree() {
    scan_refuses(&["`k`", "[2, 3, 2, 3]", "[2, 3, 2, 4]"], |a, device| a.k = zeros([2, 3, 2, 3], device));
    scan_refuses(&["`k`", "[2, 4, 2, 4]", "[2, 3, 2, 4]"], |a, device| a.k = zeros([2, 4, 2, 4], device));
    for v in [[1, 3, 2, 5], [2, 4, 2, 5], [2, 3, 3, 5]] {
        scan_refuses(&["`v`", &format!("{v:?}"), "[2, 3, 2, 4]"], |a, device| a.v = zeros(v, device));
    }
    scan_refuses(&["`log_gate`", "[2, 3, 2, 5]", "[2, 3, 2, 4]"], |a, device| {
        a.decay = Decay::PerKey(zeros([2, 3, 2, 5], device));
    });
    scan_refuses(&["`log_gate`", "[2, 3, 1]", "[2, 3, 2]"], |a, device| {
        a.decay = Decay::PerHead(zeros([2, 3, 1], device));
    });
    scan_refuses(&["`beta`", "[2, 2, 2]", "[2, 3, 2]"], |a, device| {
        a.write = Write::Delta(zeros([2, 2, 2], device));
    });
    for state in [[1, 2, 4, 5], [2, 1, 4, 5], [2, 2, 5, 4]] {
        scan_refuses(&["`initial_state`", &format!("{state:?}"), "[2, 2, 4, 5]"], |a, device| {
            a.initial_state = Some(zeros(state, device));
        });
    }
}

#[test]
fn scans_of_nothing() {
    for [batch, time] in [[0, 3], [2, 0]] {
        let shape = format!("[{batch}, {time}, 2, 4]");
        let what = if batch == 0 { "empty batch" } else { "no time step" };
        scan_refuses(&["`q`", what, &shape], |a, device| {
            (a.q, a.k) = (zeros([batch, time, 2, 4], device), zeros([batch, time, 2, 4], device));
            a.v = zeros([batch, time, 2, 5], device);
            a.decay = Decay::PerKey(zeros([batch, time, 2, 4], device));
            a.write = Write::Delta(zeros([batch, time, 2], device));
            a.initial_state = Some(zeros([batch, 2, 4, 5], device));
        });
    }
    on_every_device(|device| {
        refuses(&["`q`", "empty batch", "[0, 2, 4]"], || {
            let x = || zeros([0, 2, 4], device);
            let _ = linear_recurrence_step(
                x(),
                x(),
                x(),
                StepDecay::None,
                None,
                zeros([0, 2, 4, 4], device),
                None,
            );
        });
    });
}

#[test]
fn packed_scans_need_batch_one_and_a_state_a_segment() {
    let boundaries = |time| Some(Boundaries::new(&[0, 1, time], time).unwrap());
    scan_refuses(&["cu_seqlens", "batch", "2"], |a, _| a.boundaries = boundaries(3));
    let pack = |a: &mut Arguments, device: &Device| {
        a.q = zeros([1, 3, 2, 4], device);
        a.k = zeros([1, 3, 2, 4], device);
        a.v = zeros([1, 3, 2, 5], device);
        a.decay = Decay::None;
        a.write = Write::Additive;
    };
    scan_refuses(&["`initial_state`", "[1, 2, 4, 5]", "[2, 2, 4, 5]"], |a, device| {
        pack(a, device);
        a.boundaries = boundaries(3);
        a.initial_state = Some(zeros([1, 2, 4, 5], device));
    });
    scan_refuses(&["cu_seqlens", "4", "3"], |a, device| {
        pack(a, device);
        a.boundaries = boundaries(4);
    });
}

#[test]
fn no_time_step() {
    scan_refuses(&["`q`", "[2, 0, 2, 4]"], |a, device| {
        a.q = zeros([2, 0, 2, 4], device);
        a.k = zeros([2, 0, 2, 4], device);
        a.v = zeros([2, 0, 2, 5], device);
        a.decay = Decay::None;
        a.write = Write::Additive;
    });
    on_every_device(|device| {
        refuses(&["`x`", "[2, 0, 4]"], || {
            let (x, log_gate) = (zeros([2, 0, 4], device), zeros([2, 0, 4], device));
            elementwise_recurrence(x, log_gate, None, None, ScanForm::Auto)
        });
    });
}

#[test]
fn chunks_that_sub_chunks_do_not_fill() {
    for (chunk_size, sub_chunk_size) in [(24, 16), (0, 16), (64, 0)] {
        scan_refuses(&["`chunk_size`", &chunk_size.to_string(), &sub_chunk_size.to_string()], |a, _| {
            a.options.chunk_size = chunk_size;
            a.options.sub_chunk_size = sub_chunk_size;
        });
    }
}

#[cfg(debug_assertions)]
#[test]
fn gates_and_betas_out_of_range() {
    for bad in [0.5, f32::NAN, f32::INFINITY] {
        let text = format!("{bad}");
        scan_refuses(&["`log_gate`", &text], |a, device| {
            a.decay = Decay::PerKey(zeros([2, 3, 2, 4], device).slice_fill([1..2, 2..3, 1..2, 3..4], bad));
        });
        scan_refuses(&["`log_gate`", &text], |a, device| {
            a.decay = Decay::PerHead(zeros([2, 3, 2], device).slice_fill([1..2, 2..3, 1..2], bad));
        });
        on_every_device(|device| {
            refuses(&["`log_gate`", &text], || {
                let log_gate = zeros([2, 3, 4], device).slice_fill([0..1, 1..2, 2..3], bad);
                elementwise_recurrence(zeros([2, 3, 4], device), log_gate, None, None, ScanForm::Auto)
            });
        });
    }
    for bad in [-0.5, 2.5, f32::NAN] {
        scan_refuses(&["`beta`", &format!("{bad}")], |a, device| {
            a.write = Write::Delta(zeros([2, 3, 2], device).slice_fill([1..2, 0..1, 1..2], bad));
        });
    }
}

#[test]
fn shapes_of_one_step() {
    on_every_device(|device| {
        let step = |edit: fn(&mut StepArguments, &Device), needles: &[&str]| {
            let mut a = StepArguments {
                q: zeros([2, 2, 4], device),
                k: zeros([2, 2, 4], device),
                v: zeros([2, 2, 5], device),
                decay: StepDecay::PerKey(zeros([2, 2, 4], device)),
                beta: Some(zeros([2, 2], device)),
                state: zeros([2, 2, 4, 5], device),
            };
            edit(&mut a, device);
            refuses(needles, || linear_recurrence_step(a.q, a.k, a.v, a.decay, a.beta, a.state, None));
        };
        step(|a, device| a.k = zeros([2, 2, 3], device), &["`k`", "[2, 2, 3]", "[2, 2, 4]"]);
        step(|a, device| a.v = zeros([2, 1, 5], device), &["`v`", "[2, 1, 5]", "[2, 2, 5]"]);
        step(|a, device| a.state = zeros([1, 2, 4, 5], device), &["`state`", "[1, 2, 4, 5]", "[2, 2, 4, 5]"]);
        step(|a, device| a.beta = Some(zeros([2, 1], device)), &["`beta`", "[2, 1]", "[2, 2]"]);
        step(
            |a, device| a.decay = StepDecay::PerKey(zeros([2, 2, 5], device)),
            &["`log_gate`", "[2, 2, 5]", "[2, 2, 4]"],
        );
        step(
            |a, device| a.decay = StepDecay::PerHead(zeros([2, 1], device)),
            &["`log_gate`", "[2, 1]", "[2, 2]"],
        );
    });
}

struct StepArguments {
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    decay: StepDecay,
    beta: Option<Tensor<2>>,
    state: Tensor<4>,
}

#[test]
fn members_of_the_family_refuse_shapes_too() {
    on_every_device(|device| {
        let options = ScanOptions::default();
        let x4 = |shape| zeros::<4>(shape, device);
        let x3 = |shape| zeros::<3>(shape, device);
        let (q, v) = ([2, 3, 2, 4], [2, 3, 2, 5]);
        refuses(&["`log_gate`", "[2, 3, 2, 5]", "[2, 3, 2, 4]"], || {
            gated_linear_attention(x4(q), x4(q), x4(v), x4(v), None, None, &options)
        });
        refuses(&["`k`", "[2, 3, 2, 5]", "[2, 3, 2, 4]"], || {
            retention(x4(q), x4(v), x4(v), None, None, &options)
        });
        refuses(&["[2, 3, 2, 5]", "[2, 3, 2, 4]"], || hgrn2(x4(q), x4(v), x4(v), None, None, None, &options));
        refuses(&["`beta`", "[2, 3, 1]", "[2, 3, 2]"], || {
            delta_rule(x4(q), x4(q), x4(v), x3([2, 3, 1]), None, None, true, &options)
        });
        // Three value heads cannot share two query heads.
        let (v, scalars, gates) = ([2, 3, 3, 5], [2, 3, 3], [2, 3, 3, 4]);
        let needles = ["2 heads", "3"];
        refuses(&needles, || delta_rule(x4(q), x4(q), x4(v), x3(scalars), None, None, true, &options));
        refuses(&needles, || {
            gated_delta_rule(x4(q), x4(q), x4(v), x3(scalars), x3(scalars), None, None, true, &options)
        });
        refuses(&needles, || {
            kimi_delta_attention(x4(q), x4(q), x4(v), x4(gates), x3(scalars), None, None, true, &options)
        });
    });
}

#[test]
fn lower_bounds_out_of_range() {
    on_every_device(|device| {
        for bad in [1.0, 1.5, -0.25, f32::NAN] {
            refuses_value(&["lower_bound", &format!("{bad}")], || {
                let logits = zeros([1, 3, 2, 4], device);
                let bound = Some(zeros([2, 4], device).slice_fill([1..2, 2..3], bad));
                hgrn2(logits.clone(), logits.clone(), logits, bound, None, None, &ScanOptions::default())
            });
        }
        refuses(&["lower_bound", "[3, 4]", "[2, 4]"], || {
            let logits = zeros([1, 3, 2, 4], device);
            let bound = Some(zeros([3, 4], device));
            hgrn2(logits.clone(), logits.clone(), logits, bound, None, None, &ScanOptions::default())
        });
    });
}

#[test]
fn elementwise_shapes_that_disagree() {
    on_every_device(|device| {
        let x = || zeros([2, 3, 4], device);
        refuses(&["`log_gate`", "[2, 3, 5]", "[2, 3, 4]"], || {
            elementwise_recurrence(x(), zeros([2, 3, 5], device), None, None, ScanForm::Auto)
        });
        refuses(&["`initial_state`", "[3, 4]", "[2, 4]"], || {
            elementwise_recurrence(x(), x(), Some(zeros([3, 4], device)), None, ScanForm::Auto)
        });
        refuses(&["cu_seqlens", "batch", "2"], || {
            let boundaries = Boundaries::new(&[0, 3], 3).unwrap();
            elementwise_recurrence(x(), x(), None, Some(&boundaries), ScanForm::Auto)
        });
    });
}

fn names_field<T: std::fmt::Debug>(field: &str, result: Result<T, InputError>) -> InputError {
    let error = result.expect_err("accepted");
    assert_eq!(error.field, field, "{error}");
    assert!(!error.got.is_empty() && !error.need.is_empty(), "{error:?}");
    error
}

#[test]
fn boundaries_that_bound_nothing() {
    for bad in
        [&[][..], &[0], &[1, 5], &[0, 4], &[0, 6], &[0, 3, 2, 5], &[0, 2, 2, 5], &[0, 0, 5], &[0, 5, 5]]
    {
        let error = names_field("cu_seqlens", Boundaries::new(bad, 5));
        assert!(error.got.contains(&format!("{bad:?}")), "{error}");
    }
    names_field("cu_seqlens", Boundaries::new(&[0], 0));
    on_every_device(|device| {
        for bad in [[0, -1, 5], [0, 6, 5], [1, 2, 5], [0, 2, 4]] {
            let tensor = Tensor::<1, Int>::from_data(bad, device);
            names_field("cu_seqlens", Boundaries::from_tensor(&tensor, 5));
        }
    });
}

#[test]
fn masks_without_a_real_token_or_of_another_shape() {
    on_every_device(|device| {
        let mask = Tensor::<2, Bool>::from_data([[true, true], [false, false]], device);
        let error = names_field("attention_mask", Packing::from_mask(&mask));
        assert!(error.got.contains('1'), "{error} does not name the row");
        let mask = Tensor::<2, Bool>::from_data([[true, true], [false, true]], device);
        let packing = Packing::from_mask(&mask).unwrap();
        refuses(&["`x`", "[2, 3]", "[2, 2]"], || packing.pack(zeros([2, 3, 4], device)));
        refuses(&["`x`", "[1, 4]", "[1, 3]"], || packing.unpack(zeros([1, 4, 4], device)));
    });
}

fn first_device() -> Device {
    devices::chosen_or_panic().remove(0).device
}

/// The configuration is refused, naming the field; `init` panics with the same text.
fn names_config_field<C: ModuleConfig>(field: &str, config: &C) -> ConfigError {
    let device = first_device();
    let Err(error) = config.try_init(&device) else { panic!("accepted a bad `{field}`") };
    assert_eq!(error.field, field, "{error}");
    refuses(&[&error.to_string(), field], || config.init(&device));
    error
}

fn layer() -> GatedLinearAttentionConfig {
    GatedLinearAttentionConfig::new(16)
}

fn model() -> GlaConfig {
    GlaConfig::new(11, 16, 2).with_intermediate_size(Some(24))
}

#[test]
fn layer_configurations() {
    let accepted = layer().try_init(&first_device());
    assert!(accepted.is_ok(), "the good configuration is refused");
    let bad: Vec<(&str, GatedLinearAttentionConfig)> = vec![
        ("hidden_size", GatedLinearAttentionConfig::new(0)),
        ("num_heads", layer().with_num_heads(0)),
        // 16 * 0.3 is no integer; 16 * 0.375 = 6 and 16 * 0.625 = 10 are not divisible by 4 heads.
        ("expand_k", layer().with_expand_k(0.3)),
        ("expand_k", layer().with_expand_k(0.375)),
        ("expand_k", layer().with_expand_k(0.0)),
        ("expand_k", layer().with_expand_k(-1.0)),
        ("expand_k", layer().with_expand_k(f64::NAN)),
        ("expand_v", layer().with_expand_v(0.3)),
        ("expand_v", layer().with_expand_v(0.625)),
        ("num_kv_heads", layer().with_num_kv_heads(Some(3))),
        ("num_kv_heads", layer().with_num_kv_heads(Some(8))),
        ("num_kv_heads", layer().with_num_kv_heads(Some(0))),
        ("chunk_size", layer().with_chunk_size(24)),
        ("chunk_size", layer().with_chunk_size(8)),
        ("chunk_size", layer().with_chunk_size(0)),
        ("sub_chunk_size", layer().with_sub_chunk_size(0)),
        ("gate_logit_normalizer", layer().with_gate_logit_normalizer(0.0)),
        ("gate_logit_normalizer", layer().with_gate_logit_normalizer(-16.0)),
        ("gate_logit_normalizer", layer().with_gate_logit_normalizer(f64::NAN)),
        ("clamp_min", layer().with_clamp_min(Some(0.1))),
        ("clamp_min", layer().with_clamp_min(Some(f64::NAN))),
        ("gate_low_rank_dim", layer().with_gate_low_rank_dim(0)),
        ("norm_eps", layer().with_norm_eps(0.0)),
        ("conv_size", layer().with_use_short_conv(true).with_conv_size(0)),
        ("gate_fn", layer().with_gate_fn("swoosh".into())),
        ("feature_map", layer().with_feature_map(Some("swoosh".into()))),
    ];
    for (field, config) in bad {
        names_config_field(field, &config);
    }
    let error = names_config_field("gate_fn", &layer().with_gate_fn("swoosh".into()));
    assert!(error.got.contains("swoosh") && error.need.contains("sigmoid"), "{error}");
}

#[test]
fn model_configurations() {
    assert!(model().try_init(&first_device()).is_ok(), "the good configuration is refused");
    let bad: Vec<(&str, GlaConfig)> = vec![
        ("vocab_size", GlaConfig::new(0, 16, 2)),
        ("num_hidden_layers", GlaConfig::new(11, 16, 0)),
        ("intermediate_size", model().with_intermediate_size(Some(0))),
        ("hidden_ratio", model().with_intermediate_size(None).with_hidden_ratio(-1.0)),
        ("norm_eps", model().with_norm_eps(-1e-6)),
        ("num_heads", model().with_num_heads(0)),
        ("expand_k", model().with_num_heads(3)),
        ("gate_fn", model().with_gate_fn(String::new())),
        ("gate_logit_normalizer", model().with_gate_logit_normalizer(0.0)),
    ];
    for (field, config) in bad {
        names_config_field(field, &config);
    }
}

#[test]
fn published_configurations() {
    let good = r#"{"model_type": "gla", "vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2}"#;
    let read = |field: &str, value: &str| {
        let mut json: serde_json::Value = serde_json::from_str(good).unwrap();
        json[field] = serde_json::from_str(value).unwrap();
        GlaConfig::from_published(&json)
    };
    assert!(read("num_heads", "4").is_ok());
    for (field, value) in [
        ("model_type", "\"mamba\""),
        ("model_type", "null"),
        ("architectures", "[\"MambaForCausalLM\"]"),
        ("hidden_act", "\"gelu\""),
        ("attn", "{\"layers\": [1]}"),
        ("num_heads", "\"four\""),
        ("num_heads", "-4"),
        ("use_short_conv", "1"),
    ] {
        let error = read(field, value).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn masks_of_a_model() {
    on_every_device(|device| {
        let model = model().init(device);
        let ids = || Tensor::<2, Int>::zeros([2, 3], device);
        let mask = Tensor::<2, Bool>::from_data([[true, true, true, true], [true, true, true, true]], device);
        refuses(&["`attention_mask`", "[2, 4]", "[2, 3]"], || model.forward(ids(), Some(mask)));
        let mask = Tensor::<2, Bool>::from_data([[true, true, true]], device);
        refuses(&["`attention_mask`", "[1, 3]", "[2, 3]"], || model.forward(ids(), Some(mask)));
        let mask = Tensor::<2, Bool>::from_data([[true, true, true], [false, false, false]], device);
        refuses(&["`attention_mask`", "row 1"], || model.forward(ids(), Some(mask)));
    });
}

#[test]
fn token_ids_out_of_range() {
    on_every_device(|device| {
        let model = model().init(device);
        for bad in [11, 12, -1] {
            let ids = Tensor::<2, Int>::from_data([[1, 2, 3], [4, bad, 6]], device);
            let error = names_field("input_ids", model.check_ids(&ids));
            assert!(error.got.contains(&bad.to_string()) && error.got.contains("[1, 1]"), "{error}");
            let needles = ["`input_ids`", &bad.to_string(), "11"];
            refuses_value(&needles, || model.forward(ids.clone(), None));
            refuses_value(&needles, || model.prefill(ids.clone(), model.empty_state(2, device)));
            let token = Tensor::<1, Int>::from_data([4, bad], device);
            refuses_value(&needles, || model.step(token, model.empty_state(2, device)));
        }
        assert!(model.check_ids(&Tensor::from_data([[0, 10]], device)).is_ok());
    });
}

#[test]
fn sequences_without_a_token() {
    on_every_device(|device| {
        let model = model().init(device);
        let ids = || Tensor::<2, Int>::zeros([1, 0], device);
        refuses(&["`input_ids`", "[1, 0]"], || model.forward(ids(), None));
        refuses(&["`input_ids`", "[1, 0]"], || model.prefill(ids(), model.empty_state(1, device)));
        let layer = layer().init(device);
        refuses(&["`x`", "[1, 0, 16]"], || layer.forward_with_state(zeros([1, 0, 16], device), None, None));
    });
}

#[test]
fn labels_that_leave_nothing_to_learn() {
    on_every_device(|device| {
        let model = model().init(device);
        let logits = || zeros([2, 3, 11], device);
        let loss = |labels: [[i64; 3]; 2]| model.loss(logits(), Tensor::from_data(labels, device));
        // The first label of a row has no position that predicts it.
        names_field("labels", loss([[-100, -100, -100], [5, -100, -100]]));
        for bad in [11, -1, -101] {
            let error = names_field("labels", loss([[1, 2, 3], [1, 2, bad]]));
            assert!(error.got.contains(&bad.to_string()), "{error}");
        }
        names_field("labels", model.loss(zeros([2, 1, 11], device), Tensor::from_data([[1], [2]], device)));
        let one = loss([[-100, 3, -100], [5, -100, -100]]).unwrap().into_scalar::<f32>();
        assert!(
            (f64::from(one) - 11.0_f64.ln()).abs() < 1e-5,
            "the loss of equal logits is ln 11, got {one}"
        );
        refuses(&["[2, 3]", "[2, 2]"], || {
            model.loss(logits(), Tensor::from_data([[1_i64, 2], [1, 2]], device)).unwrap()
        });
    });
}

#[test]
fn widths_that_a_layer_does_not_have() {
    on_every_device(|device| {
        let layer = layer().init(device);
        refuses(&["15", "16"], || layer.forward_with_state(zeros([1, 3, 15], device), None, None));
        let mask = Tensor::<2, Bool>::from_data([[true, true], [false, true]], device);
        let packing = Packing::from_mask(&mask).unwrap();
        refuses(&["[2, 3]", "[2, 2]"], || {
            layer.forward_with_state(zeros([2, 3, 16], device), Some(&packing), None)
        });
    });
}

/// `model` refuses `state` for a batch of 2 in every way a state can be handed to it.
fn refuses_state(model: &GlaForCausalLm, state: &GlaState, field: &str, needles: &[&str], device: &Device) {
    let error = names_field(field, model.check_state(state, 2));
    for needle in needles {
        assert!(error.to_string().contains(needle), "{error} does not name {needle}");
    }
    let ids = Tensor::<2, Int>::zeros([2, 3], device);
    refuses(&["state"], || model.prefill(ids, state.clone()));
    let token = Tensor::<1, Int>::zeros([2], device);
    refuses(&["state"], || model.step(token, state.clone()));
}

#[test]
fn states_of_another_model() {
    on_every_device(|device| {
        let this = model().init(device);
        assert!(this.check_state(&this.empty_state(2, device), 2).is_ok());
        let state = |config: GlaConfig, batch| config.init(device).empty_state(batch, device);
        let refuse = |state: GlaState, field: &str, needles: &[&str]| {
            refuses_state(&this, &state, field, needles, device);
        };
        let (recurrent, need) = ("state.layers.0.recurrent", "[2, 4, 2, 4]");
        refuse(state(model(), 3), recurrent, &["[3, 4, 2, 4]", need]);
        refuse(state(model().with_num_heads(2), 2), recurrent, &["[2, 2, 4, 8]", need]);
        refuse(state(model().with_expand_k(1.0), 2), recurrent, &["[2, 4, 4, 4]", need]);
        let mut layers = this.empty_state(2, device);
        layers.layers.pop();
        refuse(layers, "state", &["1 layers", "2 layers"]);

        // A state with convolution windows for a layer without convolutions, and the reverse.
        let convolutions = || model().with_use_short_conv(true);
        refuse(state(convolutions(), 2), "state.layers.0.windows", &[]);
        let with_convolutions = convolutions().init(device);
        let plain = this.empty_state(2, device);
        refuses_state(&with_convolutions, &plain, "state.layers.0.windows", &[], device);
        let wider = state(convolutions().with_conv_size(3), 2);
        let field = "state.layers.0.windows.q";
        refuses_state(&with_convolutions, &wider, field, &["[2, 2, 8]", "[2, 3, 8]"], device);
    });
}

/// The arguments of a selective scan, all of shapes that fit: B 2, T 3, 4 channels, N 5.
struct SelectiveArguments {
    u: Tensor<3>,
    delta: Tensor<3>,
    a: Tensor<2>,
    b: Tensor<3>,
    c: Tensor<3>,
    d: Tensor<1>,
    z: Tensor<3>,
    initial_state: Tensor<3>,
    boundaries: Option<Boundaries>,
    discretisation: Discretisation,
}

/// Every form refuses what `edit` makes of good arguments.
fn selective_scan_refuses(edit: impl Fn(&mut SelectiveArguments, &Device) -> Vec<String>) {
    on_every_device(|device| {
        for form in [ScanForm::Auto, ScanForm::Portable, ScanForm::Recurrent] {
            let mut x = SelectiveArguments {
                u: zeros([2, 3, 4], device),
                delta: zeros([2, 3, 4], device),
                a: Tensor::full([4, 5], -1.0, device),
                b: zeros([2, 3, 5], device),
                c: zeros([2, 3, 5], device),
                d: zeros([4], device),
                z: zeros([2, 3, 4], device),
                initial_state: zeros([2, 4, 5], device),
                boundaries: None,
                discretisation: Discretisation::Euler,
            };
            let run = |x: SelectiveArguments| {
                let options = SelectiveOptions { discretisation: x.discretisation, form };
                let (d, z, state) = (Some(x.d), Some(x.z), Some(x.initial_state));
                selective_scan(x.u, x.delta, x.a, x.b, x.c, d, z, state, x.boundaries.as_ref(), &options)
            };
            let needles = edit(&mut x, device);
            match &needles[..] {
                [] => drop(run(x)),
                needles => refuses(&needles.iter().map(String::as_str).collect::<Vec<_>>(), || run(x)),
            }
        }
    });
}

#[test]
fn selective_scans_with_what_does_not_fit() {
    fn named(needles: &[&str]) -> Vec<String> {
        needles.iter().map(|needle| (*needle).to_owned()).collect()
    }
    selective_scan_refuses(|_, _| vec![]);
    selective_scan_refuses(|x, device| {
        x.delta = zeros([2, 3, 5], device);
        named(&["`delta`", "[2, 3, 5]", "[2, 3, 4]"])
    });
    selective_scan_refuses(|x, device| {
        x.a = zeros([3, 5], device);
        named(&["`a`", "[3, 5]", "[4, 5]"])
    });
    selective_scan_refuses(|x, device| {
        x.b = zeros([2, 3, 4], device);
        named(&["`b`", "[2, 3, 4]", "[2, 3, 5]"])
    });
    selective_scan_refuses(|x, device| {
        x.c = zeros([2, 2, 5], device);
        named(&["`c`", "[2, 2, 5]", "[2, 3, 5]"])
    });
    selective_scan_refuses(|x, device| {
        x.d = zeros([5], device);
        named(&["`d`", "[5]", "[4]"])
    });
    selective_scan_refuses(|x, device| {
        x.z = zeros([2, 3, 5], device);
        named(&["`z`", "[2, 3, 5]", "[2, 3, 4]"])
    });
    selective_scan_refuses(|x, device| {
        x.initial_state = zeros([1, 4, 5], device);
        named(&["`initial_state`", "[1, 4, 5]", "[2, 4, 5]"])
    });
    selective_scan_refuses(|x, device| {
        x.u = zeros([2, 0, 4], device);
        named(&["`u`", "[2, 0, 4]"])
    });
    selective_scan_refuses(|x, _| {
        x.boundaries = Some(Boundaries::new(&[0, 3], 3).unwrap());
        named(&["cu_seqlens", "batch", "2"])
    });
    if cfg!(debug_assertions) {
        selective_scan_refuses(|x, device| {
            x.delta = Tensor::full([2, 3, 4], -0.5, device);
            named(&["`delta`", "-0.5"])
        });
        selective_scan_refuses(|x, device| {
            x.a = Tensor::full([4, 5], 0.5, device);
            named(&["`a`", "0.5"])
        });
        selective_scan_refuses(|x, device| {
            x.discretisation = Discretisation::ZeroOrderHold;
            x.a = Tensor::from_data([[-1.0, -1.0, -1.0, -1.0, -2.0]; 4], device);
            named(&["`a", "one value a channel"])
        });
    }
    on_every_device(|device| {
        refuses(&["`state`", "[2, 5, 4]", "[2, 4, 5]"], || {
            let (u, b) = (zeros::<2>([2, 4], device), zeros::<2>([2, 5], device));
            let (a, state) = (zeros([4, 5], device), zeros([2, 5, 4], device));
            selective_scan_step(u.clone(), u, a, b.clone(), b, None, None, state, Discretisation::Euler)
        });
    });
}

#[test]
fn nan_passes_through_a_selective_scan() {
    selective_scan_refuses(|x, device| {
        x.delta = Tensor::full([2, 3, 4], f32::NAN, device);
        vec![]
    });
}
