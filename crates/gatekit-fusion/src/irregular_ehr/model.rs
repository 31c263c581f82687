//! Notes and series of stays to logits and loss.

use burn::module::Module;
use burn::nn::{Dropout, Linear};
use burn::tensor::activation::{relu, softmax};
use burn::tensor::{Bool, Int, Tensor};
use gatekit_core::cross_entropy::{check_labels, cross_entropies};
use gatekit_core::gate::sigmoid;
use gatekit_core::{InputError, widen};

use super::config::Task;
use super::late::StreamEncoder;
use super::time_attention::MultiTimeAttention;
use super::utde::{SeriesEmbedding, Utde};

/// B stays. [`StayLoader`](super::StayLoader) makes it of tables and texts.
#[derive(Debug, Clone)]
pub struct EhrBatch {
    /// Measured values, `[B, L, d]`, 0 where not observed.
    pub values: Tensor<3>,
    /// Times of the rows in [0, 1]: hours since the start by those of the grid, `[B, L]`.
    pub times: Tensor<2>,
    /// True where observed, `[B, L, d]`.
    pub mask: Tensor<3, Bool>,
    /// The series carried forward, `[B, Q, 2 d]`.
    pub regular: Tensor<3>,
    /// Vectors of the notes, `[B, M, note_dim]`.
    pub notes: Tensor<3>,
    /// Their times, as those of the rows, `[B, M]`.
    pub note_times: Tensor<2>,
    /// True where there is a note, `[B, M]`.
    pub note_mask: Tensor<2, Bool>,
}

impl EhrBatch {
    /// The same stays without an observation; what was carried forward is `fill`.
    pub fn without_series(&self, fill: f64) -> Self {
        let [batch, points, table] = self.regular.dims();
        let like = (&self.regular.device(), self.regular.dtype());
        let filled = Tensor::full([batch, points, table / 2], fill, like);
        let unseen = Tensor::zeros([batch, points, table / 2], like);
        Self {
            values: self.values.zeros_like(),
            mask: Tensor::full(self.mask.dims(), false, &self.mask.device()),
            regular: Tensor::cat(vec![filled, unseen], 2),
            ..self.clone()
        }
    }

    /// The same stays without a note.
    pub fn without_notes(&self) -> Self {
        Self {
            notes: self.notes.zeros_like(),
            note_mask: Tensor::full(self.note_mask.dims(), false, &self.note_mask.device()),
            ..self.clone()
        }
    }
}

/// What is true of B stays.
#[derive(Debug, Clone)]
pub enum EhrLabels {
    /// Class 0 or 1, `[B]`.
    Binary(Tensor<1, Int>),
    /// 0 or 1 for every class, `[B, classes]`.
    Multilabel(Tensor<2, Int>),
}

/// What the model makes of stays.
#[derive(Debug, Clone)]
pub struct EhrOutput {
    /// The series on the grid, and its gate.
    pub series: SeriesEmbedding,
    /// `[B, classes]`.
    pub logits: Tensor<2>,
    /// Of class 1, `[B, 1]`, or of every label, `[B, classes]`.
    pub probability: Tensor<2>,
}

/// Series by [`Utde`], notes by a time attention of their own, both fused on the grid; then
/// `h = [text at the last point; series at the last point]`, `h += P_2 relu(P_1 h)`, logits `W h + b`.
///
/// The time embedding is that of [`Utde`], shared by grid, series and notes. A stay without notes, or without
/// observations, is legal: its stream is that of zeros. Section 3 of the paper.
#[derive(Module, Debug)]
pub struct IrregularEhrModel {
    /// Of the series.
    pub utde: Utde,
    /// Of the notes.
    pub time_attn: MultiTimeAttention,
    /// The fusion.
    pub trans_self_cross_ts_txt: StreamEncoder,
    /// `P_1`, `[2 D, 2 D]`.
    pub proj1: Linear,
    /// `P_2`, `[2 D, 2 D]`.
    pub proj2: Linear,
    /// W, `[2 D, classes]`.
    pub out_layer: Linear,
    /// Between `P_1` and `P_2`, in training.
    pub dropout: Dropout,
    #[module(skip)]
    pub(super) task: Task,
}

impl IrregularEhrModel {
    /// What is predicted.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Classes of the task.
    pub fn classes(&self) -> usize {
        self.out_layer.weight.dims()[1]
    }

    /// Logits and probabilities of stays.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit, or there is no row or no (padding) note; in debug builds also for what
    /// [`check_observations`](super::time_attention::check_observations) refuses.
    pub fn forward(&self, batch: &EhrBatch) -> EhrOutput {
        let EhrBatch { values, times, mask, regular, notes, note_times, note_mask } = batch.clone();
        assert!(
            note_mask.dims() == note_times.dims() && notes.dims()[0] == values.dims()[0],
            "IrregularEhrModel: `notes` {:?}, `note_times` {:?} and `note_mask` {:?} do not fit `values` {:?}",
            notes.dims(),
            note_times.dims(),
            note_mask.dims(),
            values.dims()
        );
        let series = self.utde.forward(values, times, &mask, regular);
        let text = self.time_attn.forward(&self.utde.time, notes, note_times, &note_mask.unsqueeze_dim(2));
        let streams = self.trans_self_cross_ts_txt.forward(text, series.embedding.clone());
        let last = streams.map(|stream| {
            let [_, points, _] = stream.dims();
            stream.narrow(1, points - 1, 1).squeeze_dim::<2>(1)
        });
        let h = Tensor::cat(last.to_vec(), 1);
        let inner = self.dropout.forward(relu(self.proj1.forward(h.clone())));
        let logits = self.out_layer.forward(h + self.proj2.forward(inner));
        let probability = match self.task {
            Task::Binary => softmax(widen(logits.clone()), 1).narrow(1, 1, 1),
            Task::Multilabel => sigmoid(widen(logits.clone())),
        };
        EhrOutput { series, logits, probability }
    }

    /// The loss of `logits` `[B, classes]`, `[1]`, in at least float32: the mean cross entropy in nats of a binary task, of a
    /// multilabel task the mean over stays and labels of `max(z, 0) - z y + log(1 + exp(-|z|))`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for labels of the other task, of another number, or such as are no class.
    pub fn loss(&self, logits: Tensor<2>, labels: &EhrLabels) -> Result<Tensor<1>, InputError> {
        let [batch, classes] = logits.dims();
        match (self.task, labels) {
            (Task::Binary, EhrLabels::Binary(labels)) => {
                check_labels(labels, batch, classes)?;
                Ok(cross_entropies(logits, labels.clone()).mean())
            }
            (Task::Multilabel, EhrLabels::Multilabel(labels)) => {
                if labels.dims() != [batch, classes] {
                    let got = format!("{:?}", labels.dims());
                    return Err(InputError::new("labels", got, format!("[{batch}, {classes}]")));
                }
                check_labels(&labels.clone().reshape([batch * classes]), batch * classes, 2)?;
                let z = widen(logits);
                let y = labels.clone().float().cast(z.dtype());
                let rest = z.clone().abs().neg().exp().log1p();
                Ok((relu(z.clone()) - z * y + rest).mean())
            }
            (task, _) => Err(InputError::new("labels", "labels of the other task", format!("{task:?}"))),
        }
    }
}
