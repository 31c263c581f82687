//! Stays as they come from a record, to batches.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::{ConfigError, InputError};

use super::carry_forward::{CarryForward, Table};
use super::config::{IrregularEhrConfig, Task};
use super::model::{EhrBatch, EhrLabels};
use super::notes::NoteEncoder;

/// A text and its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// Hours since the start of the stay.
    pub hour: f64,
    /// What was written.
    pub text: String,
}

/// A patient's stay.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stay {
    /// Whose it is; stays of one patient belong into one part of a split.
    pub patient: u64,
    /// Hours since the start, one for each of the L rows of the table, in any order.
    pub hours: Vec<f64>,
    /// Measured values, standardised, row by row, `[L, d]`; anything where the mask is false.
    pub values: Vec<f32>,
    /// True where measured, `[L, d]`.
    pub mask: Vec<bool>,
    /// Notes, in any order.
    pub notes: Vec<Note>,
    /// Class 0 or 1 of a binary task, `[1]`; 0 or 1 for every class of a multilabel one.
    pub labels: Vec<u8>,
}

/// Makes batches of stays: values are 0 where not measured, rows and notes are padded, hours become times, series are
/// carried forward, and of the notes the last few are encoded.
#[derive(Debug, Clone)]
pub struct StayLoader {
    channels: usize,
    task: Task,
    classes: usize,
    carry: CarryForward,
    last_notes: usize,
    note_dim: usize,
}

