//! The rule by which slots are skipped.

use gatekit_core::probe::Probe;
use gatekit_experts::modes::{
    Bypass, ExpertSkipper, ExpertSkipperConfig, Modality, SkipCounts, SkipStats, Thresholds,
};

use super::*;

fn skipper(thresholds: (f64, f64), importance: [f64; 2], device: &Device) -> ExpertSkipper {
    let config = ExpertSkipperConfig::new(4).with_threshold_text(thresholds.0);
    let mut skipper = config.with_threshold_vision(thresholds.1).init(device);
    skipper.set_importance(importance).unwrap();
    skipper
}

#[test]
fn a_score_on_the_threshold_is_kept() {
    for device in devices() {
        let skipper = skipper((0.25, 0.5), [0.5, 1.0], &device);
        let experts = [0, 1, 2, 3, 1, 0];
        let modalities = TokenModalities::from_codes(&[0, 1, 2]).unwrap();
        let on = routing(&experts, &[0.5; 6], 2, 4, &device);
        let (pruned, decision) = skipper.prune(on.clone(), &modalities).unwrap();
        assert_eq!(decision.scores(), [0.25, 0.25, 0.5, 0.5, 0.5, 0.5]);
        assert_eq!(decision.keep(), [true; 6]);
        assert_eq!(pruned.assignment, on.assignment);
        let off = routing(&experts, &[0.75, 0.25, 0.75, 0.25, 0.75, 0.25], 2, 4, &device);
        let (pruned, decision) = skipper.prune(off, &modalities).unwrap();
        // The special token's second expert has a share below both thresholds.
        assert_eq!(decision.keep(), [true, false, true, false, true, true]);
        assert_eq!(values(pruned.weights), [0.75, 0.0, 0.75, 0.0, 0.75, 0.25]);
        assert_eq!(decision.counts().ratio(), 2.0 / 6.0);
        assert_eq!(decision.counts().ratio_of(Modality::Text), 0.5);
        assert_eq!(decision.counts().ratio_of(Modality::Other), 0.0);
    }
}

#[test]
fn shares_do_not_depend_on_the_scale_of_the_weights() {
    for device in devices() {
        let skipper = skipper((0.1, 0.1), [0.5, 0.3], &device);
        let weights = [0.2, 0.15, 0.1, 0.4, 0.05, 0.01];
        let scaled = weights.map(|weight| 2.446 * weight);
        let modalities = TokenModalities::from_codes(&[0, 1]).unwrap();
        let decide = |weights: &[f64]| {
            let routing = routing(&[0, 1, 2, 3, 1, 0], weights, 3, 4, &device);
            skipper.decide(&routing, &modalities).unwrap()
        };
        let (plain, scaled) = (decide(&weights), decide(&scaled));
        assert_close(plain.scores(), scaled.scores(), 1e-6);
        assert_eq!(plain.keep(), scaled.keep());
    }
}

#[test]
fn one_expert_a_token_has_the_whole_share() {
    for device in devices() {
        let routing = routing(&[0, 3, 2], &[0.3, 1.0, 1e-3], 1, 4, &device);
        let modalities = TokenModalities::text(3);
        let decide = |threshold, alpha| {
            let skipper = skipper((threshold, 0.0), [alpha, 1.0], &device);
            skipper.decide(&routing, &modalities).unwrap()
        };
        assert_eq!(decide(1.0, 1.0).scores(), [1.0; 3]);
        assert_eq!(decide(1.0, 1.0).keep(), [true; 3]);
        assert_eq!(decide(1.0, 0.5).keep(), [false; 3]);
    }
}

#[test]
fn all_slots_of_a_token_may_be_skipped_and_weights_of_zero_have_no_share() {
    for device in devices() {
        let skipper = skipper((f64::INFINITY, 0.1), [1.0, 1.0], &device);
        let routing = routing(&[0, 1, 2, 3], &[0.5, 0.5, 0.0, 0.0], 2, 4, &device);
        let modalities = TokenModalities::from_codes(&[0, 1]).unwrap();
        let (pruned, decision) = skipper.prune(routing, &modalities).unwrap();
        assert_eq!(decision.scores()[2..], [0.0, 0.0]);
        assert_eq!(pruned.assignment.experts(), [4; 4]);
        assert_eq!(decision.counts().ratio(), 1.0);
        assert_eq!(decision.keep_mask(&device).into_data().iter::<bool>().collect::<Vec<_>>(), [false; 4]);
    }
}

