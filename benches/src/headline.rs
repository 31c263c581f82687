//! The headline figures, computed from the rows of a report.

use crate::{
    figure::{Figure, Goal, Unit, at_least, at_most},
    op::Pass,
    plan::{HEADLINE_OPS, on_cpu},
    row::{COPY, MATMUL, Row},
};

/// From here on a state is larger than the caches.
const LARGE_STATE: usize = 64 << 20;
/// From here on memory is looked at.
const LONG: usize = 32768;

/// The figures that the rows suffice for, in the order of their list, then by device and op.
pub fn figures(rows: &[Row]) -> Vec<Figure> {
    let table = Table { rows };
    let torch = |op: &str| match op {
        "kda" => at_least("forward+backward against PyTorch", Unit::Times, 15.0, 50.0),
        _ => at_least("forward+backward against PyTorch", Unit::Times, 4.0, 10.0),
    };
    let mut figures = Vec::new();
    table.collect(&mut figures, torch, |row| table.against(row, "torch", Pass::ForwardBackward));
    table.collect(
        &mut figures,
        |_| at_least("forward against ggml", Unit::Times, 1.0, 3.0),
        |row| table.against(row, "ggml", Pass::Forward),
    );
    table.collect(
        &mut figures,
        |_| at_least("forward, share of the matrix-product peak", Unit::Share, 0.3, 0.6),
        |row| table.peak_share(row).filter(|_| on_cpu(&row.device)),
    );
    table.collect(
        &mut figures,
        |_| at_least("decode against ggml, state in the caches", Unit::Times, 1.0, 1.5),
        |row| table.against(row, "ggml", Pass::Decode).filter(|_| row.shape().state_bytes() < LARGE_STATE),
    );
    table.collect(
        &mut figures,
        |_| at_least("decode of a large state, share of a copy's bandwidth", Unit::Share, 0.5, 0.9),
        |row| table.bandwidth_share(row).filter(|_| row.shape().state_bytes() >= LARGE_STATE),
    );
    table.collect(
        &mut figures,
        |_| at_most("forward+backward, cost of 16 times the length", Unit::Times, 17.0, 16.0),
        |row| table.cost_of_length(row),
    );
    table.collect(
        &mut figures,
        |_| at_most("forward+backward, extra memory over inputs", Unit::Times, 1.0, 0.3),
        |row| {
            let long = row.pass == Pass::ForwardBackward && row.time >= LONG;
            Some(row.extra_bytes? as f64 / row.input_bytes? as f64).filter(|_| long)
        },
    );
    table.collect(
        &mut figures,
        |_| at_least("forward+backward, fused over portable", Unit::Times, 3.0, 10.0),
        |row| table.over_portable(row).filter(|_| on_cpu(&row.device)),
    );
    for (figure, pass) in [
        ("forward against Triton", Pass::Forward),
        ("forward+backward against Triton", Pass::ForwardBackward),
    ] {
        table.collect(
            &mut figures,
            |_| at_least(figure, Unit::Times, 0.7, 1.5),
            |row| table.against(row, "fla", pass).filter(|_| !on_cpu(&row.device)),
        );
    }
    figures
}

/// The largest rate of a matrix product: on the processor whoever computed it, us or a peer; on a GPU
/// through the same device.
pub fn matmul_peak(rows: &[Row], device: &str, dtype: &str) -> Option<f64> {
    let same_place = |row: &Row| {
        if on_cpu(device) { on_cpu(&row.device) || row.device == "torch" } else { row.device == device }
    };
    rows.iter()
        .filter(|row| row.op == MATMUL && row.dtype == dtype && same_place(row))
        .filter_map(|row| row.flops)
        .reduce(f64::max)
}

/// Where an op stands among the headline's.
fn place(op: &str) -> usize {
    HEADLINE_OPS.iter().position(|known| known.name() == op).unwrap_or(HEADLINE_OPS.len())
}

/// Shapes and values.
type Cases = Vec<(String, f64)>;

struct Table<'a> {
    rows: &'a [Row],
}

