//! The size of a problem.

use std::{fmt, str::FromStr};

/// `batch x time x heads x key_dim [x value_dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Steps of a sequence.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
}

impl Shape {
    /// A shape whose keys and values have the same width.
    pub const fn new(batch: usize, time: usize, heads: usize, dim: usize) -> Self {
        Self { batch, time, heads, key_dim: dim, value_dim: dim }
    }

    /// The same shape over another number of steps.
    pub const fn with_time(self, time: usize) -> Self {
        Self { time, ..self }
    }

    /// `[batch, time, heads, key_dim]`.
    pub const fn keys(self) -> [usize; 4] {
        [self.batch, self.time, self.heads, self.key_dim]
    }

    /// `[batch, time, heads, value_dim]`.
    pub const fn values(self) -> [usize; 4] {
        [self.batch, self.time, self.heads, self.value_dim]
    }

    /// `[batch, heads, key_dim, value_dim]`.
    pub const fn state(self) -> [usize; 4] {
        [self.batch, self.heads, self.key_dim, self.value_dim]
    }

    /// Bytes of a float32 state.
    pub fn state_bytes(self) -> usize {
        self.state().iter().product::<usize>() * size_of::<f32>()
    }

    /// Channels of an operation without heads.
    pub const fn channels(self) -> usize {
        self.heads * self.key_dim
    }

    /// All five sizes.
    pub const fn sizes(self) -> [usize; 5] {
        [self.batch, self.time, self.heads, self.key_dim, self.value_dim]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}x{}", self.batch, self.time, self.heads, self.key_dim)?;
        if self.value_dim != self.key_dim {
            write!(f, "x{}", self.value_dim)?;
        }
        Ok(())
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes: Option<Vec<usize>> =
            text.split('x').map(|size| size.trim().parse().ok().filter(|&size| size > 0)).collect();
        match sizes.as_deref() {
            Some(&[batch, time, heads, dim]) => Ok(Self::new(batch, time, heads, dim)),
            Some(&[batch, time, heads, key_dim, value_dim]) => {
                Ok(Self { batch, time, heads, key_dim, value_dim })
            }
            _ => Err("need batch x time x heads x dim as in `1x2048x4x64`, or a fifth size for the values"
                .to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_and_written() {
        for text in ["1x2048x4x64", "2x100x3x32x64"] {
            assert_eq!(text.parse::<Shape>().expect("a shape").to_string(), text);
        }
        assert_eq!("1x2x3x4x4".parse::<Shape>().expect("a shape").to_string(), "1x2x3x4");
        for text in ["", "1x2x3", "1x2x3x0", "1x2x3x4x5x6", "1x2x3xD", "1x2x-3x4"] {
            let refused = text.parse::<Shape>().expect_err(text);
            assert!(refused.contains("1x2048x4x64"), "{refused}");
        }
    }

    #[test]
    fn a_state_is_counted_in_float32() {
        assert_eq!(Shape::new(64, 1, 16, 128).state_bytes(), 64 << 20);
    }
}
