//! Sparse feed-forward layers: how they are kept evenly used, and what is logged and drawn of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use gatekit::core::ConfigError;
use gatekit::core::moe::MoeLayerConfig;
use gatekit::core::probe::{ExpertLoad, HeatMap, LinePlot};
use gatekit::core::router::{BalanceLosses, BiasBalancer, CountNormalizer, Routing, ScoringFunc};
use serde::{Deserialize, Serialize};

use crate::error::RunError;
use crate::metrics::{Log, Row};
use crate::run_folder::RunFolder;
use crate::settings::{Balance, Ffn, Mixer, Settings};

/// Weight of the balancing loss of every layer, as in Switch Transformers.
const LOSS_WEIGHT: f64 = 0.01;
/// Step of the selection bias, as in DeepSeek-V3.
const BIAS_SPEED: f64 = 0.001;
/// Looks at the experts over a whole run.
const LOOKS: usize = 100;

/// Refuses flags that make no experts, or none that can be trained.
pub fn validate(settings: &Settings) -> Result<(), ConfigError> {
    let with_mixer = |value: &str| format!("{value} with --mixer {}", settings.mixer_name());
    if settings.experts < 2 {
        return Err(ConfigError::new("--experts", settings.experts, "at least 2"));
    }
    if settings.ffn == Ffn::Moe && !settings.mixer.takes_experts() {
        let need = "dense: feed-forward layers of gam, mamba, move and transnormer are their own";
        return Err(ConfigError::new("--ffn", with_mixer("moe"), need));
    }
    // Mixtral divides the weights by their sum always, and one weight divided by itself teaches its router nothing.
    let least = if settings.mixer == Mixer::Mixtral { 2 } else { 1 };
    if !(least..=settings.experts).contains(&settings.experts_per_token) {
        let need = format!("{least} to --experts {}", settings.experts);
        return Err(ConfigError::new("--experts-per-token", settings.experts_per_token, need));
    }
    if settings.balance.is_some() && !settings.is_sparse() {
        let need = "--ffn moe, or a mixer with experts: there is nothing to balance";
        return Err(ConfigError::new("--balance", with_mixer("a choice"), need));
    }
    if settings.balance == Some(Balance::Bias) && !settings.mixer.takes_bias() {
        return Err(ConfigError::new(
            "--balance",
            with_mixer("bias"),
            "none or loss: its routers have no bias",
        ));
    }
    if let Some(capacity) = settings.capacity {
        if settings.ffn == Ffn::Dense || settings.mixer.is_sparse() {
            let need = "--ffn moe and a mixer without experts of its own";
            return Err(ConfigError::new("--capacity", with_mixer("a number"), need));
        }
        if !(capacity.is_finite() && capacity > 0.0) {
            return Err(ConfigError::new("--capacity", capacity, "a positive number"));
        }
    }
    Ok(())
}

/// The sparse layer that --ffn puts in place of a dense one of width `inner`: its chosen experts are together as wide.
pub fn layer(settings: &Settings, inner: usize) -> Option<MoeLayerConfig> {
    if settings.ffn == Ffn::Dense || settings.mixer.is_sparse() {
        return None;
    }
    let chosen = settings.experts_per_token;
    let by_bias = settings.balance() == Balance::Bias;
    let config = MoeLayerConfig::new(settings.dim, inner.div_ceil(chosen))
        .with_num_experts(settings.experts)
        .with_num_experts_per_tok(chosen)
        // One weight divided by itself would teach the router nothing.
        .with_norm_topk_prob(chosen > 1)
        .with_scoring_func(if by_bias { ScoringFunc::Sigmoid } else { ScoringFunc::Softmax })
        .with_selection_bias(Some(by_bias))
        .with_capacity_factor(settings.capacity);
    Some(config)
}

/// What is added to the loss of sequences `[batch, time]` so that the experts are evenly used.
pub fn balance_loss(balance: Balance, routings: &[Routing], shape: [usize; 2]) -> Option<Tensor<1>> {
    if balance != Balance::Loss {
        return None;
    }
    let losses = routings
        .iter()
        .map(|routing| BalanceLosses::new(routing, shape, None, CountNormalizer::Tokens).load_balance);
    losses.reduce(|sum, loss| sum + loss).map(|loss| loss * LOSS_WEIGHT)
}

/// What moves the selection biases after a step.
pub fn balancer(balance: Balance) -> Option<BiasBalancer> {
    (balance == Balance::Bias).then(|| BiasBalancer::new(BIAS_SPEED))
}

/// Whether the experts are looked at after step `step` of `steps`.
pub fn is_look(step: usize, steps: usize) -> bool {
    step == steps || step.is_multiple_of(steps.div_ceil(LOOKS))
}

