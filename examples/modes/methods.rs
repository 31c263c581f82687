//! The ways of skipping, each at the same share of slots.

use std::collections::HashMap;

use burn::tensor::Device;
use gatekit::core::InputError;
use gatekit::experts::modes::{
    Calibrator, CalibratorConfig, FrontierSearch, FrontierSearchConfig, LayerImportance, Measurement,
    References, SearchError, SkipStats, SkippableModel, Thresholds,
};
use gatekit_examples::{ExampleError, progress};

use super::model::{Reader, ReaderConfig};
use super::task::Batch;

pub const NOTHING: &str = "nothing skipped";
const SHARE: &str = "share, one threshold";
const FEWER: &str = "fewer experts a token";
const IMPORTANCE: &str = "importance, one threshold";
const MODES: [&str; 2] = ["MoDES", "MoDES, importance by mse"];
/// What one layer skips moves the routing of the next, so that ratios do not rise strictly.
const TOLERANCE: f64 = 0.02;
/// Steps of the search for a single threshold.
const HALVINGS: usize = 9;

/// How a method did at a target.
pub struct Outcome {
    pub method: &'static str,
    pub target: f64,
    /// Share of test questions that are answered right in every letter.
    pub accuracy: f64,
    /// Share of the slots skipped on them.
    pub skipped: f64,
    /// Divergence on the calibration questions.
    pub loss: f64,
    /// Pairs measured by a frontier search.
    pub evaluations: Option<usize>,
}

/// Everything on a grid of thresholds.
pub struct Grid {
    pub text: Vec<f64>,
    pub vision: Vec<f64>,
    /// Divergences, a row a text threshold.
    pub losses: Vec<Vec<f64>>,
    pub frontier: Vec<(usize, usize)>,
    pub best: (usize, usize),
    /// What is skipped with the best pair, and whether trying everything finds it too.
    pub stats: String,
}

/// A trained model and its questions.
pub struct Bench {
    /// Without importance: scores are shares.
    plain: Reader,
    /// With the importance of both losses, as in [`MODES`].
    calibrated: [Reader; 2],
    config: ReaderConfig,
    calibrator: Calibrator,
    references: References,
    calibration: Vec<Batch>,
    tests: Vec<Batch>,
    device: Device,
    /// Pairs of thresholds that were measured with either importance.
    known: [HashMap<(usize, usize), Measurement>; 2],
}

impl Bench {
    pub fn new(
        plain: Reader,
        config: ReaderConfig,
        importance: [LayerImportance; 2],
        calibration: Vec<Batch>,
        tests: Vec<Batch>,
        device: &Device,
    ) -> Result<Self, ExampleError> {
        let mut calibrated = [plain.clone(), plain.clone()];
        for (model, importance) in calibrated.iter_mut().zip(&importance) {
            model.set_importance(importance)?;
        }
        let calibrator = CalibratorConfig::new().try_init()?;
        let references = calibrator.references(&plain, &calibration)?;
        let (device, known) = (device.clone(), [HashMap::new(), HashMap::new()]);
        Ok(Self { plain, calibrated, config, calibrator, references, calibration, tests, device, known })
    }

