//! Whether a peer computes the same function, seen on a small input before anything is timed.

use std::fmt;

use burn::tensor::Device;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;

use crate::{
    case::Case,
    entrant::message,
    experts,
    op::{Form, Op, Pass, Precision},
    pacgnet,
    peer::{Peer, Request},
    plan::Settings,
    scans,
    shape::Shape,
};

/// Two chunks, several sequences and heads.
const SHAPE: Shape = Shape::new(2, 128, 3, 32);
/// More experts than a token has.
const EXPERTS: Shape = Shape { value_dim: 16, ..Shape::new(2, 64, 12, 32) };

/// Images large enough that every level of the detector has more than one cell.
const IMAGES: Shape = Shape::new(2, 96, 1, 3);

/// How far a peer's result is from ours.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// The peer.
    pub peer: String,
    /// The operation.
    pub op: Op,
    /// Our device.
    pub device: String,
    /// `||theirs - ours|| / ||ours||`.
    pub difference: Option<f64>,
    /// Whether that is no more than the type's precision explains.
    pub agrees: bool,
    /// What kept it from being seen.
    pub error: Option<String>,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, op, device, .. } = self;
        match (self.difference, &self.error) {
            (Some(difference), _) if self.agrees => {
                write!(
                    f,
                    "{peer} and we ({device}) compute the same {op}: relative difference {difference:.1e}"
                )
            }
            (Some(difference), _) => write!(
                f,
                "warning: {peer} computes another {op} than we ({device}): relative difference {difference:.1e}; \
                 it is left out"
            ),
            (None, error) => {
                write!(f, "warning: {op} of {peer} is left out: {}", error.as_deref().unwrap_or("unknown"))
            }
        }
    }
}

/// The output of a case for given inputs.
type OutputOf = fn(Case, &Device, &[(&'static str, Vec<f32>)]) -> Vec<f32>;

/// Compares the outputs of `op`; `None` where the peer does not have it.
pub fn of(peer: &mut Peer, op: Op, settings: &Settings, ours: (&str, &Device)) -> Option<Agreement> {
    let precision = settings.precision;
    peer.ready().form(op, Pass::Forward, precision)?;
    if op.is_detector() && op != Op::PacgNet {
        return None;
    }
    // Half precision keeps 8 to 11 bits.
    let tolerance = if precision == Precision::F32 { 1e-4 } else { 3e-2 };
    let inputs = inputs(op);
    let (shape, output_of): (Shape, OutputOf) = match op {
        Op::PacgNet => (IMAGES, pacgnet::output_of),
        _ if op.is_feed_forward() => (EXPERTS, experts::output_of),
        _ => (SHAPE, scans::output_of),
    };
    let request = Request::new(op.name(), shape, Pass::Forward, precision, settings.threads, 0);
    let form = if op.has(Form::Fused, Pass::Forward) { Form::Fused } else { Form::Portable };
    let case = Case { op, form, pass: Pass::Forward, shape, precision };
    let computed = std::panic::catch_unwind(|| output_of(case, ours.1, &inputs));
    let difference = peer
        .output(&request, &inputs)
        .map_err(|error| error.to_string())
        .and_then(|theirs| difference(&theirs, &computed.map_err(|panic| message(&*panic))?));
    Some(Agreement {
        peer: peer.kind().name().to_owned(),
        op,
        device: ours.0.to_owned(),
        agrees: difference.as_ref().is_ok_and(|difference| *difference <= tolerance),
        error: difference.as_ref().err().cloned(),
        difference: difference.ok(),
    })
}

fn difference(theirs: &[f32], ours: &[f32]) -> Result<f64, String> {
    if theirs.len() != ours.len() {
        return Err(format!("its output has {} elements, ours {}", theirs.len(), ours.len()));
    }
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let distance = square(&mut theirs.iter().zip(ours).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    Ok((distance / square(&mut ours.iter().map(|value| f64::from(*value)))).sqrt())
}

/// The inputs that the worker expects of the op, drawn on the host.
fn inputs(op: Op) -> Vec<(&'static str, Vec<f32>)> {
    let mut random = StdRng::seed_from_u64(1);
    if op.is_feed_forward() {
        let names = experts::inputs(op, EXPERTS);
        return names
            .map(|(name, size)| (name, (0..size).map(|_| random.random_range(-0.5..0.5)).collect()))
            .collect();
    }
    if op == Op::PacgNet {
        let size = IMAGES.batch * IMAGES.key_dim * IMAGES.time * IMAGES.time;
        return ["rgb", "ir"].map(|name| (name, (0..size).map(|_| random.random()).collect())).to_vec();
    }
    let tokens = SHAPE.batch * SHAPE.time * SHAPE.heads;
    let mut uniform = |count: usize, from: f32, to: f32| -> Vec<f32> {
        (0..count).map(|_| random.random_range(from..to)).collect()
    };
    let keys = tokens * SHAPE.key_dim;
    let mut inputs = vec![("q", uniform(keys, -1.0, 1.0)), ("k", uniform(keys, -1.0, 1.0))];
    for key in inputs[1].1.chunks_mut(SHAPE.key_dim) {
        let norm = key.iter().map(|value| value * value).sum::<f32>().sqrt();
        key.iter_mut().for_each(|value| *value /= norm);
    }
    inputs.push(("v", uniform(tokens * SHAPE.value_dim, -1.0, 1.0)));
    if matches!(op, Op::Gla | Op::Kda) {
        inputs.push(("log_decay", uniform(keys, -0.3, 0.0)));
    }
    if op == Op::GatedDeltaRule {
        inputs.push(("log_decay", uniform(tokens, -1.0, 0.0)));
    }
    if matches!(op, Op::GatedDeltaRule | Op::Kda | Op::DeltaRule) {
        inputs.push(("beta", uniform(tokens, 0.0, 1.0)));
    }
    inputs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_and_sizes_must_fit() {
        assert_eq!(difference(&[3.0, 4.4], &[3.0, 4.0]).map(|d| (d * 100.0).round()), Ok(8.0));
        assert!(difference(&[1.0], &[1.0, 2.0]).is_err());
    }

    #[test]
    fn inputs_are_those_of_the_op() {
        let names = |op| inputs(op).iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(Op::Softmax), ["q", "k", "v"]);
        assert_eq!(names(Op::Kda), ["q", "k", "v", "log_decay", "beta"]);
        assert_eq!(inputs(Op::GatedDeltaRule)[3].1.len(), 2 * 128 * 3);
        assert_eq!(names(Op::MoeLayer), ["x", "router", "gate_up", "down"]);
    }
}
