//! Capacity, order and combination beyond the golden cases.

use burn::tensor::{DType, Tensor};

use super::*;
use crate::config::ModuleConfig;
use crate::router::Assignment;
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

fn assignment(experts: &[usize], per_token: usize, num_experts: usize) -> Assignment {
    Assignment::new(experts.to_vec(), per_token, num_experts).unwrap()
}

fn capacity(factor: f64) -> Capacity {
    Capacity::new(factor, Priority::Token).unwrap()
}

#[test]
fn capacity_is_a_whole_number_of_slots() {
    // 1.1 * 10 / 11 is a little above 1 in floating point.
    assert_eq!(capacity(1.1).slots(&assignment(&[0; 10], 1, 11)), 1);
    assert_eq!(capacity(1.0).slots(&assignment(&[0; 32], 2, 5)), 7);
    assert_eq!(capacity(0.1).slots(&assignment(&[0; 4], 1, 4)), 1);
    assert_eq!(capacity(1.0).slots(&assignment(&[], 2, 4)), 0);
}

#[test]
fn first_choices_come_before_second_choices() {
    // Every token wants expert 0: token 0 and 1 second, token 2 and 3 first.
    let wanted = assignment(&[1, 0, 1, 0, 0, 1, 0, 1], 2, 2);
    let kept = capacity(0.75).apply(wanted.clone(), &[]);
    assert_eq!(capacity(0.75).slots(&wanted), 3);
    assert_eq!(kept.kept(), [true, true, true, false, true, true, true, false]);
    assert_eq!(kept.dropped_share(), 0.25);
    assert_eq!(DispatchPlan::new(&kept).tokens_per_expert(), [3, 3]);

    // By weight: the heaviest first choice goes first, of equal ones the first token.
    let wanted = assignment(&[0, 0, 0, 0], 1, 2);
    let by_weight = Capacity::new(1.0, Priority::Weight).unwrap();
    assert_eq!(by_weight.apply(wanted.clone(), &[0.2, 0.9, 0.5, 0.5]).kept(), [false, true, true, false]);
    assert_eq!(by_weight.apply(wanted, &[0.2, f64::NAN, 0.1, 0.1]).kept(), [true, false, true, false]);
}

#[test]
fn slots_that_are_not_kept_take_no_place() {
    let wanted = assignment(&[0, 1, 1, 0, 1, 0], 2, 2).retain(|slot| slot != 3);
    let kept = capacity(2.0 / 3.0).apply(wanted, &[]);
    assert_eq!(kept.kept(), [true, false, true, false, true, true]);
}

#[test]
fn plans_send_and_bring_back() {
    for device in devices() {
        let (tokens, k, experts, width) = (23, 3, 5, 4);
        let chosen: Vec<usize> = (0..tokens * k).map(|slot| (slot * slot + slot / 3) % experts).collect();
        let assignment = assignment(&chosen, k, experts).retain(|slot| slot % 7 != 2);
        let plan = DispatchPlan::new(&assignment);
        let (x, weights) = (ramp(tokens * width, 1.0), ramp(tokens * k, 0.8));
        let sorted = values(plan.gather(float32(&x, [tokens, width], &device)));
        let mut want = vec![0.0; tokens * width];
        let mut previous = None;
        for (row, slot) in plan.order().iter().enumerate() {
            let expert = chosen[*slot];
            assert!(plan.offsets()[expert] <= row && row < plan.offsets()[expert + 1]);
            assert!(previous < Some((expert, *slot)), "sorted by expert, then by slot");
            previous = Some((expert, *slot));
            let token = slot / k;
            for channel in 0..width {
                let value = x[token * width + channel];
                assert!((sorted[row * width + channel] - value).abs() < 1e-6);
                want[token * width + channel] += weights[*slot] * value * (expert + 1) as f64;
            }
        }
        let scale: Vec<f64> = plan
            .order()
            .iter()
            .flat_map(|slot| std::iter::repeat_n((chosen[*slot] + 1) as f64, width))
            .collect();
        let rows = plan.order().len();
        let outputs = float32(&sorted, [rows, width], &device) * float32(&scale, [rows, width], &device);
        let weights = float32(&weights, [tokens, k], &device);
        let y = plan.scatter_combine(outputs.clone(), weights.clone());
        assert_close(&values(y), &want, 1e-5);
        if device.supports_dtype(DType::F16) {
            let y = plan.scatter_combine(outputs.cast(DType::F16), weights);
            assert_eq!(y.dtype(), DType::F16);
        }
    }
}

