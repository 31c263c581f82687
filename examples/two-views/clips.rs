//! Genuine and forged clips as both views see them.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::fusion::two_views::{SpectralFrontEnd, SslEncoder, normalize_utterances};
use gatekit_examples::{ExampleError, tasks};

use crate::encoder::{Encoder, batch};
use crate::speech::{Forgery, Speaker};

/// Both views of some clips.
#[derive(Clone, Debug)]
pub struct Views {
    /// `[B, Ts, d_ssl]`.
    pub ssl: Tensor<3>,
    /// `[B, Tx, d_spectral]`.
    pub spectral: Tensor<3>,
}

/// Clips of one set of speakers: the waves, and both views on the host.
pub struct Clips {
    /// The waves.
    pub waves: Vec<Vec<f32>>,
    /// How each was forged, `None` for genuine ones.
    pub kinds: Vec<Option<Forgery>>,
    ssl: Table,
    spectral: Table,
}

struct Table {
    values: Vec<f32>,
    frames: usize,
    channels: usize,
}

impl Table {
    fn rows(&self, rows: &[usize], device: &Device) -> Tensor<3> {
        let size = self.frames * self.channels;
        let values: Vec<f32> =
            rows.iter().flat_map(|row| &self.values[row * size..(row + 1) * size]).copied().collect();
        Tensor::from_data(TensorData::new(values, [rows.len(), self.frames, self.channels]), device)
    }
}

impl Clips {
    /// `each` genuine clips and as many of every forgery, by `speakers` voices.
    pub fn draw(
        speakers: usize,
        each: usize,
        seed: u64,
        (encoder, front_end): (&Encoder, &SpectralFrontEnd),
        device: &Device,
    ) -> Result<Self, ExampleError> {
        let mut random = tasks::random(seed);
        let speakers: Vec<Speaker> = (0..speakers).map(|_| Speaker::draw(&mut random)).collect();
        let (mut waves, mut kinds) = (Vec::new(), Vec::new());
        for kind in std::iter::once(None).chain(Forgery::ALL.map(Some)) {
            for index in 0..each {
                waves.push(speakers[index % speakers.len()].utterance(kind, &mut random));
                kinds.push(kind);
            }
        }
        let (mut ssl, mut spectral) = (Vec::new(), Vec::new());
        for part in waves.chunks(64) {
            let wave = batch(part, device);
            spectral.push(normalize_utterances(front_end.forward(wave.clone())?));
            ssl.push(encoder.forward(wave)?);
        }
        let table = |parts: Vec<Tensor<3>>| {
            let [_, frames, channels] = parts[0].dims();
            let values =
                parts.into_iter().flat_map(|part| part.into_data().iter::<f32>().collect::<Vec<_>>());
            Table { values: values.collect(), frames, channels }
        };
        Ok(Self { waves, kinds, ssl: table(ssl), spectral: table(spectral) })
    }

    /// Frames and channels of both views.
    pub fn dims(&self) -> [[usize; 2]; 2] {
        [&self.ssl, &self.spectral].map(|table| [table.frames, table.channels])
    }

    /// Places of the genuine clips and of those forged in one of these ways.
    pub fn of(&self, forgeries: &[Forgery]) -> Vec<usize> {
        let kept = |place: &usize| self.kinds[*place].is_none_or(|kind| forgeries.contains(&kind));
        (0..self.kinds.len()).filter(kept).collect()
    }

    /// Both views of some clips.
    pub fn views(&self, rows: &[usize], device: &Device) -> Views {
        Views { ssl: self.ssl.rows(rows, device), spectral: self.spectral.rows(rows, device) }
    }

    /// 1 for genuine clips, 0 for forged ones.
    pub fn labels(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|row| usize::from(self.kinds[*row].is_none())).collect()
    }

    /// The same on a device.
    pub fn label_tensor(&self, rows: &[usize], device: &Device) -> Tensor<1, Int> {
        let labels: Vec<i64> = self.labels(rows).into_iter().map(|label| label as i64).collect();
        Tensor::from_data(TensorData::new(labels, [rows.len()]), device)
    }
}