#[test]
fn padding_is_not_counted() {
    let device = &devices()[1];
    let skipper = skipper((0.3, 0.3), [1.0, 1.0], device);
    let routing = routing(&[0, 1, 2, 3, 0, 1], &[0.9, 0.1, 0.9, 0.1, 0.9, 0.1], 2, 4, device);
    let modalities = TokenModalities::from_codes(&[0, 0, 1]).unwrap();
    let modalities = modalities.with_mask(vec![true, false, true]).unwrap();
    let counts = skipper.decide(&routing, &modalities).unwrap().counts();
    assert_eq!(counts, SkipCounts { skipped: [1, 1, 0], total: [2, 2, 0] });
}

#[test]
fn a_bypass_takes_the_experts_and_leaves_the_counts() {
    for device in devices() {
        let mut skipper = skipper((0.3, 0.3), [1.0, 1.0], &device);
        skipper.set_bypass(Bypass::Vision);
        let routing = routing(&[0, 1, 2, 3, 0, 1], &[0.9, 0.1, 0.9, 0.1, 0.9, 0.1], 2, 4, &device);
        let modalities = TokenModalities::from_codes(&[0, 1, 2]).unwrap();
        let (pruned, decision) = skipper.prune(routing, &modalities).unwrap();
        assert_eq!(pruned.assignment.experts(), [0, 4, 4, 4, 0, 1]);
        assert_eq!(decision.keep(), [true, false, true, false, true, true]);
        assert_eq!(decision.counts().ratio(), 2.0 / 6.0);
    }
    assert_eq!(Bypass::of(Modality::Other), Bypass::None);
}

#[test]
fn what_is_no_threshold_or_importance_is_refused() {
    let device = &devices()[1];
    for (text, vision, field) in
        [(-0.1, 0.0, "threshold_text"), (f64::NAN, 0.0, "threshold_text"), (0.0, -1e-9, "threshold_vision")]
    {
        assert_refused(Thresholds::new(text, vision), &[field, "at least 0"]);
        let config = ExpertSkipperConfig::new(4).with_threshold_text(text).with_threshold_vision(vision);
        assert_eq!(config.try_init(device).unwrap_err().field, field);
    }
    assert_eq!(ExpertSkipperConfig::new(0).try_init(device).unwrap_err().field, "num_experts");
    let mut skipper = ExpertSkipperConfig::new(4).init(device);
    for importance in [[-0.1, 1.0], [1.0, f64::NAN], [f64::INFINITY, 1.0]] {
        assert_refused(skipper.set_importance(importance), &["importance", "at least 0"]);
    }
    // From a checkpoint it can come all the same.
    skipper.importance = Param::from_tensor(tensor(&[0.5, f64::NAN], [2], device));
    let routing = routing(&[0, 1], &[0.5, 0.5], 2, 4, device);
    assert_refused(skipper.decide(&routing, &TokenModalities::text(1)), &["importance", "NaN"]);
    skipper.importance = Param::from_tensor(tensor(&[0.5, 0.5], [2], device));
    assert_refused(skipper.decide(&routing, &TokenModalities::text(2)), &["modality", "2 tokens", "1"]);
}

#[test]
#[should_panic(expected = "`routing` has 4 experts, the skipper 5")]
fn a_routing_of_other_experts_is_refused() {
    let device = &devices()[1];
    let skipper = ExpertSkipperConfig::new(5).init(device);
    let _ = skipper.decide(&routing(&[0], &[1.0], 1, 4, device), &TokenModalities::text(1));
}

#[test]
fn statistics_add_up() {
    let one = SkipCounts { skipped: [1, 2, 0], total: [4, 4, 2] };
    let two = SkipCounts { skipped: [3, 0, 0], total: [4, 4, 2] };
    let mut stats = SkipStats::default();
    assert_eq!(stats.ratio(), 0.0);
    stats.merge(&SkipStats::new(vec![one, two]));
    stats.merge(&SkipStats::new(vec![one, one]));
    assert_eq!(stats.layers()[0], SkipCounts { skipped: [2, 4, 0], total: [8, 8, 4] });
    assert_eq!(stats.ratio(), 12.0 / 40.0);
    assert_eq!(stats.total().ratio_of(Modality::Text), 6.0 / 16.0);
    let table = stats.table();
    assert!(table.contains("30.0%") && table.lines().count() == 4, "{table}");
    let mut probe = Probe::new();
    stats.record(&mut probe, 3);
    assert_eq!(probe.last("skipped"), Some(0.3));
    assert_eq!(probe.points("skipped/layer 2"), [(3, 0.3)]);
    let nothing = SkipStats::new(vec![SkipCounts::default()]);
    assert!(nothing.ratio() == 0.0 && nothing.table().contains('-'));
}

#[test]
#[should_panic(expected = "1 layers cannot be added to 2")]
fn statistics_of_another_model_are_refused() {
    let mut stats = SkipStats::new(vec![SkipCounts::default(); 2]);
    stats.merge(&SkipStats::new(vec![SkipCounts::default()]));
}
