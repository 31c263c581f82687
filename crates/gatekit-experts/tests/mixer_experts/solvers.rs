//! Solvers on fields whose solution is known.

use burn::tensor::Tensor;
use gatekit_experts::mixer_experts::{DormandPrince, OdeSolver, Rk4, VectorField};

use crate::{close, devices, tensor, values};

/// `x' = w y, y' = -w x`.
struct Rotation(f64);

impl VectorField for Rotation {
    fn velocity(&self, y: Tensor<3>) -> Tensor<3> {
        let part = |place: usize| y.clone().narrow(2, place, 1);
        Tensor::cat(vec![part(1), part(0).neg()], 2).mul_scalar(self.0)
    }
}

/// `y' = k y`, k differentiated.
struct Growth(Tensor<1>);

impl VectorField for Growth {
    fn velocity(&self, y: Tensor<3>) -> Tensor<3> {
        y * self.0.clone().reshape([1, 1, 1])
    }
}

/// `y' = y^2`, infinite at time 1 from 1.
struct Explosion;

impl VectorField for Explosion {
    fn velocity(&self, y: Tensor<3>) -> Tensor<3> {
        y.square()
    }
}

fn circle(steps: usize, dt: f64, speed: f64) -> Vec<f64> {
    (0..=steps)
        .flat_map(|step| [(speed * dt * step as f64).cos(), -(speed * dt * step as f64).sin()])
        .collect()
}

#[test]
fn both_solvers_go_round_in_circles() {
    for device in devices() {
        let start = tensor(&[1.0, 0.0], [1, 1, 2], &device);
        let fixed = Rk4::new(20, 0.1).unwrap().solve(&Rotation(1.0), start.clone()).unwrap();
        assert_eq!(fixed.dims(), [1, 1, 21, 2]);
        close(&values(&fixed), &circle(20, 0.1, 1.0), 1e-5);
        let adaptive = DormandPrince::new(20, 0.1).unwrap();
        close(&values(&adaptive.solve(&Rotation(1.0), start.clone()).unwrap()), &circle(20, 0.1, 1.0), 1e-3);
        // Much faster than the reported times: many steps between two of them.
        let careful = adaptive.with_tolerances(1e-6, 1e-6).unwrap();
        let fast = careful.solve(&Rotation(60.0), start.clone()).unwrap();
        close(&values(&fast), &circle(20, 0.1, 60.0), 3e-3);
        let still = DormandPrince::new(0, 0.1).unwrap().solve(&Rotation(1.0), start.clone()).unwrap();
        assert_eq!(values(&still), [1.0, 0.0]);
    }
}

#[test]
fn gradients_pass_through_both() {
    let [_, device] = devices();
    let device = device.autodiff();
    let gradient = |solve: &dyn Fn(&Growth, Tensor<3>) -> Tensor<4>| {
        let rate = tensor(&[0.7], [1], &device).require_grad();
        let trajectory = solve(&Growth(rate.clone()), Tensor::ones([1, 1, 1], &device));
        let gradients = trajectory.narrow(2, 10, 1).sum().backward();
        values(&rate.grad(&gradients).unwrap())[0]
    };
    // d/dk exp(k t) = t exp(k t) at t = 1.
    let want = 0.7f64.exp();
    let fixed = gradient(&|field, y| Rk4::new(10, 0.1).unwrap().solve(field, y).unwrap());
    let adaptive = gradient(&|field, y| DormandPrince::new(10, 0.1).unwrap().solve(field, y).unwrap());
    assert!((fixed - want).abs() < 1e-4 && (adaptive - want).abs() < 1e-3, "{fixed}, {adaptive}");
}

#[test]
fn what_has_no_solution_is_an_error_and_not_an_endless_loop() {
    let [_, device] = devices();
    let start = Tensor::<3>::ones([1, 1, 1], &device);
    let error = DormandPrince::new(20, 0.1).unwrap().solve(&Explosion, start.clone()).unwrap_err();
    assert!(error.time < 1.1 && error.end == 2.0, "{error}");
    let few = DormandPrince::new(1, 1.0).unwrap().with_max_steps(3);
    let error = few.solve(&Rotation(1000.0), Tensor::ones([1, 1, 2], &device)).unwrap_err();
    assert_eq!((error.steps, error.reason), (3, "the steps are used up"));
    // With fixed steps the state becomes infinite, and nothing else.
    let end = Rk4::new(40, 0.1).unwrap().solve(&Explosion, start).unwrap();
    assert!(values(&end).last().is_some_and(|value| !value.is_finite()));
}

#[test]
fn times_and_tolerances_are_checked() {
    for dt in [0.0, -0.1, f64::NAN, f64::INFINITY] {
        assert_eq!(Rk4::new(3, dt).unwrap_err().field, "dt");
        assert_eq!(DormandPrince::new(3, dt).unwrap_err().field, "dt");
    }
    let solver = DormandPrince::new(3, 0.1).unwrap();
    assert_eq!(solver.with_tolerances(0.0, 1e-6).unwrap_err().field, "rtol");
    assert_eq!(solver.with_tolerances(1e-3, -1.0).unwrap_err().field, "atol");
}
