//! How fast the heads of every layer forget.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the decays of a model's heads and layers are chosen. They are not trained.
///
/// In configuration files it is its name in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecaySchedule {
    /// That of the released models: slopes are powers of two over the heads,
    /// `base_h (1 - l / max(L - 1, 1) + 1e-5)`.
    #[default]
    Geometric,
    /// The one printed in the paper: `(8 h / H) (1 - l / L)`, h from 1.
    Linear,
    /// Slope 0 everywhere: nothing is forgotten, the ablation without decay.
    None,
}

impl fmt::Display for DecaySchedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Geometric => "geometric",
            Self::Linear => "linear",
            Self::None => "none",
        })
    }
}

/// The slopes of the heads of `layer` (counted from 0) of `num_layers`: `exp(-slope)` of the
/// memory survives a step.
///
/// Geometric: `base_h = 2^(-8h/H)` for h = 1 .. H when H is a power of two. Otherwise, with P the
/// greatest power of two below H, the P bases of P heads and then every other base of 2P heads,
/// the first of them first. Qin et al. (arXiv 2307.14995), section 3.1, and the released code.
pub fn slope_rates(schedule: DecaySchedule, num_heads: usize, layer: usize, num_layers: usize) -> Vec<f64> {
    let (layer, layers) = (layer as f64, num_layers as f64);
    match schedule {
        DecaySchedule::Geometric => {
            let factor = 1.0 - layer / (layers - 1.0).max(1.0) + 1e-5;
            bases(num_heads).into_iter().map(|base| base * factor).collect()
        }
        DecaySchedule::Linear => {
            let factor = 1.0 - layer / layers.max(1.0);
            (1..=num_heads).map(|head| 8.0 * head as f64 / num_heads as f64 * factor).collect()
        }
        DecaySchedule::None => vec![0.0; num_heads],
    }
}

fn bases(heads: usize) -> Vec<f64> {
    if heads == 0 {
        return Vec::new();
    }
    let geometric = |count: usize| -> Vec<f64> {
        (1..=count).map(|head| 2f64.powf(-8.0 * head as f64 / count as f64)).collect()
    };
    let power = 1 << heads.ilog2();
    let further = geometric(2 * power).into_iter().step_by(2).take(heads - power);
    geometric(power).into_iter().chain(further).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len(), "{got:?}");
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn powers_of_two_over_the_heads() {
        let first = |heads| slope_rates(DecaySchedule::Geometric, heads, 0, 1);
        let factor = 1.0 + 1e-5;
        let want: Vec<f64> = (1..=8).map(|head| 2f64.powi(-head) * factor).collect();
        assert_close(&first(8), &want);
        assert_close(&first(1), &[2f64.powi(-8) * factor]);
        // Three heads: those of two, then the first of four.
        assert_close(&first(3), &[2f64.powi(-4), 2f64.powi(-8), 2f64.powi(-2)].map(|base| base * factor));
        // Six heads: those of four, then the first and the third of eight.
        let six = [-2, -4, -6, -8, -1, -3].map(|exponent| 2f64.powi(exponent) * factor);
        assert_close(&first(6), &six);
        assert!(first(0).is_empty());
    }

    #[test]
    fn upper_layers_forget_less() {
        let layer = |layer| slope_rates(DecaySchedule::Geometric, 2, layer, 5);
        assert_close(&layer(1), &[2f64.powi(-4) * 0.75001, 2f64.powi(-8) * 0.75001]);
        assert_close(&layer(4), &[2f64.powi(-4) * 1e-5, 2f64.powi(-8) * 1e-5]);

        let linear = |layer| slope_rates(DecaySchedule::Linear, 4, layer, 2);
        assert_close(&linear(0), &[2.0, 4.0, 6.0, 8.0]);
        assert_close(&linear(1), &[1.0, 2.0, 3.0, 4.0]);
        assert_close(&slope_rates(DecaySchedule::None, 3, 1, 2), &[0.0; 3]);
    }

    #[test]
    fn schedules_are_called_by_their_names() {
        for schedule in [DecaySchedule::Geometric, DecaySchedule::Linear, DecaySchedule::None] {
            let json = serde_json::to_value(schedule).unwrap();
            assert_eq!(json, schedule.to_string());
            assert_eq!(serde_json::from_value::<DecaySchedule>(json).unwrap(), schedule);
        }
    }
}
