//! What every language model of this crate does.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor, TensorData, activation};
use gatekit_core::InputError;

use gatekit_core::checkpoint::CheckpointError;

/// The label that marks a position without a target.
pub const IGNORED_LABEL: i64 = -100;

/// A language model that predicts every token from those before it.
pub trait CausalLm: Module {
    /// The logits of the next token at every position.
    ///
    /// # Shapes
    ///
    /// - `input_ids`: `[batch, time]`, in `0 .. vocab_size`
    /// - `attention_mask`: `[batch, time]`, `true` for real tokens. A row's padded tokens do not
    ///   reach any real one; the logits at padded positions mean nothing
    /// - output: `[batch, time, vocab_size]`
    ///
    /// # Panics
    ///
    /// When the mask has another shape than the ids or a row without a real token, and in debug
    /// builds for a token outside the vocabulary ([`check_ids`](Self::check_ids) is the check for
    /// data that comes from outside).
    fn forward(&self, input_ids: Tensor<2, Int>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3>;

    /// Number of tokens the model knows.
    fn vocab_size(&self) -> usize;

    /// Mean next-token cross entropy, in nats.
    ///
    /// ```text
    /// loss = mean over counted (b, t) of  -log softmax(logits[b, t])[labels[b, t + 1]]
    /// ```
    ///
    /// The labels are aligned with the inputs (usually they are the input ids) and shifted in
    /// here: position `t` is judged by label `t + 1`. A label of [`IGNORED_LABEL`] (-100) is not
    /// counted. The labels are read back to the host to be checked; a training loop that holds
    /// them there already makes [`Targets`] itself and spares the transfer.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[batch, time, vocab_size]`
    /// - `labels`: `[batch, time]`
    /// - output: `[1]`, float32
    ///
    /// # Errors
    ///
    /// [`InputError`] when every shifted label is ignored, or one is neither -100 nor a token.
    ///
    /// # Panics
    ///
    /// When the labels' batch and time are not those of the logits.
    fn loss(&self, logits: Tensor<3>, labels: Tensor<2, Int>) -> Result<Tensor<1>, InputError> {
        let targets = Targets::new(&labels.to_data(), self.vocab_size(), &logits.device())?;
        Ok(targets.cross_entropy(logits))
    }

    /// Checks token ids that come from outside; reads them back to the host.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the first id outside `0 .. vocab_size` and its place.
    fn check_ids(&self, input_ids: &Tensor<2, Int>) -> Result<(), InputError> {
        let [_, time] = input_ids.dims();
        for (index, id) in input_ids.to_data().iter::<i64>().enumerate() {
            if !is_token(id, self.vocab_size()) {
                return Err(InputError::new(
                    "input_ids",
                    format!("{id} at [{}, {}]", index / time, index % time),
                    format!("0 .. {}", self.vocab_size()),
                ));
            }
        }
        Ok(())
    }
}

/// A language model that also runs one token after the other, from a state the caller owns.
///
/// `prefill` and `step` in any division of a sequence give the logits that
/// [`forward`](CausalLm::forward) gives for the whole.
pub trait StreamingLm: CausalLm {
    /// What the model remembers of the tokens so far.
    type State: StreamState;

    /// The state before the first token.
    fn empty_state(&self, batch: usize, device: &Device) -> Self::State;

    /// Checks a state that comes from outside (a file, another model) against this model.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the part of the state, its shape and the shape it needs.
    fn check_state(&self, state: &Self::State, batch: usize) -> Result<(), InputError>;

    /// Checks that a state can take `tokens` more. By default it can take any number; a model with
    /// learned positions has an end.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the length that would be reached and the longest.
    fn check_room(&self, state: &Self::State, tokens: usize) -> Result<(), InputError> {
        let _ = (state, tokens);
        Ok(())
    }

    /// Continues by several tokens.
    ///
    /// # Shapes
    ///
    /// - `input_ids`: `[batch, time]`
    /// - output: `[batch, time, vocab_size]` and the state after the last token
    ///
    /// # Panics
    ///
    /// As [`forward`](CausalLm::forward), and when the state has other shapes than
    /// [`empty_state`](Self::empty_state) gives for this batch.
    fn prefill(&self, input_ids: Tensor<2, Int>, state: Self::State) -> (Tensor<3>, Self::State);

    /// Continues by one token.
    ///
    /// # Shapes
    ///
    /// - `token`: `[batch]`
    /// - output: `[batch, vocab_size]` and the state after the token
    ///
    /// # Panics
    ///
    /// As [`prefill`](Self::prefill).
    fn step(&self, token: Tensor<1, Int>, state: Self::State) -> (Tensor<2>, Self::State);
}

/// A streaming state: a plain value that can be cloned, moved between devices and saved.
pub trait StreamState: Clone + Send {
    /// Bytes that its tensors hold on the device.
    fn bytes(&self) -> usize;

    /// The same state on another device.
    fn to_device(self, device: &Device) -> Self;

    /// Writes the state to a safetensors file: beside it first, then renamed onto it.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the file cannot be written.
    fn save(&self, path: impl AsRef<Path>) -> Result<(), CheckpointError>;

