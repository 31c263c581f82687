//! HyperP's rules and schedules beyond their golden cases.

use gatekit_experts::sqrtgate::{HyperPConfig, Schedule};

fn base() -> HyperPConfig {
    HyperPConfig::new(8, 10.4e9, 2097152.0, 100)
}

#[test]
fn the_base_run_has_the_base_rate_and_others_follow_their_powers() {
    let peak = |config: HyperPConfig| config.try_init().unwrap().peak_lr();
    assert_eq!(peak(base()), 0.014);
    let ratio = |config: HyperPConfig| peak(config) / 0.014;
    assert!((ratio(HyperPConfig { depth: 32, ..base() }) - 0.5).abs() < 1e-12);
    assert!((ratio(HyperPConfig { batch_tokens: 4.0 * 2097152.0, ..base() }) - 2.0).abs() < 1e-12);
    assert!((ratio(HyperPConfig { tokens: 2.0 * 10.4e9, ..base() }) - 2f64.powf(-0.32)).abs() < 1e-12);
    let deep = HyperPConfig { depth: 32, ..base() }.try_init().unwrap();
    assert_eq!(deep.residual_scale(), 0.125);
}

#[test]
fn every_schedule_begins_at_the_peak_and_ends_at_the_floor() {
    for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Wsd] {
        let rules = base().with_schedule(schedule).with_warmup_iters(10).try_init().unwrap();
        assert_eq!(rules.lr(0), 0.0);
        assert!((rules.lr(5) - 0.007).abs() < 1e-12);
        assert!((rules.lr(10) - 0.014).abs() < 1e-12, "{schedule:?}");
        for iteration in 10..110 {
            assert!(rules.lr(iteration + 1) <= rules.lr(iteration) + 1e-15, "{schedule:?} {iteration}");
        }
        for beyond in [100, 101, 1_000_000] {
            assert!((rules.lr(beyond) - 0.0014).abs() < 1e-12);
        }
    }
    let cosine = base().with_schedule(Schedule::Cosine).try_init().unwrap();
    assert!((cosine.lr(50) - 0.5 * (0.014 + 0.0014)).abs() < 1e-12);
    let flat = base().with_schedule(Schedule::Wsd).try_init().unwrap();
    assert_eq!(flat.lr(71), flat.peak_lr());
    assert!(flat.lr(72) < flat.peak_lr());
}

#[test]
fn runs_that_cannot_be_are_named() {
    for (field, config) in [
        ("depth", HyperPConfig { depth: 0, ..base() }),
        ("tokens", HyperPConfig { tokens: 0.0, ..base() }),
        ("tokens", HyperPConfig { tokens: f64::NAN, ..base() }),
        ("batch_tokens", HyperPConfig { batch_tokens: -1.0, ..base() }),
        ("base_lr", base().with_base_lr(0.0)),
        ("base_depth", base().with_base_depth(0)),
        ("base_tokens", base().with_base_tokens(-3.0)),
        ("base_batch_tokens", base().with_base_batch_tokens(f64::INFINITY)),
        ("data_exponent", base().with_data_exponent(f64::NAN)),
        ("min_lr_mult", base().with_min_lr_mult(1.5)),
        ("warmup_iters", base().with_warmup_iters(100)),
        ("warmup_iters", HyperPConfig { total_iters: 0, ..base() }),
    ] {
        let error = config.try_init().expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
}
