//! What skipping saves: the time of one layer of a real size against the share of skipped slots.

use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use gatekit::core::ModuleConfig;
use gatekit::core::moe::MoeLayerConfig;
use gatekit::experts::modes::{SkippingMoeLayer, Thresholds, TokenModalities};
use gatekit_examples::{ExampleError, progress};

/// Tokens, width, experts, inner width, experts a token.
pub const FULL: [usize; 5] = [4096, 512, 64, 256, 8];
pub const QUICK: [usize; 5] = [256, 64, 16, 32, 8];
/// Shares of slots to skip.
const SHARES: [f64; 7] = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0];

/// Skip ratios and times relative to the layer that skips nothing and does not ask, medians over `rounds`; and the
/// seconds of that layer.
pub fn measure(
    size: [usize; 5],
    rounds: usize,
    device: &Device,
) -> Result<(Vec<(f64, f64)>, f64), ExampleError> {
    let [tokens, width, experts, inner, k] = size;
    let config = MoeLayerConfig::new(width, inner).with_num_experts(experts).with_num_experts_per_tok(k);
    let mut layer = SkippingMoeLayer::new(config.try_init(device)?.materialize(), device);
    let x = Tensor::<2>::random([tokens, width], Distribution::Normal(0.0, 1.0), device);
    let modalities = TokenModalities::text(tokens);
    // All tokens are text and all layers equally important: a score is a share.
    let whole = layer.forward_with(x.clone(), &modalities, &Default::default())?;
    let mut scores = whole.decision.scores().to_vec();
    scores.sort_by(f64::total_cmp);
    let threshold = |share: f64| match (share * scores.len() as f64) as usize {
        at if at < scores.len() => scores[at],
        _ => 2.0,
    };
    let bar = progress(rounds, "time of a layer");
    let (mut plain, mut times) = (Vec::new(), vec![Vec::new(); SHARES.len()]);
    let mut ratios = vec![0.0; SHARES.len()];
    // Round by round, so that what else the machine does falls on all alike.
    for _ in 0..rounds {
        let start = Instant::now();
        let _ = layer.layer.forward(x.clone()).into_data();
        plain.push(start.elapsed().as_secs_f64());
        for (index, share) in SHARES.into_iter().enumerate() {
            layer.skipper.set_thresholds(Thresholds::new(threshold(share), 0.0)?);
            let start = Instant::now();
            let forward = layer.forward_with(x.clone(), &modalities, &Default::default())?;
            let _ = forward.y.into_data();
            times[index].push(start.elapsed().as_secs_f64());
            ratios[index] = forward.decision.counts().ratio();
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let plain = median(plain);
    let relative = times.into_iter().map(|times| median(times) / plain);
    Ok((ratios.into_iter().zip(relative).collect(), plain))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