impl<'a> Table<'a> {
    /// One figure a device and op, of what `value` says of our fused rows.
    fn collect(
        &self,
        figures: &mut Vec<Figure>,
        goal: impl Fn(&str) -> Goal,
        value: impl Fn(&Row) -> Option<f64>,
    ) {
        let mut groups: Vec<(&Row, Cases)> = Vec::new();
        for row in self.rows.iter().filter(|row| row.form == "fused") {
            if place(&row.op) == HEADLINE_OPS.len() {
                continue;
            }
            let Some(value) = value(row) else { continue };
            let case = (row.shape().to_string(), value);
            let of_row = |group: &&mut (&Row, Cases)| group.0.device == row.device && group.0.op == row.op;
            match groups.iter_mut().find(of_row) {
                Some((_, cases)) => cases.push(case),
                None => groups.push((row, vec![case])),
            }
        }
        groups.sort_by(|(a, _), (b, _)| (&a.device, place(&a.op)).cmp(&(&b.device, place(&b.op))));
        figures
            .extend(groups.into_iter().map(|(row, cases)| goal(&row.op).figure(&row.device, &row.op, cases)));
    }

    fn of_contest(&self, row: &'a Row) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |other| other.contest == row.contest)
    }

    fn against(&self, row: &Row, peer: &str, pass: Pass) -> Option<f64> {
        let theirs = self.of_contest(row).find(|other| other.device == peer)?.median_s?;
        Some(theirs / row.median_s?).filter(|_| row.pass == pass)
    }

    fn peak_share(&self, row: &Row) -> Option<f64> {
        // The contests of two lengths repeat what the others have.
        let own = row.contest.ends_with(&row.shape().to_string());
        Some(row.flops? / matmul_peak(self.rows, &row.device, &row.dtype)?).filter(|_| own)
    }

    fn bandwidth_share(&self, row: &Row) -> Option<f64> {
        let place = if on_cpu(&row.device) { "memory" } else { &row.device };
        let copy = self.of_contest(row).find(|other| other.op == COPY && other.device == place)?;
        Some(row.bytes_per_s? / copy.bytes_per_s?)
    }

    fn cost_of_length(&self, row: &Row) -> Option<f64> {
        let short = self.of_contest(row).find(|other| {
            16 * other.time == row.time && other.device == row.device && other.form == row.form
        })?;
        let same = short.shape().with_time(row.time) == row.shape();
        Some(row.median_s? / short.median_s?).filter(|_| same && row.pass == Pass::ForwardBackward)
    }

