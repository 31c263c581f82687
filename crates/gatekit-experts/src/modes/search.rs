//! The best pair of thresholds for a share of skipped slots.

use std::collections::BTreeMap;

use burn::config::Config;
use gatekit_core::ConfigError;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Measurement, Thresholds};

/// From equally spaced points to thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GridMap {
    /// `2 / (1 + exp(-c (x - 1)))`: most thresholds are small.
    Exp,
    /// `x`.
    Linear,
}

/// Configuration of [`FrontierSearch`].
#[derive(Config, Debug)]
pub struct FrontierSearchConfig {
    /// Least share of slots that are to be skipped, in (0, 1]; 0.6 to 0.88 in the paper.
    pub target_skip: f64,
    /// Grid points of each modality, at least 2. Default 100.
    #[config(default = 100)]
    pub grid_num: usize,
    /// Where the text grid ends before it is mapped; it starts at 0. Default 0.71.
    #[config(default = 0.71)]
    pub text_max: f64,
    /// The same for vision. Default 0.6.
    #[config(default = 0.6)]
    pub vision_max: f64,
    /// From points to thresholds. Default exponential.
    #[config(default = "GridMap::Exp")]
    pub grid_map: GridMap,
    /// `c` of the exponential map, above 0. Default 10.
    #[config(default = 10.0)]
    pub exp_coeff: f64,
    /// How much the skip ratio may fall where a threshold rises before the search gives up; at least
    /// 0. In a model it does fall a little: what one layer skips moves the routing of the next. The
    /// ratio of the pair found may then lie as much below the target. Default 1e-6.
    #[config(default = 1e-6)]
    pub ratio_tolerance: f64,
}

impl FrontierSearchConfig {
    /// Builds the search.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a target outside (0, 1], less than 2 grid points, or an end or a
    /// coefficient with which the grid would not ascend.
    pub fn try_init(&self) -> Result<FrontierSearch, ConfigError> {
        if !(self.target_skip > 0.0 && self.target_skip <= 1.0) {
            return Err(ConfigError::new("target_skip", self.target_skip, "above 0, at most 1"));
        }
        if self.grid_num < 2 {
            return Err(ConfigError::new("grid_num", self.grid_num, "at least 2"));
        }
        let positive = [("text_max", self.text_max), ("vision_max", self.vision_max)];
        let coefficient = (self.grid_map == GridMap::Exp).then_some(("exp_coeff", self.exp_coeff));
        for (field, value) in positive.into_iter().chain(coefficient) {
            if !(value.is_finite() && value > 0.0) {
                return Err(ConfigError::new(field, value, "a finite number above 0"));
            }
        }
        let tolerance = self.ratio_tolerance;
        if !(tolerance.is_finite() && tolerance >= 0.0) {
            return Err(ConfigError::new("ratio_tolerance", tolerance, "a finite number, at least 0"));
        }
        let grid = |max: f64| -> Vec<f64> {
            let step = max / (self.grid_num - 1) as f64;
            (0..self.grid_num).map(|index| self.map(index as f64 * step)).collect()
        };
        Ok(FrontierSearch {
            target: self.target_skip,
            tolerance,
            text: grid(self.text_max),
            vision: grid(self.vision_max),
        })
    }

    fn map(&self, x: f64) -> f64 {
        match self.grid_map {
            GridMap::Exp => 2.0 / (1.0 + (-self.exp_coeff * (x - 1.0)).exp()),
            GridMap::Linear => x,
        }
    }
}

/// Walks along the border of the pairs of thresholds that skip enough.
///
/// With thresholds `text[i]` and `vision[j]`, ascending, the skip ratio f(i, j) and the loss g(i, j)
/// both grow in i and in j. The pair of least g with f >= target then lies on the border, which
/// falls from the largest j to the smallest as i grows:
///
/// ```text
/// j = last;  for i = 0, 1, ..:   while j >= 0 and f(i, j) >= target:  j -= 1
///                                if j + 1 exists: (i, j + 1) is the cheapest pair of row i
/// ```
///
/// At most `3 grid_num + 1` pairs are measured instead of `grid_num^2`, none twice.
///
/// ```
/// use std::convert::Infallible;
///
/// use gatekit_experts::modes::{FrontierSearchConfig, Measurement};
///
/// let search = FrontierSearchConfig::new(0.5).with_grid_num(20).try_init().unwrap();
/// let measure = |i: usize, j: usize| {
///     let (i, j) = (i as f64 / 19.0, j as f64 / 19.0);
///     Ok::<_, Infallible>(Measurement { loss: i + 2.0 * j * j, skip_ratio: 0.5 * (i + j) })
/// };
/// let frontier = search.run(measure).unwrap();
/// assert_eq!(frontier.best, (14, 5));
/// assert!(frontier.evaluations() <= 61);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct FrontierSearch {
    target: f64,
    tolerance: f64,
    text: Vec<f64>,
    vision: Vec<f64>,
}

