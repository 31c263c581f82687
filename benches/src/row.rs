//! One line of the results.

use serde::{Deserialize, Serialize};

use crate::{op::Pass, shape::Shape};

/// The name of the rows that time a matrix product `time x key_dim` by `key_dim x value_dim`.
pub const MATMUL: &str = "matmul";
/// The name of the rows that time a copy of as many bytes as the state of their shape.
pub const COPY: &str = "copy";

/// What one contestant of one contest did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The contest; only rows of one contest ran alternately.
    pub contest: String,
    /// The operation, [`MATMUL`] or [`COPY`].
    pub op: String,
    /// `portable`, `fused`, or what a peer calls its form.
    pub form: String,
    /// The device, or the peer.
    pub device: String,
    /// Type of the inputs.
    pub dtype: String,
    /// `forward`, `forward+backward` or `decode`.
    pub pass: Pass,
    /// Sequences.
    pub batch: usize,
    /// Steps.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Threads of the processor.
    pub threads: usize,
    /// Median time of one execution, seconds.
    pub median_s: Option<f64>,
    /// A quarter of the times is below.
    pub lower_quartile_s: Option<f64>,
    /// Three quarters are.
    pub upper_quartile_s: Option<f64>,
    /// The shortest.
    pub minimum_s: Option<f64>,
    /// Times taken.
    pub samples: usize,
    /// Executions that each time is the mean of.
    pub executions: usize,
    /// Floating-point operations a second, where they are counted.
    pub flops: Option<f64>,
    /// Bytes a second of the state (decode) or the copy, read and written.
    pub bytes_per_s: Option<f64>,
    /// Bytes of the inputs.
    pub input_bytes: Option<usize>,
    /// Most bytes held beyond inputs, outputs and gradients; on CPU devices.
    pub extra_bytes: Option<usize>,
    /// A peer's distance from our result on a small input, relative, L2.
    pub difference: Option<f64>,
    /// Why there is no time.
    pub error: String,
}

impl Row {
    /// The size.
    pub fn shape(&self) -> Shape {
        let Self { batch, time, heads, key_dim, value_dim, .. } = *self;
        Shape { batch, time, heads, key_dim, value_dim }
    }

    /// What makes it the same measurement when a run is taken up again.
    pub fn key(&self) -> Key {
        let texts = [&self.contest, &self.op, &self.form, &self.device, &self.dtype].map(String::clone);
        Key { texts, pass: self.pass, shape: self.shape(), threads: self.threads }
    }
}

/// See [`Row::key`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    texts: [String; 5],
    pass: Pass,
    shape: Shape,
    threads: usize,
}

/// Rows for tests.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// A row of a contest named after its op, pass and shape.
    pub fn row(op: &str, form: &str, device: &str, pass: Pass, shape: Shape, seconds: f64) -> Row {
        let Shape { batch, time, heads, key_dim, value_dim } = shape;
        Row {
            contest: format!("{op} {pass} {shape}"),
            op: op.into(),
            form: form.into(),
            device: device.into(),
            dtype: "f32".into(),
            pass,
            batch,
            time,
            heads,
            key_dim,
            value_dim,
            threads: 2,
            median_s: Some(seconds),
            lower_quartile_s: Some(0.9 * seconds),
            upper_quartile_s: Some(1.1 * seconds),
            minimum_s: Some(0.8 * seconds),
            samples: 5,
            executions: 1,
            flops: None,
            bytes_per_s: None,
            input_bytes: None,
            extra_bytes: None,
            difference: None,
            error: String::new(),
        }
    }
}