    /// All methods at all targets.
    pub fn outcomes(&mut self, targets: &[f64], grid: usize) -> Result<Vec<Outcome>, ExampleError> {
        let mut outcomes = Vec::new();
        let whole = self.test(&self.plain, Thresholds::ZERO)?;
        outcomes.push(Outcome {
            method: NOTHING,
            target: 0.0,
            accuracy: whole.0,
            skipped: 0.0,
            loss: 0.0,
            evaluations: None,
        });
        let bar = progress(targets.len(), "methods");
        for &target in targets {
            for (method, model) in [(SHARE, &self.plain), (IMPORTANCE, &self.calibrated[0])] {
                let (thresholds, measured) = self.one_threshold(model, target)?;
                let (accuracy, skipped) = self.test(model, thresholds)?;
                let loss = measured.loss;
                outcomes.push(Outcome { method, target, accuracy, skipped, loss, evaluations: None });
            }
            let k = self.config.experts_per_token;
            let fewer = ((1.0 - target) * k as f64).round() as usize;
            if fewer > 0 && (target - (k - fewer) as f64 / k as f64).abs() < 1e-9 {
                let model = self.plain.with_experts_per_token(&self.config, fewer, &self.device)?;
                let (accuracy, _) = self.test(&model, Thresholds::ZERO)?;
                let measured =
                    self.calibrator.measure(&model, &self.references, &self.calibration, Thresholds::ZERO)?;
                outcomes.push(Outcome {
                    method: FEWER,
                    target,
                    accuracy,
                    skipped: target,
                    loss: measured.loss,
                    evaluations: None,
                });
            }
            let search = search(target, grid)?;
            for (which, method) in MODES.into_iter().enumerate() {
                // Other targets measured some of the pairs already; a search of its own would measure them again.
                let found = match search.run(|i, j| self.known_or_measured(which, &search, (i, j))) {
                    Err(SearchError::Measure(error)) => return Err(error.into()),
                    Err(SearchError::Infeasible { .. }) => continue,
                    Err(error) => {
                        return Err(InputError::new("thresholds", error, "a monotone skip ratio").into());
                    }
                    Ok(found) => found,
                };
                let (accuracy, skipped) = self.test(&self.calibrated[which], found.thresholds)?;
                let (loss, evaluations) = (found.measured.loss, Some(found.evaluations()));
                outcomes.push(Outcome { method, target, accuracy, skipped, loss, evaluations });
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(outcomes)
    }

    /// Every pair of the grid, and the frontier of a target on it.
    pub fn grid(&mut self, target: f64, grid: usize) -> Result<Grid, ExampleError> {
        let search = search(target, grid)?;
        let bar = progress(grid * grid, "all pairs of thresholds");
        let mut losses = vec![vec![0.0; grid]; grid];
        let mut least: Option<f64> = None;
        for (i, row) in losses.iter_mut().enumerate() {
            for (j, loss) in row.iter_mut().enumerate() {
                let measured = self.known_or_measured(0, &search, (i, j))?;
                *loss = measured.loss;
                if measured.skip_ratio >= target && least.is_none_or(|least| measured.loss < least) {
                    least = Some(measured.loss);
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let found = search
            .run(|i, j| self.known_or_measured(0, &search, (i, j)))
            .map_err(|error| InputError::new("target_skip", error, "a share that the grid reaches"))?;
        let stats = self.stats(found.thresholds)?;
        let stats = format!(
            "Skipped on the test questions with MoDES at {:.0}%, first seed:\n\n{}\nThe frontier's best pair diverges \
             by {:.5} nats, the best of all {} pairs by {:.5}; {} pairs were measured.\n",
            100.0 * target,
            stats.table(),
            found.measured.loss,
            grid * grid,
            least.unwrap_or(f64::NAN),
            found.evaluations()
        );
        Ok(Grid {
            text: search.text_grid().to_vec(),
            vision: search.vision_grid().to_vec(),
            losses,
            frontier: found.frontier,
            best: found.best,
            stats,
        })
    }

    fn known_or_measured(
        &mut self,
        which: usize,
        search: &FrontierSearch,
        pair: (usize, usize),
    ) -> Result<Measurement, InputError> {
        if let Some(measured) = self.known[which].get(&pair) {
            return Ok(*measured);
        }
        let measured = self.measure(&self.calibrated[which], search.thresholds(pair))?;
        self.known[which].insert(pair, measured);
        Ok(measured)
    }

    fn measure(&self, model: &Reader, thresholds: Thresholds) -> Result<Measurement, InputError> {
        self.calibrator.measure(model, &self.references, &self.calibration, thresholds)
    }

    /// The smallest threshold for both modalities that skips at least `target`, by halving in logarithms.
    fn one_threshold(&self, model: &Reader, target: f64) -> Result<(Thresholds, Measurement), InputError> {
        let (mut low, mut high) = (1e-4f64, 1.0f64);
        let at = |threshold: f64| Thresholds::new(threshold, threshold);
        let mut best = (at(high)?, self.measure(model, at(high)?)?);
        for _ in 0..HALVINGS {
            let middle = (low * high).sqrt();
            let measured = self.measure(model, at(middle)?)?;
            if measured.skip_ratio >= target {
                (high, best) = (middle, (at(middle)?, measured));
            } else {
                low = middle;
            }
        }
        Ok(best)
    }

    /// Share of test questions answered right, and of slots skipped.
    fn test(&self, model: &Reader, thresholds: Thresholds) -> Result<(f64, f64), InputError> {
        let mut model = model.clone();
        model.set_thresholds(thresholds);
        let (mut right, mut all, mut stats) = (0, 0, SkipStats::default());
        for batch in &self.tests {
            let (logits, skipped) = model.answer_logits(batch)?;
            let (hits, rows) = batch.right(logits);
            right += hits;
            all += rows;
            stats.merge(&skipped);
        }
        Ok((right as f64 / all as f64, stats.ratio()))
    }

    fn stats(&self, thresholds: Thresholds) -> Result<SkipStats, InputError> {
        let mut model = self.calibrated[0].clone();
        model.set_thresholds(thresholds);
        let mut stats = SkipStats::default();
        for batch in &self.tests {
            stats.merge(&model.answer_logits(batch)?.1);
        }
        Ok(stats)
    }
}

/// Thresholds up to 1: with few layers importances are larger than in the models of the paper.
fn search(target: f64, grid: usize) -> Result<FrontierSearch, ExampleError> {
    let config = FrontierSearchConfig::new(target)
        .with_grid_num(grid)
        .with_text_max(1.0)
        .with_vision_max(1.0)
        .with_ratio_tolerance(TOLERANCE);
    Ok(config.try_init()?)
}
