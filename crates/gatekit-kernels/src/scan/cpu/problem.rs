//! What the kernels are asked to compute, and their results.

use std::ops::Range;

/// Natural logarithm of the decay of each step, never positive.
#[derive(Clone, Copy, Debug)]
pub enum Decay<'a, F = f32> {
    /// The state never decays.
    None,
    /// One value per head: `[B, T, H]`.
    PerHead(&'a [F]),
    /// One value per key channel: `[B, T, H, K]`.
    PerKey(&'a [F]),
}

impl<F> Decay<'_, F> {
    /// The decays per key channel, if that is what they are.
    pub(super) fn per_key(&self) -> Option<&[F]> {
        if let Self::PerKey(g) = self { Some(g) } else { None }
    }

    /// Whether there is no decay.
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// A stretch of one batch row that is a sequence of its own: it starts from its own initial state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Batch row, below `B`.
    pub row: usize,
    /// First time step.
    pub start: usize,
    /// One past the last time step.
    pub end: usize,
    /// Index of its state in the initial and final states.
    pub state: usize,
}

impl Segment {
    /// One segment per batch row of `time` steps, row `b` with state `b`.
    pub fn rows(batch: usize, time: usize) -> Vec<Self> {
        (0..batch).map(|row| Self { row, start: 0, end: time, state: row }).collect()
    }

    /// The segments of one packed row: `boundaries` is `[0, .., T]`, strictly increasing; the n-th segment has state n.
    pub fn packed(boundaries: &[usize]) -> Vec<Self> {
        (boundaries.windows(2).enumerate())
            .map(|(state, pair)| Self { row: 0, start: pair[0], end: pair[1], state })
            .collect()
    }

    /// The global token numbers `row * T + t` of the segment.
    pub(super) fn tokens(&self, time: usize) -> Range<usize> {
        self.row * time + self.start..self.row * time + self.end
    }
}

/// Inputs of the scan
///
/// ```text
/// S' = diag(exp g_t) S_{t-1}
/// S_t = S' + k_t v_t^T                            (additive)
/// S_t = S' + beta_t k_t (v_t - S'^T k_t)^T        (delta rule, when `beta` is given)
/// o_t = scale * S_t^T q_t
/// ```
///
/// (gated linear attention, Yang et al. 2024, eq. 3; gated delta rule with a decay per channel, Kimi Team 2025, eq. 1),
/// all arrays contiguous in the order given.
#[derive(Clone, Debug)]
pub struct Problem<'a, F = f32> {
    /// Batch rows, B.
    pub batch: usize,
    /// Time steps of a row, T.
    pub time: usize,
    /// Heads, H.
    pub heads: usize,
    /// Width of queries and keys, K.
    pub key_dim: usize,
    /// Width of values, V.
    pub value_dim: usize,
    /// Segments that cover every time step of every row once; their states are `0..segments.len()`, each once.
    pub segments: &'a [Segment],
    /// Factor on the queries.
    pub scale: F,
    /// Queries `[B, T, H, K]`.
    pub q: &'a [F],
    /// Keys `[B, T, H, K]`.
    pub k: &'a [F],
    /// Values `[B, T, H, V]`.
    pub v: &'a [F],
    /// Log decays.
    pub decay: Decay<'a, F>,
    /// Write strengths `[B, T, H]` of the delta rule; without them the write is additive.
    pub beta: Option<&'a [F]>,
    /// Initial states `[segments, H, K, V]`, 0 without.
    pub initial_state: Option<&'a [F]>,
}

/// Result of the forward scan.
#[derive(Clone, Debug, PartialEq)]
pub struct Output<F = f32> {
    /// o, `[B, T, H, V]`.
    pub output: Vec<F>,
    /// State after the last step of each segment, `[segments, H, K, V]`.
    pub state: Vec<F>,
}

/// Gradients of the scan's inputs, each of its input's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients<F = f32> {
    /// Of the queries.
    pub q: Vec<F>,
    /// Of the keys.
    pub k: Vec<F>,
    /// Of the values.
    pub v: Vec<F>,
    /// Of the log decays, where there are any.
    pub decay: Option<Vec<F>>,
    /// Of the write strengths, where there are any.
    pub beta: Option<Vec<F>>,
    /// Of the initial states, where they were given.
    pub initial_state: Option<Vec<F>>,
}

/// Panics unless a slice has the length of its shape.
pub(super) fn expect_shape(name: &str, got: usize, shape: &[usize]) {
    let need = shape.iter().product::<usize>();
    assert!(got == need, "`{name}`: got {got} elements, need {need} for the shape {shape:?}");
}

impl<F> Problem<'_, F> {
    /// Tokens of all rows, `B * T`.
    pub(super) fn tokens(&self) -> usize {
        self.batch * self.time
    }

    /// Elements of one state, `K * V`.
    pub(super) fn state_len(&self) -> usize {
        self.key_dim * self.value_dim
    }

    /// Pairs of a segment and a head.
    pub(super) fn sequences(&self) -> usize {
        self.segments.len() * self.heads
    }

    /// Where the state of a segment and head starts in `[segments, H, K, V]`.
    pub(super) fn state_offset(&self, segment: &Segment, head: usize) -> usize {
        (segment.state * self.heads + head) * self.state_len()
    }

    /// Panics unless the arrays have the shapes and the segments the cover that the documentation asks for.
    pub(super) fn check(&self) {
        let Self { batch, time, heads, key_dim, value_dim, .. } = *self;
        for (name, size) in [
            ("batch", batch),
            ("time", time),
            ("heads", heads),
            ("key_dim", key_dim),
            ("value_dim", value_dim),
        ] {
            assert!(size > 0, "`{name}`: got 0, need at least 1");
        }
        expect_shape("q", self.q.len(), &[batch, time, heads, key_dim]);
        expect_shape("k", self.k.len(), &[batch, time, heads, key_dim]);
        expect_shape("v", self.v.len(), &[batch, time, heads, value_dim]);
        match self.decay {
            Decay::None => {}
            Decay::PerHead(g) => expect_shape("decay", g.len(), &[batch, time, heads]),
            Decay::PerKey(g) => expect_shape("decay", g.len(), &[batch, time, heads, key_dim]),
        }
        if let Some(beta) = self.beta {
            expect_shape("beta", beta.len(), &[batch, time, heads]);
        }
        if let Some(state) = self.initial_state {
            expect_shape("initial_state", state.len(), &[self.segments.len(), heads, key_dim, value_dim]);
        }
        self.check_segments();
    }

    fn check_segments(&self) {
        let mut states = vec![false; self.segments.len()];
        for segment in self.segments {
            assert!(
                segment.row < self.batch && segment.start < segment.end && segment.end <= self.time,
                "`segments`: got {segment:?}, need a stretch of at least one step within [{}, {}] (batch, time)",
                self.batch,
                self.time
            );
            assert!(
                segment.state < states.len() && !std::mem::replace(&mut states[segment.state], true),
                "`segments`: got {segment:?}, need each state of 0..{} once",
                self.segments.len()
            );
        }
        let mut sorted: Vec<_> = self.segments.iter().map(|s| s.tokens(self.time)).collect();
        sorted.sort_unstable_by_key(|tokens| tokens.start);
        let mut covered = 0;
        for tokens in sorted {
            assert!(
                tokens.start == covered,
                "`segments`: got one that starts at token {}, need {covered}: each token belongs to one segment",
                tokens.start
            );
            covered = tokens.end;
        }
        assert!(
            covered == self.tokens(),
            "`segments`: got a cover of {covered} tokens, need {} ([{}, {}])",
            self.tokens(),
            self.batch,
            self.time
        );
    }
}
