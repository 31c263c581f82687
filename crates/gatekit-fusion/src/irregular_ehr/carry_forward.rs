//! An irregular table as a regular one: the last value so far.

use burn::tensor::{Bool, Tensor, TensorData};
use gatekit_core::{ConfigError, InputError, check_sizes};

/// How irregular tables become regular ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CarryForward {
    grid: usize,
    hours_per_step: f64,
    fill: f64,
}

/// A table of one stay: what was measured, and when.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// Hours since the start of each of L rows, in any order.
    pub hours: &'a [f64],
    /// Values, row by row, `[L, d]`.
    pub values: &'a [f32],
    /// True where measured, `[L, d]`.
    pub mask: &'a [bool],
}

impl CarryForward {
    /// To `grid` rows of `hours_per_step` hours; a channel has the value `fill` before its first observation.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for no row, rows without duration, and a fill that is no number.
    pub fn new(grid: usize, hours_per_step: f64, fill: f64) -> Result<Self, ConfigError> {
        check_sizes(&[("grid", grid)])?;
        if !(hours_per_step.is_finite() && hours_per_step > 0.0) {
            return Err(ConfigError::new("hours_per_step", hours_per_step, "a finite number above 0"));
        }
        if !fill.is_finite() {
            return Err(ConfigError::new("fill", fill, "a finite number"));
        }
        Ok(Self { grid, hours_per_step, fill })
    }

    /// Hours of the whole grid.
    pub fn horizon(&self) -> f64 {
        self.grid as f64 * self.hours_per_step
    }

    /// Rows of the grid Q.
    pub fn grid(&self) -> usize {
        self.grid
    }

    /// What a channel has before its first observation.
    pub fn fill(&self) -> f64 {
        self.fill
    }

    /// One stay with `channels` channels d, to `[Q, 2 d]`: values, then flags (see [`carry_forward`]).
    ///
    /// # Errors
    ///
    /// [`InputError`] for lists whose lengths do not fit, and, at an observation, an hour that is negative or not finite or a
    /// value that is not finite.
    pub fn table(&self, table: Table<'_>, channels: usize) -> Result<Vec<f32>, InputError> {
        let rows = table.hours.len();
        for (field, length) in [("values", table.values.len()), ("mask", table.mask.len())] {
            if length != rows * channels {
                let need = format!("{rows} rows of {channels}");
                return Err(InputError::new(field, format!("{length} entries"), need));
            }
        }
        let width = 2 * channels;
        let mut regular = vec![0.0f32; self.grid * width];
        for channel in 0..channels {
            let mut observed: Vec<(f64, f32)> = Vec::new();
            for (row, &hour) in table.hours.iter().enumerate() {
                let entry = row * channels + channel;
                if table.mask[entry] {
                    check_observation(row, hour, table.values[entry])?;
                    observed.push((hour, table.values[entry]));
                }
            }
            // A stable sort: of equal hours the later row of the table stays behind.
            observed.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut observed = observed.into_iter().peekable();
            let mut last = self.fill as f32;
            for (point, row) in regular.chunks_exact_mut(width).enumerate() {
                let end = (point + 1) as f64 * self.hours_per_step;
                while let Some((_, value)) = observed.next_if(|(hour, _)| *hour < end) {
                    (last, row[channels + channel]) = (value, 1.0);
                }
                row[channel] = last;
            }
        }
        Ok(regular)
    }
}

fn check_observation(row: usize, hour: f64, value: f32) -> Result<(), InputError> {
    if !(hour.is_finite() && hour >= 0.0) {
        return Err(InputError::new("hours", format!("{hour} in row {row}"), "a finite hour, at least 0"));
    }
    if !value.is_finite() {
        let got = format!("{value} in row {row}");
        return Err(InputError::new("values", got, "a finite number where observed"));
    }
    Ok(())
}

/// Carries the last values of irregular tables forward: row r of the grid covers the hours from `r w` up to (not with)
/// `(r + 1) w`, w = `hours_per_step`. Its values are the last observations of each channel in or before it, else `fill`;
/// of several in one row the latest counts, of equal hours the later row of the table. Its flags are 1 where the
/// channel was observed in row r. Rows past the grid are dropped.
///
/// No gradient passes: the grid is made on the host.
///
/// # Shapes
///
/// - `values`: `[B, L, d]`; where `mask` is false they may be anything
/// - `mask`: `[B, L, d]`, true where observed
/// - `hours`: `[B, L]`, in hours since the start, in any order; those of rows without an observation may be anything
/// - returns `[B, Q, 2 d]`, values then flags, of the type and on the device of `values`
///
/// # Errors
///
/// [`InputError`] names the sample with a negative hour, or with an hour or observed value that is not finite; and shapes
/// that do not fit.
pub fn carry_forward(
    values: &Tensor<3>,
    mask: &Tensor<3, Bool>,
    hours: &Tensor<2>,
    how: &CarryForward,
) -> Result<Tensor<3>, InputError> {
    let [batch, rows, channels] = values.dims();
    if mask.dims() != values.dims() || hours.dims() != [batch, rows] {
        let got = format!("{:?} with hours {:?}", mask.dims(), hours.dims());
        return Err(InputError::new("mask", got, format!("{:?}, that of the values", values.dims())));
    }
    let stored: Vec<f32> = values.clone().detach().into_data().iter::<f32>().collect();
    let seen: Vec<bool> = mask.to_data().iter::<bool>().collect();
    let times: Vec<f64> = hours.clone().detach().into_data().iter::<f64>().collect();
    let mut regular = Vec::with_capacity(batch * how.grid * 2 * channels);
    for sample in 0..batch {
        let (first, cells) = (sample * rows, sample * rows * channels);
        let table = Table {
            hours: &times[first..first + rows],
            values: &stored[cells..cells + rows * channels],
            mask: &seen[cells..cells + rows * channels],
        };
        let of_sample =
            |error: InputError| InputError { got: format!("{} of sample {sample}", error.got), ..error };
        regular.extend(how.table(table, channels).map_err(of_sample)?);
    }
    let data = TensorData::new(regular, [batch, how.grid, 2 * channels]);
    Ok(Tensor::from_data(data, (&values.device(), values.dtype())))
}
