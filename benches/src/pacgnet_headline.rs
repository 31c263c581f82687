//! The figures of PACGNet, computed from the rows of a report.

use crate::{
    figure::{Figure, Goal, Unit, at_most},
    op::{Op, Pass},
    row::Row,
    shape::Shape,
};

/// Who takes part.
pub const OPS: [Op; 3] = [Op::PacgNet, Op::PacgNetGates, Op::PacgNetConvolutions];
/// One pair of images of 640 pixels a side at inference, eight of 96 in training.
pub const SHAPES: [Shape; 2] = [Shape::new(1, 640, 1, 3), Shape::new(8, 96, 1, 3)];

const FORWARD: Goal = at_most("forward, share of PyTorch's time", Unit::Times, 1.5, 0.8);
const TRAINING: Goal = at_most("training step, share of PyTorch's time", Unit::Times, 1.5, 0.8);
const GATES: Goal = at_most("gates, share of the network's time", Unit::Share, 0.25, 0.15);

/// The figures that the rows suffice for, on the device that is fastest in each.
pub fn figures(rows: &[Row]) -> Vec<Figure> {
    let network = |pass: Pass| {
        let of_pass = rows.iter().filter(move |row| row.op == Op::PacgNet.name() && row.pass == pass);
        of_pass.filter(|row| row.form == "fused").min_by(|a, b| {
            let seconds = |row: &Row| row.median_s.unwrap_or(f64::INFINITY);
            seconds(a).total_cmp(&seconds(b))
        })
    };
    let other = |row: &Row, device: &str, op: Op| {
        let same = |other: &&Row| {
            other.contest == row.contest && other.shape() == row.shape() && other.device == device
        };
        rows.iter().filter(same).find(|other| other.op == op.name())?.median_s
    };
    let torch = |row: &Row| Some(row.median_s? / other(row, "torch", Op::PacgNet)?);
    let gates = |row: &Row| Some(other(row, &row.device, Op::PacgNetGates)? / row.median_s?);
    let wanted: [(Goal, Pass, &dyn Fn(&Row) -> Option<f64>); 3] = [
        (FORWARD, Pass::Forward, &torch),
        (TRAINING, Pass::ForwardBackward, &torch),
        (GATES, Pass::Forward, &gates),
    ];
    let figure = |(goal, pass, value): (Goal, Pass, &dyn Fn(&Row) -> Option<f64>)| {
        let row = network(pass)?;
        let cases = vec![(row.shape().to_string(), value(row)?)];
        Some(goal.figure(&row.device, Op::PacgNet.name(), cases))
    };
    wanted.into_iter().filter_map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{figure::Verdict, row::samples};

    fn row(op: Op, device: &str, pass: Pass, seconds: f64) -> Row {
        let form = if device == "torch" { "PyTorch" } else { "fused" };
        let shape = SHAPES[usize::from(pass == Pass::ForwardBackward)];
        let contest = format!("pacgnet {pass}");
        Row { contest, ..samples::row(op.name(), form, device, pass, shape, seconds) }
    }

    #[test]
    fn the_faster_device_counts() {
        let (forward, step) = (Pass::Forward, Pass::ForwardBackward);
        let rows = [
            row(Op::PacgNet, "ndarray", forward, 0.4),
            row(Op::PacgNetGates, "ndarray", forward, 0.3),
            row(Op::PacgNet, "flex", forward, 0.1),
            row(Op::PacgNetGates, "flex", forward, 0.02),
            row(Op::PacgNet, "torch", forward, 0.2),
            row(Op::PacgNet, "flex", step, 0.5),
            row(Op::PacgNet, "ndarray", step, 0.3),
            row(Op::PacgNet, "torch", step, 0.1),
        ];
        let figures = figures(&rows);
        let reached: Vec<_> = figures.iter().map(|one| (one.device.as_str(), one.verdict)).collect();
        assert_eq!(reached, [("flex", Verdict::Aim), ("ndarray", Verdict::Missed), ("flex", Verdict::Bar)]);
        for (figure, value) in figures.iter().zip([0.5, 3.0, 0.2]) {
            assert!((figure.cases[0].1 - value).abs() < 1e-9, "{figure:?}");
        }
    }

    #[test]
    fn a_figure_needs_its_rows() {
        assert!(figures(&[row(Op::PacgNetGates, "flex", Pass::Forward, 0.1)]).is_empty());
        assert!(figures(&[row(Op::PacgNet, "flex", Pass::Forward, 0.1)]).is_empty());
    }
}
