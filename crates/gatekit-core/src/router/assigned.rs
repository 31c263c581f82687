//! Experts by a table of token ids or by chance.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};

use super::learned::read;
use super::{Assignment, RouterInputs, Routing};
use crate::error::InputError;

/// One expert a token with weight 1, from a table or drawn.
///
/// Roller et al., "Hash Layers" (arXiv 2106.04426), with the balanced table of its section 3.1;
/// Zuo et al., "Taming Sparsely Activated Transformer with Stochastic Experts" (arXiv 2110.04260).
#[derive(Module, Debug)]
pub struct StochasticAssignment {
    /// The expert of every token id, `[V]`; `None`: experts are drawn.
    pub hash_table: Option<Param<Tensor<1, Int>>>,
    num_experts: usize,
}

impl StochasticAssignment {
    /// Draws experts uniformly.
    ///
    /// # Panics
    ///
    /// Without an expert.
    pub fn random(num_experts: usize) -> Self {
        assert!(num_experts > 0, "StochasticAssignment: needs at least 1 expert");
        Self { hash_table: None, num_experts }
    }

    /// The balanced table: tokens by falling frequency (of equal ones the lower id first), each
    /// to the expert with the smallest total so far (of equal ones the lower index).
    ///
    /// # Panics
    ///
    /// Without an expert.
    pub fn balanced(frequencies: &[f64], num_experts: usize, device: &Device) -> Self {
        assert!(num_experts > 0, "StochasticAssignment: needs at least 1 expert");
        let mut tokens: Vec<usize> = (0..frequencies.len()).collect();
        tokens.sort_by(|a, b| frequencies[*b].total_cmp(&frequencies[*a]));
        let mut totals = vec![0.0; num_experts];
        let mut table = vec![0i64; frequencies.len()];
        for token in tokens {
            let mut smallest = 0;
            for expert in 1..num_experts {
                if totals[expert] < totals[smallest] {
                    smallest = expert;
                }
            }
            totals[smallest] += frequencies[token];
            table[token] = smallest as i64;
        }
        let size = table.len();
        let table = Tensor::from_data(TensorData::new(table, [size]), device);
        Self { hash_table: Some(Param::initialized(ParamId::new(), table)), num_experts }
    }

    /// A table from outside, `[V]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for an entry that is no expert.
    pub fn from_table(table: Tensor<1, Int>, num_experts: usize) -> Result<Self, InputError> {
        check("hash_table", &table, num_experts)?;
        Ok(Self { hash_table: Some(Param::initialized(ParamId::new(), table)), num_experts })
    }

    /// Number of experts.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Assigns tokens `x` `[N, D]` by their ids, or to the given or drawn experts.
    ///
    /// # Errors
    ///
    /// [`InputError`] when ids are needed and missing, an id lies outside the table, a given
    /// expert is none, or there is not one of them a token.
    pub fn route(&self, x: &Tensor<2>, inputs: &RouterInputs) -> Result<Routing, InputError> {
        let (tokens, device) = (x.dims()[0], x.device());
        let experts = match &self.hash_table {
            Some(table) => {
                let ids = inputs.token_ids.as_ref();
                let ids = ids.ok_or_else(|| InputError::new("token_ids", "none", "one a token"))?;
                let table = table.val();
                let ids = check("token_ids", ids, table.dims()[0])?;
                let table: Vec<i64> = table.into_data().iter::<i64>().collect();
                ids.into_iter().map(|id| table[id] as usize).collect()
            }
            None => match &inputs.expert_draws {
                Some(draws) => check("expert_draws", draws, self.num_experts)?,
                None => self.draw(tokens, &device),
            },
        };
        if experts.len() != tokens {
            let name = if self.hash_table.is_some() { "token_ids" } else { "expert_draws" };
            return Err(InputError::new(name, format!("{} entries", experts.len()), format!("{tokens}")));
        }
        let assignment = Assignment::new(experts, 1, self.num_experts)?;
        Ok(Routing {
            logits: None,
            scores: None,
            indices: assignment.indices(&device),
            weights: Tensor::ones([tokens, 1], &device),
            load: None,
            assignment,
        })
    }

    fn draw(&self, tokens: usize, device: &Device) -> Vec<usize> {
        if tokens == 0 {
            return Vec::new();
        }
        let draws = Tensor::<1>::random([tokens], Distribution::Default, device);
        let last = self.num_experts - 1;
        read(draws).into_iter().map(|draw| ((draw * self.num_experts as f64) as usize).min(last)).collect()
    }
}

/// Values that must lie in `0 .. bound`.
fn check(name: &str, values: &Tensor<1, Int>, bound: usize) -> Result<Vec<usize>, InputError> {
    let data = values.to_data();
    let checked = data.iter::<i64>().enumerate().map(|(index, value)| {
        let inside = usize::try_from(value).ok().filter(|value| *value < bound);
        inside.ok_or_else(|| InputError::new(name, format!("{value} at [{index}]"), format!("0 .. {bound}")))
    });
    checked.collect()
}
