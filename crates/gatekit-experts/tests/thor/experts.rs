//! The experts: sent to their own or computed all and masked, it is the same.

use super::*;

/// Every expert on every token, times 1 where it is the token's.
fn dense(layer: &StochasticFfn, x: Tensor<3>, experts: &[usize]) -> Vec<f64> {
    let [batch, time, dim] = x.dims();
    let rows = x.reshape([batch * time, dim]);
    let outputs: Vec<Vec<f64>> =
        (0..layer.num_experts()).map(|expert| values(layer.forward_expert(rows.clone(), expert))).collect();
    (experts.iter().enumerate())
        .flat_map(|(token, expert)| outputs[*expert][token * dim..(token + 1) * dim].to_vec())
        .collect()
}

#[test]
fn sending_tokens_equals_computing_all_experts_and_masking() {
    for device in devices() {
        for num_experts in [1, 2, 5] {
            let layer = ffn(num_experts, &device);
            for (batch, time) in [(1, 1), (3, 4), (2, 7)] {
                let x = wave([batch, time, 6], 1.0, &device);
                let last = num_experts - 1;
                let of_token = |i: usize| (i * i + i / 3) % num_experts;
                let cases = [
                    (ExpertAssignment::Pass(last), vec![last; batch * time]),
                    (
                        ExpertAssignment::Sentence((0..batch).map(of_token).collect()),
                        (0..batch * time).map(|i| of_token(i / time)).collect(),
                    ),
                    (
                        ExpertAssignment::Token { experts: (0..batch * time).map(of_token).collect(), time },
                        (0..batch * time).map(of_token).collect(),
                    ),
                    // One expert gets all.
                    (
                        ExpertAssignment::Token { experts: vec![last; batch * time], time },
                        vec![last; batch * time],
                    ),
                ];
                for (assignment, experts) in cases {
                    let got = values(layer.forward(x.clone(), &assignment).unwrap());
                    assert_close(&got, &dense(&layer, x.clone(), &experts), 1e-5);
                }
            }
        }
    }
}

#[test]
fn the_mean_is_that_of_all_experts() {
    for device in devices() {
        let layer = ffn(3, &device);
        let x = wave([2, 4, 6], 1.0, &device);
        let of = |expert| layer.forward(x.clone(), &ExpertAssignment::Pass(expert)).unwrap();
        let want = values((of(0) + of(1) + of(2)) / 3.0);
        assert_close(&values(layer.forward(x.clone(), &ExpertAssignment::Mean).unwrap()), &want, 1e-6);
        let alone = ffn(1, &device);
        let pass = alone.forward(x.clone(), &ExpertAssignment::Pass(0)).unwrap();
        assert_eq!(values(alone.forward(x, &ExpertAssignment::Mean).unwrap()), values(pass));
    }
}

#[test]
fn an_expert_that_is_not_drawn_gets_no_gradient() {
    for device in devices() {
        let layer = ffn(3, &device).train();
        let x = wave([2, 3, 6], 1.0, &device.autodiff());
        let two = ExpertAssignment::Token { experts: vec![0, 2, 2, 0, 0, 2], time: 3 };
        for (assignment, drawn) in [(ExpertAssignment::Pass(1), vec![1]), (two, vec![0, 2])] {
            let gradients = layer.forward(x.clone(), &assignment).unwrap().sum().backward();
            let weight = values(layer.fc1.weight.val().grad(&gradients).unwrap());
            let bias = values(layer.fc2.bias.as_ref().unwrap().val().grad(&gradients).unwrap());
            for expert in 0..3 {
                let moved = weight[expert * 54..(expert + 1) * 54].iter().any(|value| *value != 0.0);
                assert_eq!(moved, drawn.contains(&expert), "expert {expert}");
                let tokens = bias[expert * 6];
                assert_eq!(tokens != 0.0, drawn.contains(&expert));
            }
        }
    }
}

#[test]
fn nothing_goes_through_any_expert_unchanged() {
    for device in devices() {
        let layer = ffn(2, &device);
        for shape in [[0, 3, 6], [2, 0, 6]] {
            for level in LEVELS {
                let mut draw = ExpertDraw::new(2, level, 0).unwrap();
                let experts = draw.assignment([shape[0], shape[1]]);
                let y = layer.forward(Tensor::zeros(shape, &device), &experts).unwrap();
                assert_eq!(y.dims(), shape);
            }
        }
    }
}

#[test]
fn draws_are_uniform_and_follow_their_seed() {
    for level in LEVELS {
        let shape = |assignment: &ExpertAssignment| match assignment {
            ExpertAssignment::Pass(_) => 1,
            ExpertAssignment::Sentence(experts) => experts.len(),
            ExpertAssignment::Token { experts, time } => {
                assert_eq!(*time, 5);
                experts.len()
            }
            ExpertAssignment::Mean => 0,
        };
        let (mut a, mut b) = (draw(level, 3), draw(level, 3));
        let first: Vec<_> = (0..8).map(|_| a.assignment([3, 5])).collect();
        let again: Vec<_> = (0..8).map(|_| b.assignment([3, 5])).collect();
        assert_eq!(first, again);
        assert!(first.iter().any(|assignment| *assignment != first[0]), "the generator moves on");
        let other: Vec<_> = {
            let mut c = draw(level, 4);
            (0..8).map(|_| c.assignment([3, 5])).collect()
        };
        assert_ne!(first, other);
        let want = match level {
            ExpertLevel::Pass => 1,
            ExpertLevel::Sentence => 3,
            ExpertLevel::Token => 15,
        };
        assert!(first.iter().all(|assignment| shape(assignment) == want));
    }
    let ExpertAssignment::Token { experts, .. } = draw(ExpertLevel::Token, 0).assignment([100, 80]) else {
        panic!("tokens have experts");
    };
    for expert in 0..4 {
        let count = experts.iter().filter(|drawn| **drawn == expert).count();
        assert!((1800..2200).contains(&count), "expert {expert} is drawn {count} times of 8000");
    }
}

#[test]
fn tensors_of_experts_are_read_by_level() {
    let device = Device::flex();
    let one = Tensor::<1, Int>::from_data([3], &device);
    let row = Tensor::<1, Int>::from_data([3, 0], &device);
    let grid = ids(&[&[0, 1, 2], &[3, 2, 1]], &device);
    let read = ExpertAssignment::from_tensor(ExpertLevel::Pass, &one, 4).unwrap();
    assert_eq!(read, ExpertAssignment::Pass(3));
    let read = ExpertAssignment::from_tensor(ExpertLevel::Sentence, &row, 4).unwrap();
    assert_eq!(read, ExpertAssignment::Sentence(vec![3, 0]));
    let read = ExpertAssignment::from_tensor(ExpertLevel::Token, &grid, 4).unwrap();
    assert_eq!(read, ExpertAssignment::Token { experts: vec![0, 1, 2, 3, 2, 1], time: 3 });
    assert_eq!(read.at(1), ExpertAssignment::Token { experts: vec![1, 2], time: 1 });
    assert_eq!(ExpertAssignment::Pass(2).at(9), ExpertAssignment::Pass(2));
}
