//! The image model.

use burn::tensor::{Device, Int, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_core::checkpoint::PretrainedConfig;
use gatekit_sequence::backbone::ModelState;
use gatekit_sequence::checkpoint::{named_gradients, named_parameters};
use gatekit_sequence::lm::StreamState;
use gatekit_sequence::mixture_of_value_embeddings::*;
use gatekit_sequence::{GenerateConfig, load_pretrained, save_pretrained};

use super::support::*;
use super::{picture, pictures};

fn lively(config: &MoveImageConfig, device: &Device) -> MoveImageModel {
    enlivened(config.init(device))
}

fn codes(batch: usize, count: usize, device: &Device) -> Tensor<2, Int> {
    tokens(batch, count, device).remainder_scalar(11)
}

fn labels<const N: usize>(labels: [i64; N], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(labels, device)
}

#[test]
fn streaming_equals_the_whole_picture() {
    for device in devices() {
        for config in pictures() {
            let model = lively(&config, &device);
            for count in [1, 2, 7, 16] {
                let codes = codes(2, count, &device);
                let classes = || labels([3, 5], &device);
                let whole = model.forward(codes.clone(), classes());
                assert_eq!(whole.dims(), [2, count, 11]);
                for stride in [1, 3, 16] {
                    let (logits, mut state) = model.begin(classes());
                    let mut pieces = vec![logits.unsqueeze_dim::<3>(1)];
                    let mut start = 0;
                    while start + 1 < count {
                        let length = stride.min(count - 1 - start);
                        let piece = codes.clone().narrow(1, start, length);
                        let scores;
                        (scores, state) = match length {
                            1 => {
                                let (scores, state) = model.step(piece.squeeze_dim(1), state);
                                (scores.unsqueeze_dim(1), state)
                            }
                            _ => model.prefill(piece, state),
                        };
                        pieces.push(scores);
                        start += length;
                    }
                    let got = Tensor::cat(pieces, 1);
                    assert_close(
                        &values(&got),
                        &values(&whole),
                        1e-5,
                        &format!("{count} by {stride}, {config}"),
                    );
                }
            }
        }
    }
}

#[test]
fn a_code_sees_the_class_and_the_codes_before_it() {
    for device in devices() {
        let model = lively(&picture(), &device);
        let before = codes(1, 9, &device);
        let after = Tensor::cat(
            vec![before.clone().narrow(1, 0, 4), (before.clone().narrow(1, 4, 5) + 1).remainder_scalar(11)],
            1,
        );
        let logits = |codes: &Tensor<2, Int>, label| model.forward(codes.clone(), labels([label], &device));
        let part = |y: &Tensor<3>, start, count| values(&y.clone().narrow(1, start, count));
        let (x, y) = (logits(&before, 2), logits(&after, 2));
        assert_close(&part(&x, 0, 5), &part(&y, 0, 5), 1e-6, "before the change");
        assert_ne!(part(&x, 5, 4), part(&y, 5, 4));
        for other in [1, 5] {
            let y = logits(&before, other);
            for position in 0..9 {
                assert_ne!(part(&x, position, 1), part(&y, position, 1), "{other} {position}");
            }
        }
    }
}

#[test]
fn guided_generation_is_that_of_whole_pictures() {
    for device in devices() {
        for config in pictures() {
            let model = lively(&config, &device);
            for guidance in [1.0, 0.0, 2.5] {
                let greedy = GenerateConfig::new(16).with_temperature(0.0);
                let drawn = model.generate(&[2, 0], guidance, &greedy).unwrap();
                for (label, drawn) in [2, 0].into_iter().zip(&drawn) {
                    assert_eq!(drawn.len(), 16);
                    let as_ids: Vec<i64> = drawn.iter().map(|&code| code as i64).collect();
                    let picture =
                        Tensor::<1, Int>::from_data(as_ids.as_slice(), &device).unsqueeze_dim::<2>(0);
                    let logits =
                        |label| model.forward(picture.clone(), labels([label], &device)).squeeze_dim::<2>(0);
                    // u + s (c - u), written out.
                    let (u, c) = (logits(5), logits(label));
                    let want = u.clone() * (1.0 - guidance) + c.clone() * guidance;
                    let likeliest = want.clone().argmax(1).to_data().iter::<i64>().collect::<Vec<_>>();
                    assert_eq!(as_ids, likeliest, "guidance {guidance}, {config}");
                    assert_close(&values(&guided(c, u, guidance)), &values(&want), 1e-5, "guided");
                }
            }
        }
    }
}

#[test]
fn the_seed_decides_the_pictures() {
    let device = Device::flex();
    let model = lively(&picture(), &device);
    let draw = |seed| {
        model.generate(&[1, 1, 4], 1.5, &GenerateConfig::new(9).with_seed(seed).with_top_k(Some(6))).unwrap()
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
    assert!(draw(3).iter().all(|picture| picture.len() == 9 && picture.iter().all(|code| *code < 11)));
}

#[test]
fn classes_have_rows_of_their_own_and_every_parameter_a_gradient() {
    for device in devices() {
        let device = device.autodiff();
        for config in pictures() {
            let model = lively(&config, &device);
            let codes = Tensor::<2, Int>::from_data([[4, 9, 4, 2], [0, 9, 1, 1]], &device);
            let logits = model.forward(codes.clone(), labels([3, 5], &device));
            let loss = model.loss(logits, codes).unwrap();
            let gradients = named_gradients(&model, &loss.backward());
            for (name, parameter) in named_parameters(&model) {
                let gradient: Vec<f32> = gradients[&name].iter::<f32>().collect();
                let norm: f32 = gradient.iter().map(|value| value * value).sum();
                assert!(norm.is_finite() && norm > 0.0, "{name}: {norm}, {config}");
                if name.starts_with("value_embeds") {
                    assert_eq!(parameter.shape()[0], 11 + 5 + 1);
                    let columns = parameter.shape()[1];
                    let touched: Vec<usize> = (gradient.chunks(columns).enumerate())
                        .filter(|(_, row)| row.iter().any(|value| *value != 0.0))
                        .map(|(row, _)| row)
                        .collect();
                    // Codes that are read, and the classes' rows behind all codes.
                    assert_eq!(touched, [0, 1, 4, 9, 11 + 3, 11 + 5], "{config}");
                }
            }
        }
    }
}

#[test]
fn the_loss_judges_every_code_in_its_place() {
    let device = Device::flex();
    let model = lively(&picture(), &device);
    let codes = codes(2, 5, &device);
    let logits = model.forward(codes.clone(), labels([0, 1], &device));
    let rows = values(&logits);
    let targets: Vec<usize> = codes.to_data().iter::<i64>().map(|code| code as usize).collect();
    let want = (rows.chunks(11).zip(&targets))
        .map(|(row, target)| row.iter().map(|z| z.exp()).sum::<f32>().ln() - row[*target])
        .sum::<f32>()
        / 10.0;
    let got = model.loss(logits, codes).unwrap().into_scalar::<f32>();
    assert!((got - want).abs() < 1e-5, "{got} {want}");
}

#[test]
fn dropout_and_dropped_classes_are_for_training() {
    let device = Device::flex();
    device.seed(1);
    let config = picture().with_dropout(0.3);
    let (still, training) = (lively(&config, &device), lively(&config, &device.clone().autodiff()));
    let run = |model: &MoveImageModel, device: &Device| {
        values(&model.forward(codes(1, 9, device), labels([2], device)))
    };
    assert_eq!(run(&still, &device), run(&still, &device));
    assert_eq!(run(&still, &device), run(&lively(&picture(), &device), &device));
    assert_ne!(run(&training, &device.clone().autodiff()), run(&training, &device.clone().autodiff()));

    let uniform = Tensor::<1>::from_data([0.05, 0.1, 0.099, 0.9], &device);
    let dropped = still.drop_classes(labels([0, 1, 2, 3], &device), uniform.clone(), 0.1);
    assert_eq!(dropped.to_data().iter::<i64>().collect::<Vec<_>>(), [5, 1, 5, 3]);
    let none = still.drop_classes(labels([0, 1, 2, 3], &device), uniform, 0.0);
    assert_eq!(none.to_data().iter::<i64>().collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn checkpoints_and_states_go_around() {
    let folder = tempfile::tempdir().unwrap();
    for device in devices() {
        for config in pictures() {
            let model = lively(&config, &device);
            let names = config.layout().to_published(named_parameters(&model));
            for name in [
                "cls_embedding.embedding_table.weight",
                "layers.1.feed_forward.w2.weight",
                "layers.0.attention.wqkv.weight",
            ] {
                assert!(names.contains_key(name), "{name} is not among {:?}", names.keys());
            }
            assert_eq!(names["layers.0.feed_forward.w2.weight"].shape().to_vec(), [16, 24]);
            save_pretrained(folder.path(), &config, &model, None).unwrap();
            let (_, loaded) = load_pretrained::<MoveImageConfig>(folder.path(), &device).unwrap();
            let run = |model: &MoveImageModel| model.forward(codes(1, 8, &device), labels([1], &device));
            assert_eq!(values(&run(&loaded)), values(&run(&model)));

            let path = folder.path().join("state.safetensors");
            let (_, state) = model.begin(labels([1], &device));
            let (_, state) = model.step(labels([7], &device), state);
            state.save(&path).unwrap();
            let read = ModelState::<MoveCache>::load(&path, &device).unwrap();
            model.check_state(&read, 1).unwrap();
            let (got, want) =
                (model.step(labels([2], &device), read), model.step(labels([2], &device), state));
            assert_eq!(values(&got.0), values(&want.0));
        }
    }
}

#[test]
fn gates_are_shown_for_every_layer() {
    let device = Device::flex();
    let model = lively(&pictures()[1], &device);
    let gates = model.gate_values(codes(2, 7, &device), labels([0, 1], &device));
    assert_eq!(gates.len(), 2);
    for gates in gates {
        // The class and six codes; two value heads; the value's own gate and three slots.
        let gates = gates.unwrap();
        assert_eq!(gates.dims(), [2, 7, 2, 4]);
        assert!(values(&gates).iter().all(|gate| (0.0..=2.0).contains(gate)));
    }
}
