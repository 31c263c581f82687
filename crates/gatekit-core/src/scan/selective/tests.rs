use super::*;
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

const BATCH: usize = 2;
const TIME: usize = 7;
const CHANNELS: usize = 5;
const SIZE: usize = 3;
const FORMS: [ScanForm; 3] = [ScanForm::Auto, ScanForm::Portable, ScanForm::Recurrent];

/// u, delta, b, c, z: one of each at every step.
fn sequences(device: &burn::tensor::Device) -> [Tensor<3>; 5] {
    let of = |amplitude, width| float64(&ramp(BATCH * TIME * width, amplitude), [BATCH, TIME, width], device);
    [of(1.0, CHANNELS), of(1.3, CHANNELS).abs(), of(0.9, SIZE), of(1.1, SIZE), of(2.0, CHANNELS)]
}

/// One `a` a channel, as the exact discretisation asks for.
fn rates(device: &burn::tensor::Device) -> Tensor<2> {
    let column = float64(&ramp(CHANNELS, 1.0), [CHANNELS, 1], device).abs().add_scalar(0.1).neg();
    column.expand([CHANNELS, SIZE])
}

/// Skip weights and initial states.
fn constants(device: &burn::tensor::Device) -> (Tensor<1>, Tensor<3>) {
    let state = float64(&ramp(BATCH * CHANNELS * SIZE, 0.7), [BATCH, CHANNELS, SIZE], device);
    (float64(&ramp(CHANNELS, 0.8), [CHANNELS], device), state)
}

#[test]
fn forms_and_steps_agree() {
    for device in devices() {
        for discretisation in [Discretisation::Euler, Discretisation::ZeroOrderHold] {
            let [u, delta, b, c, z] = sequences(&device);
            let (a, (d, initial)) = (rates(&device), constants(&device));
            let mut state = initial.clone();
            let mut outputs = vec![];
            for t in 0..TIME {
                let at = |x: &Tensor<3>| x.clone().narrow(1, t, 1).squeeze_dim::<2>(1);
                let (d, z) = (Some(d.clone()), Some(at(&z)));
                let (y, next) = selective_scan_step(
                    at(&u),
                    at(&delta),
                    a.clone(),
                    at(&b),
                    at(&c),
                    d,
                    z,
                    state,
                    discretisation,
                );
                outputs.push(y);
                state = next;
            }
            let (y, state) = (values(Tensor::stack::<3>(outputs, 1)), values(state));
            for form in FORMS {
                let result = selective_scan(
                    u.clone(),
                    delta.clone(),
                    a.clone(),
                    b.clone(),
                    c.clone(),
                    Some(d.clone()),
                    Some(z.clone()),
                    Some(initial.clone()),
                    None,
                    &SelectiveOptions { discretisation, form },
                );
                assert_close(&values(result.output), &y, 1e-12);
                assert_close(&values(result.final_state), &state, 1e-12);
            }
        }
    }
}

#[test]
fn packed_sequences_do_not_see_one_another() {
    for device in devices() {
        let [u, delta, b, c, _] = sequences(&device);
        let a = rates(&device);
        // The rows of the batch, one after the other.
        let flat = |x: &Tensor<3>| x.clone().reshape([1, BATCH * TIME, x.dims()[2]]);
        let boundaries = Boundaries::new(&[0, TIME, 2 * TIME], 2 * TIME).expect("good boundaries");
        for form in FORMS {
            let options = SelectiveOptions { form, ..SelectiveOptions::default() };
            let scan = |x: [Tensor<3>; 4], boundaries| {
                let [u, delta, b, c] = x;
                selective_scan(u, delta, a.clone(), b, c, None, None, None, boundaries, &options)
            };
            let apart = scan([&u, &delta, &b, &c].map(Tensor::clone), None);
            let packed = scan([&u, &delta, &b, &c].map(flat), Some(&boundaries));
            assert_close(&values(packed.output), &values(apart.output), 1e-12);
            assert_close(&values(packed.final_state), &values(apart.final_state), 1e-12);
        }
    }
}

#[test]
fn zero_order_hold_is_exact_down_to_small_steps() {
    for device in devices() {
        let steps = [0.0, 1e-30, 1e-7, 1e-3, 0.5, 20.0, 1e4];
        let of_channel = |x: &[f64]| float32(x, [1, 1, steps.len()], &device);
        let one = float32(&[1.0], [1, 1, 1], &device);
        let result = selective_scan(
            of_channel(&[1.0; 7]),
            of_channel(&steps),
            float32(&[-0.25; 7], [7, 1], &device),
            one.clone(),
            one,
            None,
            None,
            None,
            None,
            &SelectiveOptions { discretisation: Discretisation::ZeroOrderHold, form: ScanForm::Auto },
        );
        for (got, step) in values(result.output).iter().zip(steps) {
            let want = -(-0.25 * step).exp_m1() / 0.25;
            assert!((got - want).abs() <= 1e-6 * want, "step {step}: {got}, not {want}");
        }
    }
}

#[test]
fn gradients_reach_every_argument() {
    for device in devices() {
        let (a, (d, initial)) = (rates(&device), constants(&device));
        for form in FORMS {
            for discretisation in [Discretisation::Euler, Discretisation::ZeroOrderHold] {
                for argument in 0..5 {
                    let given = values(sequences(&device)[argument].clone());
                    let width = given.len() / (BATCH * TIME);
                    check_gradients(&given, [BATCH, TIME, width], &device, |x: Tensor<3>| {
                        let mut arguments = sequences(&x.device());
                        arguments[argument] = x.clone();
                        let [u, delta, b, c, z] = arguments;
                        let to = x.device();
                        let [a, d] = [a.clone().to_device(&to).reshape([-1]), d.clone().to_device(&to)];
                        let options = SelectiveOptions { discretisation, form };
                        let initial = Some(initial.clone().to_device(&to));
                        let a = a.reshape([CHANNELS, SIZE]);
                        selective_scan(u, delta, a, b, c, Some(d), Some(z), initial, None, &options).output
                    });
                }
            }
        }
    }
}

#[cfg(feature = "flex")]
#[test]
fn half_precision_in_and_out() {
    let device = burn::tensor::Device::flex();
    let [u, delta, b, c, z] = sequences(&device).map(|x| x.cast(DType::BF16));
    let (a, (d, _)) = (rates(&device).cast(DType::F32), constants(&device));
    for form in FORMS {
        let options = SelectiveOptions { form, ..SelectiveOptions::default() };
        let scan = |dtype: DType| {
            let [u, delta, b, c, z] = [&u, &delta, &b, &c, &z].map(|x| x.clone().cast(dtype));
            let d = Some(d.clone().cast(DType::F32));
            selective_scan(u, delta, a.clone(), b, c, d, Some(z), None, None, &options)
        };
        let (half, wide) = (scan(DType::BF16), scan(DType::F32));
        assert_eq!((half.output.dtype(), half.final_state.dtype()), (DType::BF16, DType::F32));
        assert_close(&values(half.final_state), &values(wide.final_state), 1e-6);
        assert_close(&values(half.output), &values(wide.output.cast(DType::BF16)), 1e-6);
    }
}