impl StayLoader {
    /// For the model of `config`, with the last 5 notes of a stay as in the paper.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn new(config: &IrregularEhrConfig) -> Result<Self, ConfigError> {
        gatekit_core::check_sizes(&[("d_in", config.d_in), ("note_dim", config.note_dim)])?;
        Ok(Self {
            channels: config.d_in,
            task: config.task,
            classes: config.num_classes(),
            carry: config.carry_forward()?,
            last_notes: 5,
            note_dim: config.note_dim,
        })
    }

    /// Another number of notes, at least 1: the last of every stay.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for none.
    pub fn with_last_notes(self, last_notes: usize) -> Result<Self, ConfigError> {
        gatekit_core::check_sizes(&[("last_notes", last_notes)])?;
        Ok(Self { last_notes, ..self })
    }

    /// What a channel has before its first observation.
    pub fn fill(&self) -> f64 {
        self.carry.fill()
    }

    /// A batch of stays. Note vectors are on the encoder's device, which is to be `device` too.
    ///
    /// A stay may lack observations, or notes.
    ///
    /// # Errors
    ///
    /// [`InputError`] for no stay, for stays none of which has a row, for an encoder of another width than the model's notes;
    /// and names the stay that has neither an observation nor a note, lists that do not fit one another, an hour that is not finite,
    /// negative or past the grid, a measured value that is not finite, or a note that the encoder refuses.
    pub fn batch<N: NoteEncoder>(
        &self,
        stays: &[&Stay],
        encoder: &N,
        device: &Device,
    ) -> Result<EhrBatch, InputError> {
        let rows = stays.iter().map(|stay| stay.hours.len()).max().unwrap_or(0);
        if rows == 0 {
            let got = format!("{} stays without a row", stays.len());
            return Err(InputError::new("stays", got, "a stay with a row"));
        }
        let (count, channels) = (stays.len(), self.channels);
        let (mut values, mut mask, mut times, mut regular) = (vec![], vec![], vec![], vec![]);
        for (index, stay) in stays.iter().enumerate() {
            self.check(stay).map_err(|error| of_stay(index, error))?;
            let table = Table { hours: &stay.hours, values: &stay.values, mask: &stay.mask };
            regular.extend(self.carry.table(table, channels).map_err(|error| of_stay(index, error))?);
            let known = stay.values.iter().zip(&stay.mask);
            values.extend(known.map(|(value, seen)| if *seen { *value } else { 0.0 }));
            mask.extend(&stay.mask);
            times.extend(stay.hours.iter().map(|hour| self.time(*hour)));
            values.resize((index + 1) * rows * channels, 0.0);
            mask.resize((index + 1) * rows * channels, false);
            times.resize((index + 1) * rows, 0.0);
        }
        let points = self.carry.grid();
        let (notes, note_times, note_mask) = self.notes(stays, encoder, device)?;
        Ok(EhrBatch {
            values: Tensor::from_data(TensorData::new(values, [count, rows, channels]), device),
            times: Tensor::from_data(TensorData::new(times, [count, rows]), device),
            mask: Tensor::from_data(TensorData::new(mask, [count, rows, channels]), device),
            regular: Tensor::from_data(TensorData::new(regular, [count, points, 2 * channels]), device),
            notes,
            note_times,
            note_mask,
        })
    }

    /// The labels of stays.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the stay with another number of labels than the task has, or one that is neither 0 nor 1.
    pub fn labels(&self, stays: &[&Stay], device: &Device) -> Result<EhrLabels, InputError> {
        let width = if self.task == Task::Binary { 1 } else { self.classes };
        let mut labels = Vec::with_capacity(stays.len() * width);
        for (index, stay) in stays.iter().enumerate() {
            if stay.labels.len() != width || stay.labels.iter().any(|label| *label > 1) {
                let (got, need) =
                    (format!("{:?} of stay {index}", stay.labels), format!("{width} of 0 or 1"));
                return Err(InputError::new("labels", got, need));
            }
            labels.extend(stay.labels.iter().map(|label| i64::from(*label)));
        }
        let count = stays.len();
        Ok(match self.task {
            Task::Binary => EhrLabels::Binary(Tensor::from_data(TensorData::new(labels, [count]), device)),
            Task::Multilabel => {
                EhrLabels::Multilabel(Tensor::from_data(TensorData::new(labels, [count, width]), device))
            }
        })
    }

    fn time(&self, hour: f64) -> f32 {
        (hour / self.carry.horizon()) as f32
    }

    /// Notes, times and mask, padded to at least one.
    fn notes<N: NoteEncoder>(
        &self,
        stays: &[&Stay],
        encoder: &N,
        device: &Device,
    ) -> Result<(Tensor<3>, Tensor<2>, Tensor<2, Bool>), InputError> {
        let width = encoder.note_dim();
        if width != self.note_dim {
            let need = format!("note_dim = {}", self.note_dim);
            return Err(InputError::new("encoder", format!("vectors of {width} channels"), need));
        }
        let kept: Vec<Vec<&Note>> = stays.iter().map(|stay| self.last(stay)).collect();
        let texts: Vec<&str> = kept.iter().flatten().map(|note| note.text.as_str()).collect();
        let (count, most) = (stays.len(), kept.iter().map(Vec::len).max().unwrap_or(0).max(1));
        let (mut rows, mut times, mut mask, mut next) = (vec![], vec![], vec![], 1i64);
        for notes in &kept {
            for place in 0..most {
                // Row 0 is the padding.
                let note = notes.get(place);
                rows.push(if note.is_some() { next } else { 0 });
                times.push(note.map_or(0.0, |note| self.time(note.hour)));
                mask.push(note.is_some());
                next += i64::from(note.is_some());
            }
        }
        let vectors = if texts.is_empty() { None } else { Some(encoder.encode(&texts)?) };
        let padding = Tensor::<2>::zeros([1, width], device);
        let vectors = match vectors {
            Some(vectors) if vectors.dims() != [texts.len(), width] => {
                let got = format!("{:?}", vectors.dims());
                return Err(InputError::new("encoder", got, format!("[{}, {width}]", texts.len())));
            }
            Some(vectors) => Tensor::cat(vec![padding.cast(vectors.dtype()), vectors], 0),
            None => padding,
        };
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count * most]), device);
        Ok((
            vectors.select(0, rows).reshape([count, most, width]),
            Tensor::from_data(TensorData::new(times, [count, most]), device),
            Tensor::from_data(TensorData::new(mask, [count, most]), device),
        ))
    }

    /// The last notes, by hour.
    fn last<'a>(&self, stay: &'a Stay) -> Vec<&'a Note> {
        let mut notes: Vec<&Note> = stay.notes.iter().collect();
        notes.sort_by(|a, b| a.hour.total_cmp(&b.hour));
        notes.split_off(notes.len().saturating_sub(self.last_notes))
    }

    fn check(&self, stay: &Stay) -> Result<(), InputError> {
        let (rows, cells) = (stay.hours.len(), stay.hours.len() * self.channels);
        for (field, length) in [("values", stay.values.len()), ("mask", stay.mask.len())] {
            if length != cells {
                let need = format!("{rows} rows of {}", self.channels);
                return Err(InputError::new(field, format!("{length} entries"), need));
            }
        }
        if stay.notes.is_empty() && !stay.mask.contains(&true) {
            return Err(InputError::new("stays", "no observation and no note", "either"));
        }
        let horizon = self.carry.horizon();
        let hours = stay.hours.iter().map(|hour| ("hours", *hour));
        for (field, hour) in hours.chain(stay.notes.iter().map(|note| ("notes", note.hour))) {
            if !(0.0..=horizon).contains(&hour) {
                return Err(InputError::new(field, format!("hour {hour}"), format!("0 ..= {horizon}")));
            }
        }
        Ok(())
    }
}

fn of_stay(index: usize, error: InputError) -> InputError {
    InputError { got: format!("{} in stay {index}", error.got), ..error }
}
