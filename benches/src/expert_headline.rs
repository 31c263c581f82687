//! The figures of the expert layers, computed from the rows of a report.

use crate::{
    figure::{Figure, Goal, Unit, at_least, at_most},
    op::{Op, Pass, experts_per_token},
    plan::on_cpu,
    row::Row,
    shape::Shape,
};

/// Who takes part.
pub const OPS: [Op; 7] =
    [Op::MoeLayer, Op::Routing, Op::DenseSwiGlu, Op::SortedExperts, Op::SkippingMoe, Op::Acm, Op::AcmQuarter];
/// 4096 tokens of width 512, 64 experts of inner width 256.
pub const SHAPE: Shape = Shape { value_dim: 256, ..Shape::new(1, 4096, 64, 512) };

const DENSE: Goal = at_most("against a dense SwiGLU of the same active width", Unit::Times, 1.35, 1.1);
const TORCH: Goal = at_least("against PyTorch", Unit::Times, 1.5, 3.0);
const ROUTING: Goal = at_most("share of scores, choice and order", Unit::Share, 0.15, 0.05);
const ALL_BUT_EXPERTS: Goal =
    at_most("share of all but experts over sorted tokens, gather and sum included", Unit::Share, 0.15, 0.05);
const SKIPPING: Goal =
    at_most("with four of five experts skipped, share of its time", Unit::Times, 0.35, 0.25);
const QUARTER: Goal = at_most("a quarter of the learners, share of the time of all", Unit::Times, 0.35, 0.27);
const MEMORY: Goal = at_most("extra memory over the routed activations", Unit::Times, 3.0, 2.0);

/// The figures that the rows suffice for, by device; a case is a pass.
pub fn figures(rows: &[Row]) -> Vec<Figure> {
    let layers: Vec<&Row> =
        rows.iter().filter(|row| row.op == Op::MoeLayer.name() && row.form == "fused").collect();
    let mut devices: Vec<&str> = layers.iter().map(|row| row.device.as_str()).collect();
    devices.sort_unstable();
    devices.dedup();
    let mut figures = Vec::new();
    for device in devices {
        let mut figure = |goal: Goal, op: Op, value: &dyn Fn(&Row) -> Option<f64>| {
            let of_device = layers.iter().filter(|row| row.device == device);
            let cases: Vec<_> = of_device
                .filter_map(|row| Some((format!("{}, {}", row.pass, row.shape()), value(row)?)))
                .collect();
            if !cases.is_empty() {
                figures.push(goal.figure(device, op.name(), cases));
            }
        };
        figure(DENSE, Op::MoeLayer, &|row| {
            Some(row.median_s? / of(rows, row, device, Op::DenseSwiGlu)?.median_s?)
        });
        figure(TORCH, Op::MoeLayer, &|row| {
            Some(of(rows, row, "torch", Op::MoeLayer)?.median_s? / row.median_s?)
        });
        figure(ROUTING, Op::MoeLayer, &|row| {
            Some(of(rows, row, device, Op::Routing)?.median_s? / row.median_s?)
        });
        figure(ALL_BUT_EXPERTS, Op::MoeLayer, &|row| {
            let experts = of(rows, row, device, Op::SortedExperts)?.median_s?;
            // A difference of two measured times: it may come out below 0.
            Some((1.0 - experts / row.median_s?).max(0.0))
        });
        figure(SKIPPING, Op::SkippingMoe, &|row| {
            Some(of(rows, row, device, Op::SkippingMoe)?.median_s? / row.median_s?)
        });
        figure(QUARTER, Op::AcmQuarter, &|row| {
            let all = of(rows, row, device, Op::Acm)?.median_s?;
            Some(of(rows, row, device, Op::AcmQuarter)?.median_s? / all)
        });
        figure(MEMORY, Op::MoeLayer, &|row| {
            let routed =
                row.batch * row.time * experts_per_token(row.shape()) * row.key_dim * size_of::<f32>();
            let trained = row.pass == Pass::ForwardBackward && on_cpu(device);
            Some(row.extra_bytes? as f64 / routed as f64).filter(|_| trained)
        });
    }
    figures
}

/// The row of another contestant of the same contest and shape.
fn of<'a>(rows: &'a [Row], row: &Row, device: &str, op: Op) -> Option<&'a Row> {
    rows.iter().find(|other| {
        let same = other.contest == row.contest && other.shape() == row.shape();
        same && other.device == device && other.op == op.name()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{figure::Verdict, row::samples};

    /// Rows of one contest.
    fn row(op: Op, device: &str, pass: Pass, seconds: f64) -> Row {
        let form = if device == "torch" { "PyTorch" } else { "fused" };
        let contest = format!("experts {pass}");
        Row { contest, ..samples::row(op.name(), form, device, pass, SHAPE, seconds) }
    }

    #[test]
    fn the_layer_is_compared_within_its_contest() {
        let pass = Pass::ForwardBackward;
        let mut layer = row(Op::MoeLayer, "flex", pass, 0.10);
        layer.extra_bytes = Some(5 * 32768 * 512 * 2);
        let rows = [
            layer,
            row(Op::DenseSwiGlu, "flex", pass, 0.08),
            row(Op::Routing, "flex", pass, 0.01),
            row(Op::MoeLayer, "torch", pass, 0.40),
            row(Op::MoeLayer, "torch", Pass::Forward, 9.0),
        ];
        let figures = figures(&rows);
        let values: Vec<f64> = figures.iter().map(|figure| figure.cases[0].1).collect();
        for (value, expected) in values.iter().zip([1.25, 4.0, 0.1, 2.5]) {
            assert!((value - expected).abs() < 1e-9, "{values:?}");
        }
        let verdicts: Vec<Verdict> = figures.iter().map(|figure| figure.verdict).collect();
        assert_eq!(verdicts, [Verdict::Bar, Verdict::Aim, Verdict::Bar, Verdict::Bar]);
    }

    #[test]
    fn what_experts_over_sorted_tokens_take_is_no_overhead() {
        let share = |experts: f64| {
            let rows = [
                row(Op::MoeLayer, "flex", Pass::Forward, 0.10),
                row(Op::SortedExperts, "flex", Pass::Forward, experts),
            ];
            figures(&rows)[0].cases[0].1
        };
        assert!((share(0.08) - 0.2).abs() < 1e-9 && share(0.11) == 0.0);
    }

    #[test]
    fn a_figure_needs_its_rows() {
        assert!(figures(&[row(Op::MoeLayer, "flex", Pass::Forward, 0.1)]).is_empty());
        assert!(figures(&[row(Op::DenseSwiGlu, "flex", Pass::Forward, 0.1)]).is_empty());
    }
}