    fn over_portable(&self, row: &Row) -> Option<f64> {
        let portable =
            self.of_contest(row).find(|other| other.form == "portable" && other.device == row.device)?;
        Some(portable.median_s? / row.median_s?).filter(|_| row.pass == Pass::ForwardBackward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Verdict;
    use crate::{row::samples::row, shape::Shape};

    const SHAPE: Shape = Shape::new(1, 2048, 4, 64);

    fn only(rows: &[Row]) -> Figure {
        let figures = figures(rows);
        assert_eq!(figures.len(), 1, "{figures:?}");
        figures.into_iter().next().expect("one")
    }

    fn value(figure: &Figure) -> f64 {
        figure.cases[0].1
    }

    #[test]
    fn ratios_to_peers_stay_within_a_contest() {
        let both = |op: &str, ours: f64| {
            let pass = Pass::ForwardBackward;
            [
                row(op, "fused", "flex", pass, SHAPE, ours),
                row(op, "PyTorch, chunked", "torch", pass, SHAPE, 0.08),
            ]
        };
        let figure = only(&both("gla", 0.01));
        assert!((value(&figure) - 8.0).abs() < 1e-12 && figure.verdict == Verdict::Bar);
        // Kimi delta attention has other goals.
        assert_eq!(only(&both("kda", 0.01)).verdict, Verdict::Missed);
        let [ours, mut theirs] = both("gla", 0.01);
        theirs.contest = "another".into();
        assert!(figures(&[ours, theirs]).is_empty());
    }

    #[test]
    fn the_worst_case_decides() {
        let shapes = [SHAPE, Shape::new(4, 1024, 8, 64)];
        let rows: Vec<Row> = shapes
            .iter()
            .zip([0.001, 0.02])
            .flat_map(|(&shape, ours)| {
                let row = |form, device, seconds| row("kda", form, device, Pass::Forward, shape, seconds);
                [row("fused", "ndarray", ours), row("fused per token", "ggml", 0.01)]
            })
            .collect();
        let figure = only(&rows);
        assert_eq!(figure.cases.len(), 2);
        assert_eq!((figure.device.as_str(), figure.verdict), ("ndarray", Verdict::Missed));
    }

    #[test]
    fn the_peak_is_the_largest_product_of_the_place() {
        let mut ours = row("gla", "fused", "flex", Pass::Forward, SHAPE, 0.01);
        ours.flops = Some(60e9);
        let product = |device: &str, flops: f64| {
            let mut product =
                row(MATMUL, "product", device, Pass::Forward, Shape::new(1, 1024, 1, 1024), 0.01);
            product.flops = Some(flops);
            product
        };
        let rows = [ours, product("flex", 100e9), product("torch", 150e9), product("wgpu", 900e9)];
        let figure = only(&rows);
        assert!((value(&figure) - 0.4).abs() < 1e-12 && figure.verdict == Verdict::Bar);
        assert_eq!(matmul_peak(&rows, "wgpu", "f32"), Some(900e9));
        assert_eq!(matmul_peak(&rows, "flex", "bf16"), None);
    }

    #[test]
    fn steps_are_compared_with_ggml_or_with_a_copy_by_the_size_of_the_state() {
        let rows = |shape: Shape| {
            let contest = |op: &str, form: &str, device: &str, bytes_per_s: f64| {
                let mut row = row(op, form, device, Pass::Decode, shape, 1e-3);
                (row.contest, row.bytes_per_s) = ("one".into(), Some(bytes_per_s));
                row
            };
            [
                contest("gla", "fused", "flex", 19e9),
                contest("gla", "fused per token", "ggml", 19e9),
                contest(COPY, "copy", "memory", 20e9),
                contest(COPY, "copy", "wgpu", 900e9),
            ]
        };
        let small = only(&rows(Shape::new(1, 1, 16, 128)));
        assert_eq!((small.figure, small.verdict), ("decode against ggml, state in the caches", Verdict::Bar));
        let large = only(&rows(Shape::new(64, 1, 16, 128)));
        assert!((value(&large) - 0.95).abs() < 1e-12 && large.verdict == Verdict::Aim);
    }

    #[test]
    fn length_memory_and_form() {
        let pass = Pass::ForwardBackward;
        let mut short = row("gla", "fused", "flex", pass, SHAPE, 0.01);
        let mut long = row("gla", "fused", "flex", pass, SHAPE.with_time(32768), 0.165);
        (short.contest, long.contest) = ("length".into(), "length".into());
        (long.input_bytes, long.extra_bytes) = (Some(1000), Some(200));
        let both = figures(&[short, long]);
        let [cost, memory] = &both[..] else { panic!("{both:?}") };
        assert!((value(cost) - 16.5).abs() < 1e-12 && cost.verdict == Verdict::Bar);
        assert!((value(memory) - 0.2).abs() < 1e-12 && memory.verdict == Verdict::Aim);

        let forms = [
            row("gated-delta-rule", "fused", "flex", pass, SHAPE, 0.01),
            row("gated-delta-rule", "portable", "flex", pass, SHAPE, 0.02),
            row("gated-delta-rule", "portable", "ndarray", pass, SHAPE, 0.9),
        ];
        assert_eq!((value(&only(&forms)), only(&forms).verdict), (2.0, Verdict::Missed));
    }

    #[test]
    fn only_gpus_are_compared_with_triton() {
        let rows = |device: &str| {
            let row = |form, device, seconds| row("kda", form, device, Pass::Forward, SHAPE, seconds);
            [row("fused", device, 0.02), row("fla, Triton", "fla", 0.016)]
        };
        assert_eq!(only(&rows("cuda")).verdict, Verdict::Bar);
        assert!(figures(&rows("flex")).is_empty());
    }
}