#[test]
fn nothing_kept_combines_to_zero() {
    for device in devices() {
        let plan = DispatchPlan::new(&assignment(&[0, 1], 1, 2).retain(|_| false));
        let gathered = plan.gather(Tensor::ones([2, 3], &device));
        assert_eq!(gathered.dims(), [0, 3]);
        let outputs = grouped_matmul(gathered, plan.offsets(), Tensor::ones([2, 3, 3], &device));
        let y = plan.scatter_combine(outputs, Tensor::ones([2, 1], &device));
        assert_eq!(values(y), [0.0; 6]);
    }
}

#[test]
fn gradients_match_finite_differences() {
    // Two slots a token, some of them kept alone, in every order; token 2 keeps none in the last case.
    let all = assignment(&[2, 0, 0, 2, 2, 3], 2, 4);
    let cases = [all.clone(), all.clone().retain(|slot| slot != 1), all.retain(|slot| slot < 4)];
    for (device, assignment) in
        devices().iter().flat_map(|device| cases.iter().map(move |case| (device, case)))
    {
        let plan = DispatchPlan::new(assignment);
        let layer = float64(&ramp(4 * 2 * 3, 0.9), [4, 2, 3], device);
        let (x, weights) = (ramp(9, 1.1), ramp(6, 0.7));
        let through = |x: Tensor<2>, weights: Tensor<2>| {
            let weight = Tensor::from_data(layer.to_data(), (&x.device(), DType::F64));
            plan.scatter_combine(grouped_matmul(plan.gather(x), plan.offsets(), weight), weights)
        };
        check_gradients(&x, [3, 3], device, |x| {
            let weights = float64(&weights, [3, 2], &x.device());
            through(x, weights)
        });
        check_gradients(&weights, [3, 2], device, |weights| {
            let x = float64(&x, [3, 3], &weights.device());
            through(x, weights)
        });
        check_gradients(&ramp(24, 0.9), [4, 2, 3], device, |weight| {
            let x = float64(&x, [3, 3], &weight.device());
            grouped_matmul(plan.gather(x), plan.offsets(), weight)
        });
    }
}

#[test]
fn narrow_products_are_products() {
    for device in devices() {
        for rows in [1, 63, 64, 200] {
            let (x, weight) = (ramp(rows * 3, 1.0), ramp(6, 0.7));
            let weight = float64(&weight, [2, 3], &device);
            let x = float64(&x, [rows, 3], &device);
            let want = values(x.clone().matmul(weight.clone().transpose()));
            assert_close(&values(narrow_matmul(x, weight)), &want, 1e-12);
        }
    }
}

#[test]
fn refuses_bad_configurations() {
    let device = devices().remove(0);
    for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(Capacity::new(factor, Priority::Token).unwrap_err().field, "capacity_factor");
    }
    let refused = |e, i, o| GroupedLinearConfig::new(e, i, o).try_init(&device).unwrap_err().field;
    assert_eq!(refused(0, 1, 1), "num_experts");
    assert_eq!(refused(1, 0, 1), "d_input");
    assert_eq!(refused(1, 1, 0), "d_output");
    let layer = GroupedLinearConfig::new(2, 3, 5).init(&device);
    assert_eq!(layer.forward(Tensor::ones([4, 3], &device), &[0, 4, 4]).dims(), [4, 5]);
}

#[test]
fn a_projection_adds_the_bias_of_each_rows_expert() {
    for device in devices() {
        let mut layer = GroupedLinearConfig::new(3, 2, 4).with_bias(true).init(&device);
        let biases = ramp(12, 1.0);
        layer.bias = layer.bias.map(|bias| bias.map(|_| float32(&biases, [3, 4], &device)));
        let x = float32(&ramp(10, 1.0), [5, 2], &device);
        // Expert 1 gets no row.
        let offsets = [0, 2, 2, 5];
        let got = layer.forward(x.clone(), &offsets);
        let plain = grouped_matmul(x.clone(), &offsets, layer.weight.val());
        let bias: Vec<f64> = [0, 0, 2, 2, 2].iter().flat_map(|e| biases[4 * e..4 * e + 4].to_vec()).collect();
        assert_close(&values(got.clone() - plain), &bias, 1e-6);
        let last = layer.forward_expert(x.clone().narrow(0, 2, 3), 2);
        assert_close(&values(got.narrow(0, 2, 3)), &values(last), 1e-6);
        assert_eq!(layer.forward(Tensor::zeros([0, 2], &device), &[0; 4]).dims(), [0, 4]);
    }
}
