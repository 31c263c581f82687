//! What published files call the tensors: the positions of the released graph.

use gatekit_core::checkpoint::TensorLayout;

/// Parts of cross-gating, after the names of the module.
const CROSS_GATING: [(&str, &str); 12] = [
    ("spatial_from_ir.conv.", "spatial_attention_generator_from_ir.0."),
    ("spatial_from_rgb.conv.", "spatial_attention_generator_from_rgb.0."),
    ("ir_to_rgb.reduce.", "ir_to_rgb_projection.0."),
    ("ir_to_rgb.reduce_norm.", "ir_to_rgb_projection.1."),
    ("ir_to_rgb.expand.", "ir_to_rgb_projection.3."),
    ("ir_to_rgb.expand_norm.", "ir_to_rgb_projection.4."),
    ("ir_to_rgb.gate.", "gate_generator_for_rgb_guidance."),
    ("rgb_to_ir.reduce.", "rgb_to_ir_projection.0."),
    ("rgb_to_ir.reduce_norm.", "rgb_to_ir_projection.1."),
    ("rgb_to_ir.expand.", "rgb_to_ir_projection.3."),
    ("rgb_to_ir.expand_norm.", "rgb_to_ir_projection.4."),
    ("rgb_to_ir.gate.", "gate_generator_for_ir_guidance."),
];

const PYRAMIDAL_GATING: [(&str, &str); 7] = [
    ("guide.", "spatial_gate.gate.0."),
    ("guide_norm.", "spatial_gate.gate.1."),
    ("spatial_gate.conv.", "spatial_gate.gate.3."),
    ("interaction_in.", "modality_interaction.0."),
    ("interaction_norm.", "modality_interaction.1."),
    ("interaction_out.", "modality_interaction.3."),
    ("softmax_gate.conv.", "softmax_gate."),
];

/// Positions of the stages: RGB, infrared and cross-gating or fusion at P3, P4, P5.
const STAGES: [(usize, usize); 3] = [(9, 11), (14, 16), (19, 21)];
const DOWN: [(usize, usize); 3] = [(3, 7), (10, 12), (15, 17)];

/// Names of a cross-gating whose tensors begin with `prefix`.
pub(super) fn cross_gating(layout: TensorLayout, prefix: &str) -> TensorLayout {
    CROSS_GATING.iter().fold(layout, |layout, (module, published)| {
        let prefix = format!("{prefix}fusion_layers.{{}}.");
        layout.with_prefix(&format!("{prefix}{module}"), &format!("{prefix}{published}"))
    })
}

/// Names of a pyramidal gating whose tensors begin with `prefix`.
pub(super) fn pyramidal_gating(layout: TensorLayout, prefix: &str) -> TensorLayout {
    PYRAMIDAL_GATING.iter().fold(layout, |layout, (module, published)| {
        layout.with_prefix(&format!("{prefix}{module}"), &format!("{prefix}{published}"))
    })
}

/// Names of the whole network.
pub(super) fn network() -> TensorLayout {
    let layout = cross_gating(TensorLayout::default(), "backbone.cross_gating.{}.");
    let layout = pyramidal_gating(layout, "backbone.pyramidal_gating.{}.");
    let mut names: Vec<(String, usize)> = Vec::new();
    for (modality, [stem, down2, stage2, sppf]) in [("rgb", [0, 1, 2, 20]), ("ir", [4, 5, 6, 22])] {
        let of_stream = [("stem", stem), ("down2", down2), ("stage2", stage2), ("sppf", sppf)];
        names.extend(of_stream.map(|(part, at)| (format!("backbone.{modality}.{part}"), at)));
    }
    for level in 0..3 {
        for (part, (rgb, ir)) in [("down", DOWN[level]), ("stage", STAGES[level])] {
            names.push((format!("backbone.rgb.{part}.{level}"), rgb));
            names.push((format!("backbone.ir.{part}.{level}"), ir));
        }
        names.push((format!("backbone.cross_gating.{level}"), [8, 13, 18][level]));
        names.push((format!("backbone.pyramidal_gating.{level}"), 23 + level));
    }
    let neck = [("top4", 28), ("out3", 31), ("down3", 32), ("out4", 34), ("down4", 35), ("out5", 37)];
    names.extend(neck.map(|(part, at)| (format!("neck.{part}"), at)));
    names.push(("head".to_string(), 38));
    let layout = (names.iter()).fold(layout, |layout, (module, at)| {
        layout.with_prefix(&format!("{module}."), &format!("model.{at}."))
    });
    let layout = [2, 3, 4].into_iter().fold(layout, |layout, branch| {
        [("first", 0), ("second", 1), ("project", 2)].into_iter().fold(layout, |layout, (part, at)| {
            let prefix = format!("model.38.cv{branch}.{{}}.");
            layout.with_prefix(&format!("{prefix}{part}."), &format!("{prefix}{at}."))
        })
    });
    // Fixed bins of the released head, and how many batches its normalisations saw.
    layout.with_ignored("model.38.dfl.").with_ignored_last("num_batches_tracked")
}
