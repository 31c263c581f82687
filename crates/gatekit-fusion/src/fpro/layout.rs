//! What published files call the tensors.

use gatekit_core::checkpoint::TensorLayout;

fn renamed(layout: TensorLayout, prefix: &str, names: &[(&str, &str)]) -> TensorLayout {
    names.iter().fold(layout, |layout, (module, published)| {
        layout.with_prefix(&format!("{prefix}{module}"), &format!("{prefix}{published}"))
    })
}

/// Names of a dynamic filter whose tensors begin with `prefix`.
pub(super) fn filter(layout: TensorLayout, prefix: &str) -> TensorLayout {
    renamed(layout, prefix, &[("gate.body.0.", "conv_gate.")])
}

/// Names of a prompt generator whose tensors begin with `prefix`.
pub(super) fn generator(layout: TensorLayout, prefix: &str) -> TensorLayout {
    renamed(layout, prefix, &[("gate.", "")])
}

/// Names of a prompt module whose tensors begin with `prefix`.
pub(super) fn prompt_module(layout: TensorLayout, prefix: &str) -> TensorLayout {
    let layout = ["high_generator.", "low_generator."]
        .iter()
        .fold(layout, |layout, part| generator(layout, &format!("{prefix}{part}")));
    renamed(
        layout,
        prefix,
        &[
            ("high_generator.", "FSPG_high."),
            ("low_generator.", "FSPG_low."),
            ("modulator_hi.to_q.", "modulator_hi.to_q.to_q."),
            ("modulator_hi.to_kv.", "modulator_hi.to_kv.to_kv."),
            ("simple_fusion.", "simple_Fusion."),
        ],
    )
}

/// Names of the whole network.
pub(super) fn network() -> TensorLayout {
    let layout = filter(TensorLayout::default(), "prompting.filter.");
    let layout = prompt_module(layout, "prompting.modules.{}.");
    let layout = (1..=3).fold(layout, |layout, level| {
        let layout = renamed(layout, &format!("encoder_level{level}.{{}}."), &[("norm2.", "norm2.body.")]);
        blocks(layout, &format!("decoder_level{level}.{{}}."))
    });
    let layout = blocks(layout, "refinement.{}.");
    let stages = [
        ("prompting.modules.0.", "prompt_d3."),
        ("prompting.modules.1.", "prompt_d2."),
        ("prompting.modules.2.", "prompt_d1."),
        ("prompting.modules.3.", "prompt_r."),
        ("prompting.filter.", "splitFre.dyna_channel."),
        ("patch_embed.", "patch_embed.proj."),
        ("down1_2.", "down1_2.body.0."),
        ("down2_3.", "down2_3.body.0."),
        ("up3_2.", "up3_2.body.0."),
        ("up2_1.", "up2_1.body.0."),
    ];
    renamed(layout, "", &stages)
}

fn blocks(layout: TensorLayout, prefix: &str) -> TensorLayout {
    renamed(layout, prefix, &[("norm1.", "norm1.body."), ("norm2.", "norm2.body.")])
}