/// One row of `routing.csv`: how evenly one layer used its experts in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoutingRow {
    /// Steps taken.
    pub step: usize,
    /// Counted from one, the lowest sparse layer first.
    pub layer: usize,
    /// Load of the busiest expert over the mean load.
    pub max_over_mean: f64,
    /// Share of experts without a byte.
    pub unused: f64,
    /// Entropy of the load over that of an even one.
    pub evenness: f64,
    /// Share of slots that were dropped because their expert was full.
    pub dropped: f64,
}

/// One row of `experts.csv`: the load of one expert in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpertRow {
    /// Steps taken.
    pub step: usize,
    /// Counted from one, the lowest sparse layer first.
    pub layer: usize,
    /// Counted from one.
    pub expert: usize,
    /// Slots that chose it over the mean of its layer.
    pub load: f64,
}

impl Row for RoutingRow {
    fn step(&self) -> usize {
        self.step
    }
}

impl Row for ExpertRow {
    fn step(&self) -> usize {
        self.step
    }
}

/// Both files.
pub struct ExpertLog {
    routing: Log<RoutingRow>,
    experts: Log<ExpertRow>,
}

impl ExpertLog {
    /// The log of a run that stands at `step`; see [`Log::open`].
    pub fn open(folder: &RunFolder, step: usize) -> Result<Self, RunError> {
        let file = |name: &str| -> PathBuf { folder.path().join(name) };
        Ok(Self {
            routing: Log::open(&file("routing.csv"), step)?,
            experts: Log::open(&file("experts.csv"), step)?,
        })
    }

    /// Adds the loads of a step, one a sparse layer.
    pub fn push(&mut self, step: usize, loads: &[ExpertLoad]) -> Result<(), RunError> {
        for (load, layer) in loads.iter().zip(1..) {
            let ExpertLoad { shares, max_over_mean, unused, evenness, dropped } = load;
            for (share, expert) in shares.iter().zip(1..) {
                let load = share * shares.len() as f64;
                self.experts.push(ExpertRow { step, layer, expert, load })?;
            }
            self.routing.push(RoutingRow {
                step,
                layer,
                max_over_mean: *max_over_mean,
                unused: *unused,
                evenness: *evenness,
                dropped: *dropped,
            })?;
        }
        Ok(())
    }

    /// As [`Log::flush`].
    pub fn flush(&mut self) -> Result<(), RunError> {
        self.routing.flush()?;
        self.experts.flush()
    }

    /// Load of the busiest expert over the mean load, a layer, and the share of dropped slots over all layers: means
    /// over the last tenth of the looks. `None` before the first.
    pub fn summary(&self) -> Option<(Vec<f64>, f64)> {
        let rows = self.routing.rows();
        let layers = rows.iter().map(|row| row.layer).max()?;
        let rows = &rows[rows.len() - (rows.len() / layers).div_ceil(10) * layers..];
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let of_layer = |layer| rows.iter().filter(move |row| row.layer == layer);
        let busiest = |layer| mean(of_layer(layer).map(|row| row.max_over_mean).collect());
        Some(((1..=layers).map(busiest).collect(), mean(rows.iter().map(|row| row.dropped).collect())))
    }

    /// `expert-load.svg`: the load of every expert over the steps; `max-load.svg`: that of the busiest of each layer;
    /// `dropped.svg`, where slots were dropped.
    pub fn draw(&self, folder: &Path) -> Result<(), RunError> {
        let Some(layers) = self.routing.rows().iter().map(|row| row.layer).max() else { return Ok(()) };
        let failed = |path: PathBuf| move |source| RunError::Plot { path, source };
        let path = folder.join("expert-load.svg");
        heat_map(self.experts.rows()).write_svg(&path).map_err(failed(path))?;
        let lines = |title: &str, y_label: &str, value: fn(&RoutingRow) -> f64| {
            (1..=layers).fold(LinePlot::new(title, "step", y_label), |plot, layer| {
                let rows = self.routing.rows().iter().filter(|row| row.layer == layer);
                plot.with_series(&format!("layer {layer}"), rows.map(|row| (row.step as f64, value(row))))
            })
        };
        let path = folder.join("max-load.svg");
        lines("The busiest expert", "load over mean load", |row| row.max_over_mean)
            .write_svg(&path)
            .map_err(failed(path))?;
        if self.routing.rows().iter().any(|row| row.dropped > 0.0) {
            let path = folder.join("dropped.svg");
            lines("Dropped slots", "share of all slots", |row| row.dropped)
                .write_svg(&path)
                .map_err(failed(path))?;
        }
        Ok(())
    }
}