    /// Reads a state that [`save`](Self::save) wrote.
    ///
    /// The file is checked to be such a state and consistent in itself;
    /// [`StreamingLm::check_state`] then compares it with a model.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the file is missing or damaged, holds something else or a state
    /// of another mixer, lacks a tensor, or has one of a wrong shape or with a NaN.
    fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self, CheckpointError>;
}

/// Next-token targets, checked on the host and held on the device.
///
/// Made once from labels `[batch, time]`; see [`CausalLm::loss`] for what they mean.
#[derive(Debug, Clone)]
pub struct Targets {
    batch: usize,
    time: usize,
    /// Positions at the end of the logits that no target judges: 1 where labels are shifted, else 0.
    shift: usize,
    /// Rows of the flattened `[batch * (time - shift)]` positions that count; `None` when all do.
    counted: Option<Tensor<1, Int>>,
    /// Their tokens, `[N, 1]`.
    tokens: Tensor<2, Int>,
}

impl Targets {
    /// Shifts and checks labels `[batch, time]` for a vocabulary of `vocab_size`.
    ///
    /// # Errors
    ///
    /// [`InputError`] when the labels are no `[batch, time]`, when every shifted label is ignored,
    /// or when one is neither -100 nor a token.
    pub fn new(labels: &TensorData, vocab_size: usize, device: &Device) -> Result<Self, InputError> {
        Self::collect("labels", labels, IGNORED_LABEL, 1, vocab_size, device)
    }

    /// Checks targets `[batch, time]` that already stand at the position that predicts them: position
    /// `t` is judged by target `t`. A target of `ignored` is not counted.
    ///
    /// # Errors
    ///
    /// [`InputError`] when the targets are no `[batch, time]`, when all are ignored, or when one is
    /// neither `ignored` nor a token.
    pub fn aligned(
        targets: &TensorData,
        ignored: i64,
        vocab_size: usize,
        device: &Device,
    ) -> Result<Self, InputError> {
        Self::collect("targets", targets, ignored, 0, vocab_size, device)
    }

    fn collect(
        field: &str,
        labels: &TensorData,
        ignored: i64,
        shift: usize,
        vocab_size: usize,
        device: &Device,
    ) -> Result<Self, InputError> {
        let [batch, time] = labels.shape()[..] else {
            return Err(InputError::new(field, format!("shape {:?}", labels.shape()), "[batch, time]"));
        };
        let labels: Vec<i64> = labels.iter::<i64>().collect();
        let (mut counted, mut tokens) = (Vec::new(), Vec::new());
        for (row, labels) in labels.chunks(time.max(1)).enumerate() {
            for (column, &label) in labels.iter().enumerate().skip(shift) {
                if label == ignored {
                    continue;
                }
                if !is_token(label, vocab_size) {
                    return Err(InputError::new(
                        field,
                        format!("{label} at [{row}, {column}]"),
                        format!("0 .. {vocab_size}, or {ignored} to ignore the position"),
                    ));
                }
                counted.push((row * (time - shift) + column - shift) as i64);
                tokens.push(label);
            }
        }
        let count = tokens.len();
        if count == 0 {
            let place = if shift > 0 { " after the first position" } else { "" };
            return Err(InputError::new(
                field,
                format!("[{batch}, {time}] without one that counts"),
                format!("one other than {ignored}{place}"),
            ));
        }
        let all = count == batch * (time - shift);
        Ok(Self {
            batch,
            time,
            shift,
            counted: (!all).then(|| Tensor::from_data(TensorData::new(counted, [count]), device)),
            tokens: Tensor::from_data(TensorData::new(tokens, [count, 1]), device),
        })
    }

    /// Number of positions that count.
    pub fn count(&self) -> usize {
        self.tokens.dims()[0]
    }

    /// The negative log likelihood of every counted target in nats, `[N]`, float32.
    ///
    /// # Panics
    ///
    /// When `logits` is not `[batch, time, vocab_size]` with the labels' batch and time.
    pub fn negative_log_likelihood(&self, logits: Tensor<3>) -> Tensor<1> {
        let [batch, time, vocab_size] = logits.dims();
        assert!(
            [batch, time] == [self.batch, self.time],
            "loss: `logits` has [batch, time] = [{batch}, {time}], the labels [{}, {}]",
            self.batch,
            self.time
        );
        let judged = time - self.shift;
        let rows = logits.narrow(1, 0, judged).reshape([batch * judged, vocab_size]);
        let rows = match &self.counted {
            Some(counted) => rows.select(0, counted.clone()),
            None => rows,
        };
        let log_probability = activation::log_softmax(float32(rows), 1);
        log_probability.gather(1, self.tokens.clone()).squeeze_dim::<1>(1).neg()
    }

    /// Mean of [`negative_log_likelihood`](Self::negative_log_likelihood), `[1]`.
    ///
    /// # Panics
    ///
    /// As there.
    pub fn cross_entropy(&self, logits: Tensor<3>) -> Tensor<1> {
        self.negative_log_likelihood(logits).mean()
    }
}

/// What every model asks of its input: a token at least, and in debug builds that it knows all of them.
pub(crate) fn expect_tokens(model: &impl CausalLm, input_ids: &Tensor<2, Int>) {
    let dims = input_ids.dims();
    assert!(!dims.contains(&0), "`input_ids` holds no token, shape {dims:?}");
    if cfg!(debug_assertions) {
        model.check_ids(input_ids).unwrap_or_else(|error| panic!("{error}"));
    }
}

fn is_token(id: i64, vocab_size: usize) -> bool {
    usize::try_from(id).is_ok_and(|id| id < vocab_size)
}

/// Half precision as float32, all else unchanged.
pub(crate) fn float32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
}
