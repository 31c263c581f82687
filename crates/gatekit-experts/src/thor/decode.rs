//! Decoding token by token.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::attention::KvCache;

use super::assignment::ExpertAssignment;
use super::model::{Remaining, ThorExperts, ThorModel, normed};

/// What decoding has to know of source and target so far: keys and values of every layer, and the experts
/// that were drawn for the sentences, which stay the same to the end.
#[derive(Debug, Clone)]
pub struct ThorState {
    /// Keys and values of the encoder's output, a layer.
    memory: Vec<KvCache>,
    memory_padding: Tensor<2, Bool>,
    /// Keys and values of the target so far, a layer; `None` before its first token.
    past: Vec<Option<KvCache>>,
    experts: Vec<ExpertAssignment>,
    position: usize,
}

impl ThorState {
    /// Number of target tokens read, so also the position of the next one.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The same state on another device.
    pub fn to_device(self, device: &Device) -> Self {
        Self {
            memory: self.memory.into_iter().map(|cache| cache.to_device(device)).collect(),
            memory_padding: self.memory_padding.to_device(device),
            past: self.past.into_iter().map(|cache| cache.map(|cache| cache.to_device(device))).collect(),
            ..self
        }
    }
}

impl ThorModel {
    /// Reads the source `[batch, source]`, before the first token of the target. Where tokens have experts of
    /// their own, the decoder's assignments say how many tokens can be decoded.
    ///
    /// # Errors
    ///
    /// [`InputError`] for experts that do not exist, or belong to other tokens or layers.
    pub fn start(&self, source: Tensor<2, Int>, experts: &ThorExperts) -> Result<ThorState, InputError> {
        Remaining::new("decoder", &experts.decoder, self.expert_layers()[1])?;
        let memory_padding = self.padding(&source);
        let encoder_out = self.encode(source, Some(&memory_padding), &experts.encoder)?;
        let memory = self.decoder.layers.iter();
        let memory: Vec<_> = memory.map(|layer| layer.encoder_attn.remember(encoder_out.clone())).collect();
        let past = vec![None; memory.len()];
        Ok(ThorState { memory, memory_padding, past, experts: experts.decoder.clone(), position: 0 })
    }

    /// One more target token of every row, `[batch]`, to the logits `[batch, V]` of the one that follows.
    /// The result equals that of [`forward`](ThorModel::forward) over the whole target.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start); also when tokens have experts of their own and this one has none.
    ///
    /// # Panics
    ///
    /// When the batch is another than the source's.
    pub fn step(
        &self,
        tokens: Tensor<1, Int>,
        state: ThorState,
    ) -> Result<(Tensor<2>, ThorState), InputError> {
        let ThorState { memory, memory_padding, past, experts, position } = state;
        let now = experts.iter().map(|experts| match experts {
            ExpertAssignment::Token { time, .. } if *time <= position => {
                let got = format!("those of {time} positions");
                Err(InputError::new("experts", got, format!("one for position {position}")))
            }
            experts => Ok(experts.at(position)),
        });
        let now = now.collect::<Result<Vec<_>, _>>()?;
        let mut assigned = Remaining::new("decoder", &now, self.expert_layers()[1])?;
        let mut x = self.embed(tokens.unsqueeze_dim(1), position);
        let mut seen = Vec::with_capacity(past.len());
        for ((layer, memory), past) in self.decoder.layers.iter().zip(&memory).zip(past) {
            let experts = assigned.next(layer.ffn.num_experts().is_some());
            let (y, cache) = layer.advance(x, past, None, memory, Some(&memory_padding), experts)?;
            x = y;
            seen.push(Some(cache));
        }
        let logits = self.logits(normed(&self.decoder.layer_norm, x)).squeeze_dim(1);
        Ok((logits, ThorState { memory, memory_padding, past: seen, experts, position: position + 1 }))
    }

    /// The likeliest token at every step, for source rows `[batch, source]`: from `begin` until `end`, or
    /// `max_length` tokens. Returns each row's tokens without either.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start); with experts a token, they must be drawn for `max_length` of them.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn greedy(
        &self,
        source: Tensor<2, Int>,
        begin: i64,
        end: i64,
        max_length: usize,
        experts: &ThorExperts,
    ) -> Result<Vec<Vec<i64>>, InputError> {
        let (batch, device) = (source.dims()[0], source.device());
        let mut sentences = vec![Vec::new(); batch];
        let mut open = vec![true; batch];
        let mut last = vec![begin; batch];
        if batch == 0 {
            return Ok(sentences);
        }
        let mut state = self.start(source, experts)?;
        while open.contains(&true) && state.position < max_length {
            let tokens = Tensor::from_data(TensorData::new(last, [batch]), &device);
            let (logits, next) = self.step(tokens, state)?;
            state = next;
            last = logits.argmax(1).into_data().iter::<i64>().collect();
            for (row, token) in last.iter().enumerate() {
                open[row] &= *token != end;
                if open[row] {
                    sentences[row].push(*token);
                }
            }
        }
        Ok(sentences)
    }
}