/// Why there is no best pair; `E` is what can go wrong in measuring.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SearchError<E: std::error::Error + 'static> {
    /// The largest thresholds do not skip enough.
    #[error(
        "input `target_skip`: got {target}, need at most {largest}, the largest ratio that the grid reaches"
    )]
    Infeasible {
        /// The ratio asked for.
        target: f64,
        /// The ratio of the largest thresholds.
        largest: f64,
    },
    /// The skip ratio falls where a threshold rises, so that the search would be wrong.
    #[error(
        "the skip ratio is not monotone: {ratio} at grid pair {pair:?} of (text, vision), but {lower_ratio} at {lower:?}"
    )]
    NotMonotone {
        /// The pair with the larger thresholds.
        pair: (usize, usize),
        /// Its ratio.
        ratio: f64,
        /// The pair with the smaller thresholds.
        lower: (usize, usize),
        /// Its ratio, which is larger.
        lower_ratio: f64,
    },
    /// A loss or a ratio that cannot be compared.
    #[error("{what} is not finite at grid pair {pair:?} of (text, vision): {value}")]
    NotFinite {
        /// `loss` or `skip_ratio`.
        what: &'static str,
        /// The pair.
        pair: (usize, usize),
        /// The value.
        value: f64,
    },
    /// A pair could not be measured.
    #[error(transparent)]
    Measure(#[from] E),
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Frontier {
    /// Grid indices of text and vision of the best pair.
    pub best: (usize, usize),
    /// Its thresholds.
    pub thresholds: Thresholds,
    /// Its loss and skip ratio.
    pub measured: Measurement,
    /// The cheapest pair of every row that has one, by rising text index.
    pub frontier: Vec<(usize, usize)>,
    /// The pairs that were measured, in their order, the feasibility test first.
    pub path: Vec<(usize, usize)>,
}

impl Frontier {
    /// Number of distinct pairs that were measured, the feasibility test included.
    pub fn evaluations(&self) -> usize {
        self.path.len()
    }
}

impl FrontierSearch {
    /// The thresholds for text tokens, ascending.
    pub fn text_grid(&self) -> &[f64] {
        &self.text
    }

    /// The thresholds for vision tokens, ascending.
    pub fn vision_grid(&self) -> &[f64] {
        &self.vision
    }

    /// The thresholds of a pair of grid indices (text, vision).
    ///
    /// # Panics
    ///
    /// When there is no such pair.
    pub fn thresholds(&self, (i, j): (usize, usize)) -> Thresholds {
        Thresholds::new(self.text[i], self.vision[j]).expect("grids start at 0 and ascend")
    }

    /// Searches; `measure` gives loss and skip ratio of a pair (text index, vision index).
    ///
    /// # Errors
    ///
    /// [`SearchError`] when the target is out of reach, the skip ratio falls by more than the
    /// tolerance where a threshold rises, a value is not finite, or `measure` fails.
    pub fn run<E: std::error::Error + 'static>(
        &self,
        measure: impl FnMut(usize, usize) -> Result<Measurement, E>,
    ) -> Result<Frontier, SearchError<E>> {
        let mut known =
            Known { measure, tolerance: self.tolerance, measured: BTreeMap::new(), path: Vec::new() };
        let last = self.vision.len() - 1;
        let largest = known.at(self.text.len() - 1, last)?.skip_ratio;
        if largest < self.target {
            return Err(SearchError::Infeasible { target: self.target, largest });
        }
        let mut best: Option<((usize, usize), Measurement)> = None;
        let mut frontier = Vec::new();
        // Columns from here on skip enough in this row.
        let mut first = last + 1;
        for i in 0..self.text.len() {
            while first > 0 && known.at(i, first - 1)?.skip_ratio >= self.target {
                first -= 1;
            }
            if first > last {
                continue;
            }
            let measured = known.at(i, first)?;
            frontier.push((i, first));
            if best.is_none_or(|(_, best)| measured.loss < best.loss) {
                best = Some(((i, first), measured));
            }
        }
        let (pair, measured) = best.expect("the last row skips enough");
        let thresholds = self.thresholds(pair);
        Ok(Frontier { best: pair, thresholds, measured, frontier, path: known.path })
    }
}

/// Every pair is measured once and compared with those before it.
struct Known<F> {
    measure: F,
    tolerance: f64,
    measured: BTreeMap<(usize, usize), Measurement>,
    path: Vec<(usize, usize)>,
}

impl<F> Known<F> {
    fn at<E: std::error::Error + 'static>(
        &mut self,
        i: usize,
        j: usize,
    ) -> Result<Measurement, SearchError<E>>
    where
        F: FnMut(usize, usize) -> Result<Measurement, E>,
    {
        let pair = (i, j);
        if let Some(measured) = self.measured.get(&pair) {
            return Ok(*measured);
        }
        let new = (self.measure)(i, j)?;
        for (what, value) in [("loss", new.loss), ("skip_ratio", new.skip_ratio)] {
            if !value.is_finite() {
                return Err(SearchError::NotFinite { what, pair, value });
            }
        }
        for (&other, old) in &self.measured {
            let (lower, higher) = match (other.0 <= i && other.1 <= j, i <= other.0 && j <= other.1) {
                (true, _) => ((other, old.skip_ratio), (pair, new.skip_ratio)),
                (_, true) => ((pair, new.skip_ratio), (other, old.skip_ratio)),
                _ => continue,
            };
            if higher.1 < lower.1 - self.tolerance {
                return Err(SearchError::NotMonotone {
                    pair: higher.0,
                    ratio: higher.1,
                    lower: lower.0,
                    lower_ratio: lower.1,
                });
            }
        }
        self.measured.insert(pair, new);
        self.path.push(pair);
        Ok(new)
    }
}
