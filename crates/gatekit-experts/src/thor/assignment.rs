//! Which expert serves whom, and how it is drawn.

use burn::tensor::{Int, Tensor};
use gatekit_core::{ConfigError, InputError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// What has an expert of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertLevel {
    /// A pass: one expert for the whole batch. What training uses.
    Pass,
    /// A row of the batch.
    Sentence,
    /// A position.
    Token,
}

/// The experts of one layer in one pass over `[batch, time]` tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpertAssignment {
    /// This expert for all tokens.
    Pass(usize),
    /// One for each of `batch` rows.
    Sentence(Vec<usize>),
    /// One for each position, row after row.
    Token {
        /// `batch * time` experts.
        experts: Vec<usize>,
        /// Positions of a row.
        time: usize,
    },
    /// The mean of what all experts say: deterministic, and as many times dearer.
    Mean,
}

impl ExpertAssignment {
    /// Experts as a tensor of the level's shape: `[1]` for a pass, `[batch]` for sentences, `[batch, time]`
    /// for tokens.
    ///
    /// # Errors
    ///
    /// [`InputError`] for another shape, and names the first entry that is none of `num_experts` experts
    /// with its position.
    pub fn from_tensor<const R: usize>(
        level: ExpertLevel,
        experts: &Tensor<R, Int>,
        num_experts: usize,
    ) -> Result<Self, InputError> {
        let dims = experts.dims();
        let need = match level {
            ExpertLevel::Pass => "[1], one for the whole pass",
            ExpertLevel::Sentence => "[batch], one a row",
            ExpertLevel::Token => "[batch, time], one a position",
        };
        let fits = match level {
            ExpertLevel::Pass => dims[..] == [1],
            ExpertLevel::Sentence => R == 1,
            ExpertLevel::Token => R == 2,
        };
        if !fits {
            return Err(InputError::new("experts", format!("shape {dims:?}"), need));
        }
        let time = dims[R - 1];
        let experts: Vec<i64> = experts.to_data().iter::<i64>().collect();
        let experts = (experts.into_iter().enumerate())
            .map(|(index, expert)| {
                let known = usize::try_from(expert).ok().filter(|expert| *expert < num_experts);
                known.ok_or_else(|| refused(expert, place(level, index, time), num_experts))
            })
            .collect::<Result<Vec<usize>, _>>()?;
        Ok(match level {
            ExpertLevel::Pass => Self::Pass(experts[0]),
            ExpertLevel::Sentence => Self::Sentence(experts),
            ExpertLevel::Token => Self::Token { experts, time },
        })
    }

    /// The same for one position of every row: what decoding token by token needs.
    ///
    /// # Panics
    ///
    /// When tokens have experts of their own and there is no such position.
    pub fn at(&self, position: usize) -> Self {
        match self {
            Self::Token { experts, time } => {
                assert!(position < *time, "ExpertAssignment: position {position} of {time}");
                Self::Token {
                    experts: experts.iter().skip(position).step_by(*time).copied().collect(),
                    time: 1,
                }
            }
            whole => whole.clone(),
        }
    }

    /// Refuses experts that do not exist or do not belong to `[batch, time]` tokens.
    pub(super) fn check(&self, num_experts: usize, [batch, time]: [usize; 2]) -> Result<(), InputError> {
        let (level, experts, fits) = match self {
            Self::Mean => return Ok(()),
            Self::Pass(expert) => (ExpertLevel::Pass, std::slice::from_ref(expert), true),
            Self::Sentence(experts) => (ExpertLevel::Sentence, &experts[..], experts.len() == batch),
            Self::Token { experts, time: of_row } => {
                (ExpertLevel::Token, &experts[..], *of_row == time && experts.len() == batch * time)
            }
        };
        if !fits {
            let got = match self {
                Self::Token { time, .. } => format!("{} positions of {time} a row", experts.len()),
                _ => format!("{} rows", experts.len()),
            };
            return Err(InputError::new("experts", got, format!("those of [{batch}, {time}] tokens")));
        }
        match experts.iter().position(|expert| *expert >= num_experts) {
            Some(index) => Err(refused(experts[index], place(level, index, time), num_experts)),
            None => Ok(()),
        }
    }

    /// One expert a token, row after row; of an assignment that has been checked. `None` for the mean.
    pub(super) fn per_token(&self, [batch, time]: [usize; 2]) -> Option<Vec<usize>> {
        match self {
            Self::Pass(expert) => Some(vec![*expert; batch * time]),
            Self::Sentence(experts) => {
                Some(experts.iter().flat_map(|expert| std::iter::repeat_n(*expert, time)).collect())
            }
            Self::Token { experts, .. } => Some(experts.clone()),
            Self::Mean => None,
        }
    }
}

/// Where an entry stands, as an index of the level's shape.
fn place(level: ExpertLevel, index: usize, time: usize) -> String {
    match level {
        ExpertLevel::Token => format!("[{}, {}]", index / time, index % time),
        ExpertLevel::Pass | ExpertLevel::Sentence => format!("[{index}]"),
    }
}

fn refused(expert: impl std::fmt::Display, place: String, num_experts: usize) -> InputError {
    InputError::new("experts", format!("{expert} at {place}"), format!("0 .. {num_experts}"))
}

/// Draws experts, uniformly and independently, from a generator of its own.
///
/// A generator in the same state draws the same experts again; two passes over one batch must be given
/// two consecutive drawings, as [`ThorTrainer`](super::ThorTrainer) does.
///
/// ```
/// use gatekit_experts::thor::{ExpertAssignment, ExpertDraw, ExpertLevel};
///
/// let mut draw = ExpertDraw::new(4, ExpertLevel::Token, 7).unwrap();
/// let first = draw.assignment([2, 3]);
/// assert_ne!(first, draw.assignment([2, 3]));
/// assert_eq!(first, ExpertDraw::new(4, ExpertLevel::Token, 7).unwrap().assignment([2, 3]));
/// ```
#[derive(Debug)]
pub struct ExpertDraw {
    random: StdRng,
    num_experts: usize,
    level: ExpertLevel,
}

impl ExpertDraw {
    /// Among `num_experts` experts, at `level`, from `seed`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] without an expert.
    pub fn new(num_experts: usize, level: ExpertLevel, seed: u64) -> Result<Self, ConfigError> {
        if num_experts == 0 {
            return Err(ConfigError::new("num_experts", 0, "at least 1"));
        }
        Ok(Self { random: StdRng::seed_from_u64(seed), num_experts, level })
    }

    /// What has an expert of its own.
    pub fn level(&self) -> ExpertLevel {
        self.level
    }

    /// Number of experts.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// The next drawing, for a layer that sees `[batch, time]` tokens.
    pub fn assignment(&mut self, [batch, time]: [usize; 2]) -> ExpertAssignment {
        match self.level {
            ExpertLevel::Pass => ExpertAssignment::Pass(self.expert()),
            ExpertLevel::Sentence => ExpertAssignment::Sentence((0..batch).map(|_| self.expert()).collect()),
            ExpertLevel::Token => {
                ExpertAssignment::Token { experts: (0..batch * time).map(|_| self.expert()).collect(), time }
            }
        }
    }

    fn expert(&mut self) -> usize {
        self.random.random_range(0..self.num_experts)
    }
}
