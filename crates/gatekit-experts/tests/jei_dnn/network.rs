//! The network that stops, and what its exits measure.

use burn::tensor::Tensor;
use gatekit_experts::jei_dnn::{
    ConformalThresholds, DynamicNetwork, ExitReport, UncertaintyGate, normalised_costs, uncertainty_features,
};

use super::*;

#[test]
fn stopping_answers_as_computing_everything_does() {
    for device in devices() {
        for threshold in [0.2, 0.5, 0.9, 1.0] {
            let config = config().with_exit_threshold(threshold);
            let network = DynamicNetwork::new(Counting::new(EXITS + 1), lively(&config, &device)).unwrap();
            let x = float(&ramp(40 * WIDTH, 2.0), [40, WIDTH], &device);
            let output = network.forward(x.clone());
            let decision = network.exits.decide(&output).unwrap();
            network.backbone.rows.lock().unwrap().fill(0);
            let answers = network.infer(x).unwrap();
            let levels: Vec<i64> = decision.exit_level.into_data().iter::<i64>().collect();
            assert_eq!(answers.exit_levels.iter().map(|l| *l as i64).collect::<Vec<_>>(), levels);
            assert_close(&values(answers.logits.clone()), &values(decision.logits), 1e-5);
            assert_close(&answers.costs, &values(decision.cost), 1e-6);
            // A stage computed those rows alone whose exit is not before it.
            let needed = |stage: usize| levels.iter().filter(|level| **level >= stage as i64).count();
            let needed: Vec<usize> = (0..=EXITS).map(needed).collect();
            assert_eq!(*network.backbone.rows.lock().unwrap(), needed);
            assert_eq!(answers.rows_per_stage, needed);
            if threshold == 0.5 {
                assert!(needed.windows(2).all(|pair| pair[0] > pair[1]), "{needed:?} use every exit");
            }
            let mean = values(decision.expected_cost).iter().sum::<f64>() / 40.0;
            assert!((0.25..=1.0).contains(&mean) && (0.25..=1.0).contains(&answers.mean_cost()));
        }
    }
}

#[test]
fn one_exit_may_take_all_or_none() {
    use burn::module::Param;
    for device in devices() {
        for (bias, level, rows) in [(50.0, 0, [7, 0, 0, 0]), (-50.0, 3, [7; 4])] {
            let mut exits = lively(&config(), &device);
            for gate in &mut exits.gates {
                gate.linear.bias = Some(Param::from_tensor(float(&[bias], [1], &device)));
            }
            let network = DynamicNetwork::new(Counting::new(4), exits).unwrap();
            let answers = network.infer(float(&ramp(28, 1.0), [7, WIDTH], &device)).unwrap();
            assert_eq!(answers.exit_levels, [level; 7]);
            assert_eq!(answers.rows_per_stage, rows);
        }
    }
}

#[test]
fn an_empty_batch_has_empty_answers() {
    for device in devices() {
        let network = DynamicNetwork::new(Counting::new(4), lively(&config(), &device)).unwrap();
        let answers = network.infer(Tensor::zeros([0, WIDTH], &device)).unwrap();
        assert_eq!((answers.logits.dims(), answers.exit_level().dims()), ([0, CLASSES], [0]));
        assert_eq!((answers.mean_cost(), answers.rows_per_stage), (0.0, vec![0; 4]));
    }
}

#[test]
fn costs_are_sums_over_the_whole() {
    assert_eq!(normalised_costs(&Counting::new(4)), [0.5, 4.0 / 6.0, 5.0 / 6.0, 1.0]);
}

#[test]
fn measures_of_doubt_match_their_equations() {
    for device in devices() {
        let logits = [[1.0, -0.5, 2.0], [0.3, 0.3, 0.3], [400.0, -400.0, 399.0]];
        let entropy = |p: &[f64]| -p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>();
        let softmax = |z: &[f64]| {
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = z.iter().map(|z| (z - largest).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|e| e / sum).collect::<Vec<_>>()
        };
        let want: Vec<f64> = (logits.iter())
            .flat_map(|z| {
                let mut p = softmax(z);
                let total: f64 = p.iter().map(|p| p * p).sum();
                let squared: Vec<f64> = p.iter().map(|p| p * p / total).collect();
                let of_p = entropy(&p);
                p.sort_by(|a, b| b.total_cmp(a));
                [p[0], of_p, p[0] - p[1], entropy(&squared)]
            })
            .collect();
        let x = float(&logits.concat(), [3, 3], &device);
        assert_close(&values(uncertainty_features(x)), &want, 2e-5);
        let broken = uncertainty_features(float(&[0.0, f64::NAN], [1, 2], &device));
        assert!(
            values(UncertaintyGate::new(&device).forward(float(&[0.0, f64::NAN], [1, 2], &device)))[0]
                .is_nan()
        );
        assert!(values(broken).iter().any(|value| value.is_nan()));
    }
}

#[test]
fn reports_and_conformal_sets_match_a_count_by_hand() {
    for device in devices() {
        let exits = lively(&config(), &device);
        let count = 200;
        let features = float(&ramp(count * 4 * WIDTH, 1.5), [count, 4, WIDTH], &device);
        let truth: Vec<i64> = (0..count as i64).map(|i| (i * i + i / 3) % 3).collect();
        let report = ExitReport::of(&exits, features.clone(), &labels(&truth, &device)).unwrap();
        assert_eq!(report.exit_counts.iter().sum::<usize>(), count);
        let costs = &exits.config().cost_per_exit;
        let cost =
            report.exit_counts.iter().zip(costs).map(|(n, c)| *n as f64 * c).sum::<f64>() / count as f64;
        assert!((cost - report.mean_cost).abs() < 1e-9);
        let output = exits.forward(features);
        let answers: Vec<i64> = output.exit_logits.argmax(2).into_data().iter::<i64>().collect();
        let right = |exit: usize, sample: usize| answers[sample * 4 + exit] == truth[sample];
        let taken = (0..count).filter(|s| right(report.exit_levels[*s], *s)).count() as f64 / count as f64;
        assert!((taken - report.accuracy).abs() < 1e-9);
        for exit in 0..4 {
            let share = (0..count).filter(|s| right(exit, *s)).count() as f64 / count as f64;
            assert!((share - report.exit_accuracies[exit]).abs() < 1e-9);
        }

        let thresholds = ConformalThresholds::fit(&report, 0.2).unwrap();
        for (own, count) in thresholds.by_exit.iter().zip(&report.exit_counts) {
            assert_eq!(own.is_some(), *count > 20);
        }
        assert!(report.exit_counts.iter().any(|count| *count > 20));
        let (size, coverage) = thresholds.size_and_coverage(&report);
        assert!(coverage >= 0.8, "{coverage}");
        assert!((1.0..=3.0).contains(&size), "{size}");
        let exit = report.exit_counts.iter().position(|count| *count > 20).unwrap();
        let q = thresholds.by_exit[exit].unwrap();
        let set = thresholds.set(exit, &[1.0 - q, (1.0 - q) * 0.99, 1.0]);
        assert_eq!(set, if q < 1.0 { vec![0, 2] } else { vec![0, 1, 2] });
    }
}