/// A row an expert of a layer, a column a step.
fn heat_map(rows: &[ExpertRow]) -> HeatMap {
    let mut steps: Vec<usize> = rows.iter().map(|row| row.step).collect();
    steps.dedup();
    let places: BTreeSet<(usize, usize)> = rows.iter().map(|row| (row.layer, row.expert)).collect();
    let places: Vec<(usize, usize)> = places.into_iter().collect();
    let mut values = vec![vec![f64::NAN; steps.len()]; places.len()];
    for row in rows {
        let place = places.binary_search(&(row.layer, row.expert));
        if let (Ok(place), Ok(step)) = (place, steps.binary_search(&row.step)) {
            values[place][step] = row.load;
        }
    }
    let highest = rows.iter().map(|row| row.load).fold(2.0, f64::max);
    HeatMap::new("Load of the experts", "step", "layer / expert", "load over mean load", values)
        .with_range(0.0, highest)
        .with_row_labels(places.iter().map(|(layer, expert)| format!("{layer} / {expert}")))
        .with_column_values(steps.iter().map(|step| *step as f64))
        .with_size(800, (160 + 18 * places.len() as u32).clamp(320, 1200))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load(shares: &[f64], dropped: f64) -> ExpertLoad {
        let max_over_mean = shares.iter().copied().fold(0.0, f64::max) * shares.len() as f64;
        ExpertLoad { shares: shares.to_vec(), max_over_mean, unused: 0.0, evenness: 0.9, dropped }
    }

    #[test]
    fn loads_are_logged_summed_up_and_drawn() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::at(root.path());
        let mut log = ExpertLog::open(&folder, 0).expect("opened");
        assert_eq!(log.summary(), None);
        log.draw(root.path()).expect("nothing to draw");
        assert!(!root.path().join("expert-load.svg").exists());
        for step in 1..=20 {
            let skew = if step > 18 { 0.5 } else { 0.7 };
            let loads = [load(&[skew, 1.0 - skew], 0.0), load(&[0.25, 0.75], 0.1)];
            log.push(step, &loads).expect("written");
        }
        log.flush().expect("flushed");
        let (busiest, dropped) = log.summary().expect("twenty looks");
        assert!((busiest[0] - 1.0).abs() < 1e-12 && (busiest[1] - 1.5).abs() < 1e-12, "{busiest:?}");
        assert!((dropped - 0.05).abs() < 1e-12);
        log.draw(root.path()).expect("drawn");
        let picture = |name: &str| fs::read_to_string(root.path().join(name)).expect("read");
        assert!(picture("expert-load.svg").contains("2 / 1"));
        assert!(picture("max-load.svg").contains("layer 2") && picture("dropped.svg").contains("layer 1"));

        // A resumed run forgets what came after its checkpoint.
        drop(log);
        let log = ExpertLog::open(&folder, 7).expect("opened");
        assert_eq!((log.routing.rows().len(), log.experts.rows().len()), (14, 28));
        assert_eq!(log.experts.rows()[27], ExpertRow { step: 7, layer: 2, expert: 2, load: 1.5 });
    }

    #[test]
    fn looks_are_a_hundred_and_the_last_step() {
        assert_eq!((1..=3000).filter(|step| is_look(*step, 3000)).count(), 100);
        assert_eq!((1..=60).filter(|step| is_look(*step, 60)).count(), 60);
        assert!(is_look(2999, 2999));
    }

    #[test]
    fn chosen_experts_are_as_wide_as_the_dense_layer() {
        let settings = Settings { ffn: Ffn::Moe, experts: 8, ..Settings::DEFAULT };
        let config = layer(&settings, 352).expect("sparse");
        assert_eq!((config.num_experts, config.num_experts_per_tok), (8, 2));
        assert_eq!((config.hidden_size, config.moe_intermediate_size), (128, 176));
        assert_eq!((config.scoring_func, config.selection_bias), (ScoringFunc::Softmax, Some(false)));
        let one = Settings { experts_per_token: 1, balance: Some(Balance::Bias), ..settings.clone() };
        let config = layer(&one, 352).expect("sparse");
        assert_eq!((config.moe_intermediate_size, config.norm_topk_prob), (352, false));
        assert_eq!((config.scoring_func, config.selection_bias), (ScoringFunc::Sigmoid, Some(true)));
        assert!(layer(&Settings { ffn: Ffn::Dense, ..settings.clone() }, 352).is_none());
        assert!(layer(&Settings { mixer: Mixer::Mixtral, ..settings }, 352).is_none());
    }
}
