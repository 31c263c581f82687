//! What must be reached, and whether it was.

use serde::Serialize;

/// A figure of an op on a device, for each of its cases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What is measured.
    pub figure: &'static str,
    /// Our device.
    pub device: String,
    /// The operation.
    pub op: String,
    /// Shape and value.
    pub cases: Vec<(String, f64)>,
    /// How a value is written.
    pub unit: Unit,
    /// What must be reached.
    pub bar: f64,
    /// What is hoped for.
    pub aim: f64,
    /// Whether small values are good.
    pub at_most: bool,
    /// What the worst case reached.
    pub verdict: Verdict,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// `3.2x`.
    Times,
    /// `45 %`.
    Share,
}

/// What was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The aim.
    Aim,
    /// The bar.
    Bar,
    /// Neither.
    Missed,
}

impl Verdict {
    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aim => "aim",
            Self::Bar => "bar",
            Self::Missed => "missed",
        }
    }
}

impl Unit {
    /// A value in this unit.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Times if value < 10.0 => format!("{value:.2}x"),
            Self::Times => format!("{value:.1}x"),
            Self::Share => format!("{:.0} %", 100.0 * value),
        }
    }
}

/// A figure without its values.
#[derive(Clone, Copy)]
pub(crate) struct Goal {
    pub figure: &'static str,
    pub unit: Unit,
    pub bar: f64,
    pub aim: f64,
    pub at_most: bool,
}

pub(crate) const fn at_least(figure: &'static str, unit: Unit, bar: f64, aim: f64) -> Goal {
    Goal { figure, unit, bar, aim, at_most: false }
}

pub(crate) const fn at_most(figure: &'static str, unit: Unit, bar: f64, aim: f64) -> Goal {
    Goal { figure, unit, bar, aim, at_most: true }
}

impl Goal {
    /// The figure of `op` on `device` with these cases.
    pub fn figure(self, device: &str, op: &str, cases: Vec<(String, f64)>) -> Figure {
        let Self { figure, unit, bar, aim, at_most } = self;
        let (device, op, verdict) = (device.to_owned(), op.to_owned(), self.verdict(&cases));
        Figure { figure, device, op, cases, unit, bar, aim, at_most, verdict }
    }

    /// What the worst of the cases reached.
    fn verdict(&self, cases: &[(String, f64)]) -> Verdict {
        let reached = |goal: f64| {
            cases.iter().all(|(_, value)| if self.at_most { *value <= goal } else { *value >= goal })
        };
        match (reached(self.aim), reached(self.bar)) {
            (true, _) => Verdict::Aim,
            (false, true) => Verdict::Bar,
            (false, false) => Verdict::Missed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_in_their_unit() {
        assert_eq!(Unit::Times.show(3.217), "3.22x");
        assert_eq!(Unit::Times.show(12.34), "12.3x");
        assert_eq!(Unit::Share.show(0.456), "46 %");
    }
}
