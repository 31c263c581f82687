//! What a case's results are worth.

use crate::{
    array::{Array, Values},
    case::Case,
    evaluation::Produced,
    failure::{Failure, Result},
    judge::judge,
};

/// The worst relative errors of a case.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Errors {
    /// Over all outputs.
    pub outputs: f64,
    /// Over all gradients; `None` where the case has none.
    pub gradients: Option<f64>,
}

impl Errors {
    /// The worse of both.
    pub fn worst(self, other: Self) -> Self {
        Self {
            outputs: self.outputs.max(other.outputs),
            gradients: self.gradients.into_iter().chain(other.gradients).reduce(f64::max),
        }
    }
}

/// Compares everything the file holds with what was produced.
///
/// # Errors
///
/// Every tensor that misses, one a line.
pub fn verdict(case: &Case, produced: &[Produced]) -> Result<Errors> {
    let mut worst = Errors::default();
    let mut misses = Vec::new();
    for run in produced {
        let form = run.form;
        for (name, want) in &case.outputs {
            let judged = match run.outputs.get(name) {
                None => Err(Failure("not produced".into())),
                Some(got) => judge(got, want, case.tolerance_output),
            };
            match judged {
                Ok(error) => worst.outputs = worst.outputs.max(error),
                Err(failure) => misses.push(format!("form {form}: output.{name}: {failure}")),
            }
        }
        for (name, want) in &case.grads {
            let judged = match run.grads.get(name) {
                None if zero(want) => Ok(0.0),
                None => Err(Failure("not produced: the loss does not reach it".into())),
                Some(got) => judge(got, want, case.tolerance_grad),
            };
            match judged {
                Ok(error) => worst.gradients = Some(worst.gradients.unwrap_or(0.0).max(error)),
                Err(failure) => misses.push(format!("form {form}: grad.{name}: {failure}")),
            }
        }
    }
    if misses.is_empty() { Ok(worst) } else { Err(Failure(misses.join("\n"))) }
}

/// Whether a gradient is nothing but zeros, so that having none is right.
fn zero(want: &Array) -> bool {
    match &want.values {
        Values::Float(values) => values.iter().all(|value| *value == 0.0),
        _ => false,
    }
}
