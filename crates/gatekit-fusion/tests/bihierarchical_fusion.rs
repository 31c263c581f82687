//! Bidirectional hierarchical fusion: what the golden cases do not ask.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

use std::panic::catch_unwind;

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_fusion::bihierarchical_fusion::loss::{class_loss, quantity_loss, residue_loss};
use gatekit_fusion::bihierarchical_fusion::{
    BiHierarchicalConfig, Fusion, FusionKind, GlobalFusionConfig, GlobalLayout, LateFusion,
    LocalFusionConfig, ResidueGraph, SequenceLayer, SerialFusion,
};

const KINDS: [(FusionKind, GlobalLayout); 3] = [
    (FusionKind::Local, GlobalLayout::Tokens),
    (FusionKind::Global, GlobalLayout::Tokens),
    (FusionKind::Global, GlobalLayout::Channels),
];

#[allow(deprecated)] // NdArray is one of the devices that are tested.
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "value {index}: {got}, want {want}");
    }
}

/// Numbers without a pattern a layer could hide in.
fn wave<const D: usize>(shape: [usize; D], phase: f64, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f64> = (0..count).map(|index| (1.7 * index as f64 + phase).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn config(kind: FusionKind, layout: GlobalLayout) -> BiHierarchicalConfig {
    BiHierarchicalConfig::new(8, 2)
        .with_structure_dim(6)
        .with_fusion_dim(4)
        .with_fusion(kind)
        .with_layout(layout)
        .with_num_heads(2)
        .with_sequence_heads(2)
        .with_radial_basis(3)
        .with_levels(2)
}

/// Lengths of proteins to a mask `[B, longest]`.
fn mask(lengths: &[usize], residues: usize, device: &Device) -> Tensor<2, Bool> {
    let present: Vec<bool> =
        lengths.iter().flat_map(|&length| (0..residues).map(move |at| at < length)).collect();
    Tensor::from_data(TensorData::new(present, [lengths.len(), residues]), device)
}

/// A chain along a bent line: neighbours are near.
fn graph(lengths: &[usize], residues: usize, device: &Device) -> ResidueGraph {
    let place = |at: usize| [3.0 * at as f64, (at as f64).sin(), 0.1 * (at * at) as f64];
    let places: Vec<f64> = lengths.iter().flat_map(|_| (0..residues).flat_map(place)).collect();
    let places = Tensor::from_data(TensorData::new(places, [lengths.len(), residues, 3]), device);
    ResidueGraph::nearest(mask(lengths, residues, device), places, 3, 7.0).expect("a graph")
}

/// A feedback that is not 0, so that levels hear of one another.
fn loud(linear: &Linear, phase: f64) -> Linear {
    let [from, to] = linear.weight.dims();
    let device = linear.weight.device();
    Linear { weight: Param::from_tensor(wave([from, to], phase, &device) * 0.3), bias: linear.bias.clone() }
}

#[test]
fn branches_start_as_they_were() {
    for device in devices() {
        let lengths = mask(&[5, 3], 5, &device);
        let (s, x) = (wave([2, 5, 8], 0.1, &device), wave([2, 5, 6], 0.7, &device));
        for (kind, layout) in KINDS {
            let fused = config(kind, layout).fusion(&device).expect("a fusion").forward(
                s.clone(),
                x.clone(),
                &lengths,
            );
            for (got, was) in [(fused.sequence, s.clone()), (fused.structure, x.clone())] {
                let width = was.dims()[2];
                let (got, was) = (values(got), values(was));
                assert_eq!(got[..8 * width], was[..8 * width]);
                assert!(got[8 * width..].iter().all(|value| *value == 0.0));
            }
            let fused = values(fused.fused);
            assert!(fused[..32].iter().all(|value| *value != 0.0) && fused[32..].iter().all(|v| *v == 0.0));
            assert_eq!(fused.len(), 40);
            assert_eq!(fused_gates(&config(kind, layout), &device), kind == FusionKind::Local);
        }
    }
}

fn fused_gates(config: &BiHierarchicalConfig, device: &Device) -> bool {
    let model = config.init(device);
    let output =
        model.forward(wave([1, 3, 8], 0.1, device), wave([1, 3, 6], 0.2, device), &graph(&[3], 3, device));
    assert!(output.gates.is_empty() || output.gates.len() == 2);
    for gate in &output.gates {
        let gate = values(gate.clone());
        assert!(gate.chunks(2).all(|pair| (pair[0] + pair[1] - 1.0).abs() < 1e-6), "{gate:?}");
    }
    !output.gates.is_empty()
}

#[test]
fn a_decided_vote_leaves_one_branch() {
    for device in devices() {
        for (winner, votes) in [[60.0, 0.0], [0.0, 60.0]].into_iter().enumerate() {
            let mut fusion =
                LocalFusionConfig::new(8, 6).with_fusion_dim(4).with_shared_votes(winner == 0).init(&device);
            fusion.gate.votes[0].fc2.bias = Some(Param::from_data(votes, &device));
            let (s, x) = (wave([1, 4, 8], 0.3, &device), wave([1, 4, 6], 0.9, &device));
            let want = match winner {
                0 => fusion.sequence_proj.forward(s.clone()),
                _ => fusion.structure_proj.forward(x.clone()),
            };
            let fused = fusion.forward(s, x, &mask(&[4], 4, &device));
            assert_close(&values(fused.fused), &values(want));
            let gates = values(fused.gates.expect("votes"));
            assert!(gates.chunks(2).all(|pair| pair[winner] > 0.999 && pair[1 - winner] < 1e-3));
        }
    }
}

#[test]
fn what_stands_where_no_residue_is_does_not_matter() {
    for device in devices() {
        let graph = graph(&[5, 2, 0], 5, &device);
        let here = graph.mask.clone().unsqueeze_dim::<3>(2);
        let absent = |x: Tensor<3>, with: f32| {
            let dims = x.dims();
            x.mask_fill(here.clone().bool_not().expand(dims), with)
        };
        let (s, x) = (wave([3, 5, 8], 0.1, &device), wave([3, 5, 6], 0.7, &device));
        let autodiff = device.clone().autodiff();
        for (kind, layout) in KINDS {
            let config = config(kind, layout);
            let model = config.init(&device).materialize().train();
            let serial = SerialFusion::new(&config, &device).expect("a model");
            let late = LateFusion::new(&config, &device).expect("a model");
            let results = [0.0, 3.0, f32::NAN].map(|with| {
                let inputs = (absent(s.clone(), with), absent(x.clone(), with));
                let baselines = [
                    serial.forward(inputs.0.clone(), inputs.1.clone(), &graph),
                    late.forward(inputs.0.clone(), inputs.1.clone(), &graph),
                ];
                let lift = |x: Tensor<3>| Tensor::<3>::from_data(x.into_data(), &autodiff);
                let lifted = ResidueGraph {
                    mask: Tensor::from_data(graph.mask.to_data(), &autodiff),
                    sources: Tensor::from_data(graph.sources.to_data(), &autodiff),
                    targets: Tensor::from_data(graph.targets.to_data(), &autodiff),
                    distances: Tensor::from_data(graph.distances.to_data(), &autodiff),
                };
                let output = model.forward(lift(inputs.0), lift(inputs.1), &lifted);
                let loss = output.logits.clone().square().sum() + output.residues.clone().square().sum();
                let gradients = GradientsParams::from_grads(loss.backward(), &model);
                let level = &model.levels[0];
                let first = gradients.get::<2>(level.sequence.fc1.weight.id).expect("a gradient");
                let second = gradients.get::<2>(level.structure.message1.weight.id).expect("a gradient");
                let [serial, late] = baselines;
                [
                    values(output.residues),
                    values(output.pooled),
                    values(output.logits),
                    values(serial),
                    values(late),
                    values(first),
                    values(second),
                ]
            });
            assert!(results[0].iter().flatten().all(|value| value.is_finite()));
            for other in &results[1..] {
                for (got, want) in other.iter().zip(&results[0]) {
                    assert_close(got, want);
                }
            }
            // The second protein ends after 2 residues, the third has none.
            for features in [&results[0][0], &results[0][3], &results[0][4]] {
                assert!(features[7 * 4..].iter().all(|value| *value == 0.0));
                assert!(features[..7 * 4].iter().any(|value| *value != 0.0));
            }
            let pooled = &results[0][1];
            assert!(pooled[8..].iter().all(|value| *value == 0.0));
            let mean: f64 = results[0][0][5 * 4..7 * 4].iter().step_by(4).sum::<f64>() / 2.0;
            assert!((pooled[4] - mean).abs() < 1e-6);
        }
    }
}

#[test]
fn proteins_of_a_batch_do_not_hear_of_one_another() {
    let device = Device::flex();
    for (kind, layout) in KINDS {
        let mut model = config(kind, layout).init(&device);
        for (index, level) in model.levels.iter_mut().enumerate() {
            let phase = index as f64;
            match &mut level.fusion {
                Fusion::Local(fusion) => {
                    fusion.to_sequence = loud(&fusion.to_sequence, phase);
                    fusion.to_structure = loud(&fusion.to_structure, phase + 0.5);
                }
                Fusion::Global(fusion) => {
                    fusion.to_sequence = loud(&fusion.to_sequence, phase);
                    fusion.to_structure = loud(&fusion.to_structure, phase + 0.5);
                }
            }
        }
        let (s, x) = (wave([2, 6, 8], 0.2, &device), wave([2, 6, 6], 0.4, &device));
        let both = model.forward(s.clone(), x.clone(), &graph(&[6, 4], 6, &device));
        let alone = model.forward(
            s.narrow(0, 1, 1).narrow(1, 0, 4),
            x.narrow(0, 1, 1).narrow(1, 0, 4),
            &graph(&[4], 4, &device),
        );
        assert_close(&values(both.residues.narrow(0, 1, 1).narrow(1, 0, 4)), &values(alone.residues));
        assert_close(&values(both.logits.narrow(0, 1, 1)), &values(alone.logits));
    }
}

#[test]
fn feedback_reaches_both_branches() {
    let device = Device::flex();
    let graph = graph(&[4], 4, &device);
    let (s, x) = (wave([1, 4, 8], 0.2, &device), wave([1, 4, 6], 0.4, &device));
    for (kind, layout) in KINDS {
        let model = config(kind, layout).init(&device);
        // With one branch's feedback alone, the other branch's input still moves what leaves the second level.
        let Fusion::Local(last) = &mut config(FusionKind::Local, layout).fusion(&device).expect("votes")
        else {
            panic!("a fusion by votes");
        };
        for (branch, votes) in [[60.0, 0.0], [0.0, 60.0]].into_iter().enumerate() {
            let mut model = model.clone();
            match &mut model.levels[0].fusion {
                Fusion::Local(first) if branch == 0 => first.to_sequence = loud(&first.to_sequence, 0.3),
                Fusion::Local(first) => first.to_structure = loud(&first.to_structure, 0.3),
                Fusion::Global(first) if branch == 0 => first.to_sequence = loud(&first.to_sequence, 0.3),
                Fusion::Global(first) => first.to_structure = loud(&first.to_structure, 0.3),
            }
            let quiet = config(kind, layout).init(&device);
            last.gate.votes[0].fc2.bias = Some(Param::from_data(votes, &device));
            for (model, heard) in [(model, true), (quiet, false)] {
                let mut model = model;
                model.levels[1].fusion = Fusion::Local(last.clone());
                let run = |s: Tensor<3>, x: Tensor<3>| values(model.forward(s, x, &graph).residues);
                let plain = run(s.clone(), x.clone());
                let other = match branch {
                    0 => run(s.clone(), x.clone() * 1.5),
                    _ => run(s.clone() * 1.5 + 0.3 * wave([1, 4, 8], 2.0, &device), x.clone()),
                };
                let moved = plain.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert_eq!(moved > 1e-3, heard, "{kind:?} {layout:?}, branch {branch}: {moved}");
            }
        }
    }
}

#[test]
fn a_single_residue_without_edges_is_a_protein() {
    for device in devices() {
        let edges = Tensor::<2, Int>::from_data(TensorData::new(Vec::<i64>::new(), [0, 2]), &device);
        let distances = Tensor::<1>::from_data(TensorData::new(Vec::<f32>::new(), [0]), &device);
        let graph = ResidueGraph::new(mask(&[1], 1, &device), edges, distances).expect("no edge is legal");
        for (kind, layout) in KINDS {
            let model = config(kind, layout).init(&device);
            let output = model.forward(wave([1, 1, 8], 0.2, &device), wave([1, 1, 6], 0.4, &device), &graph);
            assert_close(&values(output.pooled.clone()), &values(output.residues.clone()));
            assert_close(&values(model.residue_logits(output.residues)), &values(output.logits));
        }
    }
}

#[test]
fn baselines_join_where_they_say() {
    let device = Device::flex();
    let config = config(FusionKind::Local, GlobalLayout::Tokens);
    let graph = graph(&[5], 5, &device);
    let (s, x) = (wave([1, 5, 8], 0.2, &device), wave([1, 5, 6], 0.4, &device));
    let serial = SerialFusion::new(&config, &device).expect("a model");
    let between = Linear {
        weight: Param::from_tensor(serial.between.weight.val().zeros_like()),
        bias: Some(Param::from_tensor(Tensor::zeros([6], &device))),
    };
    let deaf = SerialFusion { between, ..serial.clone() };
    let run = |model: &SerialFusion, s: Tensor<3>| values(model.forward(s, x.clone(), &graph));
    assert_close(&run(&deaf, s.clone()), &run(&deaf, s.clone().sin()));
    assert_ne!(run(&serial, s.clone()), run(&serial, s.clone().sin()));

    let late = LateFusion::new(&config, &device).expect("a model");
    let weight = late.project.weight.val();
    let bias = late.project.bias.clone();
    let run = |project: &Linear, s: Tensor<3>, x: Tensor<3>| {
        let model = LateFusion { project: project.clone(), ..late.clone() };
        values(model.forward(s, x, &graph))
    };
    // The first rows of the projection are those of the sequence.
    let rows = Tensor::cat(vec![weight.clone().narrow(0, 0, 8), weight.clone().narrow(0, 8, 6) * 0.0], 0);
    let of_sequence = Linear { weight: Param::from_tensor(rows), bias };
    assert_close(&run(&of_sequence, s.clone(), x.clone()), &run(&of_sequence, s.clone(), x.clone().sin()));
    assert_ne!(run(&of_sequence, s.clone(), x.clone()), run(&of_sequence, s.sin(), x));
}

/// A branch of somebody else's.
#[derive(Module, Debug)]
struct Foreign {
    linear: Linear,
}

impl SequenceLayer for Foreign {
    fn forward(&self, s: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3> {
        let dims = s.dims();
        self.linear.forward(s).mask_fill(mask.clone().bool_not().unsqueeze_dim::<3>(2).expand(dims), 0.0)
    }
}

#[test]
fn other_branches_fit_where_their_number_is_right() {
    let device = Device::flex();
    let config = config(FusionKind::Local, GlobalLayout::Tokens);
    let foreign =
        |count| (0..count).map(|_| Foreign { linear: LinearConfig::new(8, 8).init(&device) }).collect();
    let own = |count| (0..count).map(|_| config.structure_layer(&device).expect("a layer")).collect();
    let model = config.with_branches::<Foreign, _>(foreign(2), own(2), &device).expect("an encoder");
    let output =
        model.forward(wave([1, 3, 8], 0.1, &device), wave([1, 3, 6], 0.2, &device), &graph(&[3], 3, &device));
    assert_eq!(output.residues.dims(), [1, 3, 4]);
    for (sequence, structure) in [(1, 2), (2, 3)] {
        let error = config.with_branches::<Foreign, _>(foreign(sequence), own(structure), &device);
        assert_eq!(error.expect_err("refused").field, "levels");
    }
}

#[test]
fn configurations_that_make_no_model_are_refused() {
    let device = Device::flex();
    let base = |kind| config(kind, GlobalLayout::Tokens);
    let refused = |config: BiHierarchicalConfig| config.try_init(&device).expect_err("refused").field;
    let local = || base(FusionKind::Local);
    let global = || base(FusionKind::Global);
    assert_eq!(refused(global().with_num_heads(3)), "num_heads");
    assert_eq!(refused(global().with_num_heads(0)), "num_heads");
    // 8 divides 2C alone.
    assert_eq!(refused(global().with_num_heads(8)), "num_heads");
    assert!(global().with_num_heads(8).with_layout(GlobalLayout::Channels).try_init(&device).is_ok());
    assert_eq!(refused(global().with_num_heads(3).with_layout(GlobalLayout::Channels)), "num_heads");
    assert_eq!(refused(local().with_sequence_heads(3)), "sequence_heads");
    assert_eq!(refused(local().with_sequence_heads(0)), "sequence_heads");
    assert_eq!(refused(local().with_levels(0)), "levels");
    assert_eq!(refused(local().with_structure_dim(0)), "structure_dim");
    assert_eq!(refused(local().with_fusion_dim(0)), "fusion_dim");
    assert_eq!(refused(local().with_vote_hidden(Some(0))), "vote_hidden");
    assert_eq!(refused(local().with_radial_basis(0)), "radial_basis");
    for cutoff in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(refused(local().with_cutoff(cutoff)), "cutoff");
    }
    let narrow = BiHierarchicalConfig { sequence_dim: 0, ..local() };
    assert_eq!(refused(narrow), "sequence_dim");
    assert_eq!(refused(BiHierarchicalConfig { output_dim: 0, ..local() }), "output_dim");
    assert_eq!(LocalFusionConfig::new(8, 0).try_init(&device).expect_err("refused").field, "structure_dim");
    assert_eq!(GlobalFusionConfig::new(0, 8).try_init(&device).expect_err("refused").field, "sequence_dim");
    assert_eq!(SerialFusion::new(&local().with_levels(0), &device).expect_err("refused").field, "levels");
    assert_eq!(LateFusion::new(&local().with_cutoff(0.0), &device).expect_err("refused").field, "cutoff");
}

#[test]
fn edges_that_cannot_be_are_named() {
    let device = Device::flex();
    let build = |edges: &[[i64; 2]], distances: &[f32]| {
        let edges = Tensor::<2, Int>::from_data(TensorData::new(edges.concat(), [edges.len(), 2]), &device);
        ResidueGraph::new(mask(&[4, 2], 4, &device), edges, Tensor::from_data(distances, &device))
    };
    assert!(build(&[[0, 1], [5, 4]], &[3.8, 0.0]).is_ok());
    for (edge, word) in [
        ([0, 8], "residues in 0 .. 8"),
        ([-1, 0], "residues in 0 .. 8"),
        ([3, 4], "one protein"),
        ([4, 6], "that are there"),
    ] {
        let error = build(&[[0, 1], edge], &[3.8, 3.8]).expect_err("refused");
        assert_eq!(error.field, "edges");
        let text = error.to_string();
        assert!(text.contains("edge 1") && text.contains(word), "{text}");
    }
    for distance in [-0.1, f32::NAN, f32::INFINITY] {
        let error = build(&[[0, 1], [1, 2]], &[1.0, distance]).expect_err("refused");
        assert_eq!(error.field, "distances");
        assert!(error.to_string().contains("edge 1"), "{error}");
    }
    let error = build(&[[0, 1], [1, 2]], &[1.0]).expect_err("refused").to_string();
    assert!(error.contains("`distances`") && error.contains("[1]") && error.contains("[2]"), "{error}");
}

#[test]
fn the_nearest_residues_are_found() {
    for device in devices() {
        // On a line: 0, 1, 2, 5; a second protein of two, and a place without a residue that is no number.
        let places = [0.0, 1.0, 2.0, 5.0, 0.0, 1.0, f64::NAN, f64::NAN];
        let places: Vec<f64> = places.iter().flat_map(|&x| [x, 0.0, 0.0]).collect();
        let places = Tensor::<3>::from_data(TensorData::new(places, [2, 4, 3]), (&device, DType::F32));
        let edges = |neighbours, cutoff| {
            let graph = ResidueGraph::nearest(mask(&[4, 2], 4, &device), places.clone(), neighbours, cutoff)
                .expect("a graph");
            let ids = |ids: Tensor<1, Int>| ids.into_data().iter::<i64>().collect::<Vec<_>>();
            let ends: Vec<_> = ids(graph.sources).into_iter().zip(ids(graph.targets)).collect();
            (ends, values(graph.distances))
        };
        let (ends, distances) = edges(2, 3.5);
        // 1 and 2 are equally near to neither; of 1's neighbours 0 and 2, both at 1, 0 comes first.
        assert_eq!(ends, [(1, 0), (2, 0), (0, 1), (2, 1), (1, 2), (0, 2), (2, 3), (5, 4), (4, 5)]);
        assert_close(&distances, &[1.0, 2.0, 1.0, 1.0, 1.0, 2.0, 3.0, 1.0, 1.0]);
        let (ends, _) = edges(1, 3.5);
        assert_eq!(ends, [(1, 0), (0, 1), (1, 2), (2, 3), (5, 4), (4, 5)]);
        assert_eq!(edges(3, 0.5).0, []);
        let nearest = |mask, places: Tensor<3>, cutoff| {
            ResidueGraph::nearest(mask, places, 2, cutoff).expect_err("refused")
        };
        let lost = nearest(mask(&[4, 3], 4, &device), places.clone(), 1.0);
        assert!(lost.field == "positions" && lost.got.contains("residue 2 of protein 1"), "{lost}");
        assert_eq!(nearest(mask(&[4], 4, &device), places.clone(), 1.0).field, "positions");
        assert_eq!(nearest(mask(&[4, 2], 4, &device), places.clone(), 0.0).field, "cutoff");
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    fn panics(words: &[&str], run: impl FnOnce() + std::panic::UnwindSafe) {
        let panic = catch_unwind(run).expect_err("refused");
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    let device = Device::flex();
    let shapes = ["`sequence`", "`structure`", "`mask`", "[2, 4, 8]"];
    for (kind, layout) in KINDS {
        let run = |structure: [usize; 3], lengths: [usize; 2], residues: usize| {
            let device = device.clone();
            move || {
                let fusion = config(kind, layout).fusion(&device).expect("a fusion");
                let x = wave(structure, 0.0, &device);
                fusion.forward(wave([2, 4, 8], 0.0, &device), x, &mask(&lengths, residues, &device));
            }
        };
        panics(&[shapes[0], shapes[1], shapes[3], "[2, 5, 6]"], run([2, 5, 6], [4, 4], 4));
        panics(&[shapes[0], shapes[2], shapes[3], "[2, 5]"], run([2, 4, 6], [4, 4], 5));
    }
    let graph = graph(&[4, 4], 4, &device);
    panics(&["BiHierarchicalEncoder", shapes[3], "[1, 4, 6]"], move || {
        let model = config(FusionKind::Local, GlobalLayout::Tokens).init(&Device::flex());
        model.forward(wave([2, 4, 8], 0.0, &Device::flex()), wave([1, 4, 6], 0.0, &Device::flex()), &graph);
    });
    panics(&["residue_loss", "[1, 3, 2]", "[1, 2, 2]"], || {
        let device = Device::flex();
        residue_loss(wave([1, 3, 2], 0.0, &device), wave([1, 2, 2], 0.0, &device), &mask(&[3], 3, &device));
    });
}

#[test]
fn losses_are_means_over_what_is_there() {
    for device in devices() {
        let tensor =
            |values: [f32; 6]| Tensor::<3>::from_data(TensorData::new(values.to_vec(), [1, 3, 2]), &device);
        let (logits, labels) =
            (tensor([0.0, 2.0, -1.0, 50.0, f32::NAN, 1.0]), tensor([1.0, 0.0, 0.25, 1.0, 1.0, f32::NAN]));
        let loss = residue_loss(logits.clone(), labels.clone(), &mask(&[2], 3, &device));
        let softplus = |z: f64| z.exp().ln_1p();
        let want = [2f64.ln(), softplus(2.0), softplus(-1.0) + 0.25, 0.0];
        assert_close(&values(loss), &[want.iter().sum::<f64>() / 4.0]);
        assert_eq!(values(residue_loss(logits, labels, &mask(&[0], 3, &device))), [0.0]);

        let logits = Tensor::<2>::from_data([[1.0, 2.0], [0.0, 0.0]], &device);
        let labels = |labels: [i64; 2]| Tensor::<1, Int>::from_data(labels, &device);
        let want = (softplus(1.0) + 2f64.ln()) / 2.0;
        assert_close(&values(class_loss(logits.clone(), labels([0, 1])).expect("classes")), &[want]);
        assert_eq!(class_loss(logits.clone(), labels([0, 2])).expect_err("refused").got, "2 at 1");
        let wanted = Tensor::<2>::from_data([[0.0, 2.0], [1.0, 2.0]], &device);
        assert_close(&values(quantity_loss(logits, wanted)), &[1.5]);
    }
}

#[test]
fn training_lowers_the_loss_of_every_kind() {
    let device = Device::flex().autodiff();
    device.seed(3);
    let graph = graph(&[6, 4], 6, &device);
    let (s, x) = (wave([2, 6, 8], 0.2, &device), wave([2, 6, 6], 0.4, &device));
    let labels = Tensor::<1, Int>::from_data([0, 1], &device);
    let sites = (wave([2, 6, 2], 0.9, &device).sign() + 1.0) / 2.0;
    for (kind, layout) in KINDS {
        let mut model = config(kind, layout).init(&device);
        let mut optimizer = AdamConfig::new().init();
        let mut losses = Vec::new();
        for _ in 0..30 {
            let output = model.forward(s.clone(), x.clone(), &graph);
            let loss = class_loss(output.logits, labels.clone()).expect("classes")
                + residue_loss(model.residue_logits(output.residues), sites.clone(), &graph.mask);
            losses.push(values(loss.clone())[0]);
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-2, model, gradients);
        }
        assert!(losses[29] < 0.7 * losses[0], "{kind:?} {layout:?}: {losses:?}");
        // The feedback of the first level has left 0, that of the last is unused and has not.
        let loudness = |fusion: &Fusion| {
            let weight = match fusion {
                Fusion::Local(fusion) => fusion.to_structure.weight.val(),
                Fusion::Global(fusion) => fusion.to_structure.weight.val(),
            };
            values(weight).iter().map(|value| value.abs()).fold(0.0, f64::max)
        };
        assert!(loudness(&model.levels[0].fusion) > 1e-3);
        assert_eq!(loudness(&model.levels[1].fusion), 0.0);
    }
}
