//! One measurement of our own code.

use crate::{
    op::{Form, Op, Pass, Precision},
    shape::Shape,
};

/// What is computed, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Case {
    /// The operation.
    pub op: Op,
    /// Its form.
    pub form: Form,
    /// What of it.
    pub pass: Pass,
    /// The size.
    pub shape: Shape,
    /// The type of the inputs.
    pub precision: Precision,
}
