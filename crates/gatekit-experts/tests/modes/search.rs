//! The frontier search against trying everything.

use std::convert::Infallible;

use gatekit_core::ConfigError;
use gatekit_experts::modes::{
    Frontier, FrontierSearch, FrontierSearchConfig, GridMap, Measurement, SearchError,
};
use proptest::prelude::*;

use super::*;

fn search(target: f64, grid_num: usize) -> FrontierSearch {
    FrontierSearchConfig::new(target).with_grid_num(grid_num).try_init().unwrap()
}

fn run(search: &FrontierSearch, f: &[Vec<f64>], g: &[Vec<f64>]) -> Result<Frontier, SearchError<Infallible>> {
    search.run(|i, j| Ok(Measurement { loss: g[i][j], skip_ratio: f[i][j] }))
}

/// A table that grows in both directions, from steps that may be 0.
fn monotone(steps: &[u8], size: usize) -> Vec<Vec<f64>> {
    let mut table = vec![vec![0.0f64; size]; size];
    for i in 0..size {
        for j in 0..size {
            let above = if i > 0 { table[i - 1][j] } else { 0.0 };
            let left = if j > 0 { table[i][j - 1] } else { 0.0 };
            table[i][j] = above.max(left) + f64::from(steps[i * size + j] % 4);
        }
    }
    let largest = table[size - 1][size - 1].max(1.0);
    table.into_iter().map(|row| row.into_iter().map(|value| value / largest).collect()).collect()
}

proptest! {
    #[test]
    fn the_frontier_holds_the_best_of_all(
        size in 2usize..9,
        steps in proptest::collection::vec(any::<u8>(), 128),
        target in 0.01f64..1.0,
    ) {
        let (f, g) = (monotone(&steps[..64], size), monotone(&steps[64..], size));
        let pairs = || (0..size).flat_map(|i| (0..size).map(move |j| (i, j)));
        let feasible: Vec<(usize, usize)> = pairs().filter(|&(i, j)| f[i][j] >= target).collect();
        match run(&search(target, size), &f, &g) {
            Err(SearchError::Infeasible { largest, .. }) => {
                prop_assert!(feasible.is_empty());
                prop_assert_eq!(largest, f[size - 1][size - 1]);
            }
            Err(error) => prop_assert!(false, "{}", error),
            Ok(found) => {
                let least = feasible.iter().map(|&(i, j)| g[i][j]).fold(f64::INFINITY, f64::min);
                prop_assert_eq!(found.measured.loss, least);
                prop_assert!(found.measured.skip_ratio >= target);
                prop_assert!(found.evaluations() <= 3 * size + 1);
                let mut distinct = found.path.clone();
                distinct.sort_unstable();
                distinct.dedup();
                prop_assert_eq!(distinct.len(), found.evaluations());
                for &(i, j) in &found.frontier {
                    prop_assert!(f[i][j] >= target && (j == 0 || f[i][j - 1] < target));
                }
            }
        }
    }
}

#[test]
fn of_equal_losses_the_first_row_wins() {
    let f = vec![vec![0.0, 1.0], vec![1.0, 1.0]];
    let found = run(&search(0.5, 2), &f, &[vec![0.5; 2], vec![0.5; 2]]).unwrap();
    assert_eq!((found.best, found.frontier), ((0, 1), vec![(0, 1), (1, 0)]));
    assert_eq!(found.path, [(1, 1), (0, 1), (0, 0), (1, 0)]);
}

#[test]
fn grids_ascend_as_they_are_mapped() {
    let config = FrontierSearchConfig::new(0.6).with_grid_num(5);
    let linear = config.clone().with_grid_map(GridMap::Linear).try_init().unwrap();
    assert_close(linear.vision_grid(), &[0.0, 0.15, 0.3, 0.45, 0.6], 1e-12);
    let mapped = config.try_init().unwrap();
    let last = 2.0 / (1.0 + (2.9f64).exp());
    assert_close(&[mapped.text_grid()[4]], &[last], 1e-12);
    assert!(mapped.text_grid().windows(2).all(|pair| pair[0] < pair[1]));
    let thresholds = mapped.thresholds((4, 0));
    assert_eq!((thresholds.text(), thresholds.vision()), (mapped.text_grid()[4], mapped.vision_grid()[0]));
}

#[test]
fn an_infeasible_target_names_what_can_be_reached() {
    let f = vec![vec![0.1, 0.2], vec![0.3, 0.4]];
    let error = run(&search(0.5, 2), &f, &f).unwrap_err();
    assert_eq!(error, SearchError::Infeasible { target: 0.5, largest: 0.4 });
    assert!(error.to_string().contains("0.5") && error.to_string().contains("0.4"), "{error}");
    // What is just reached is feasible.
    assert_eq!(run(&search(0.4, 2), &f, &f).unwrap().best, (1, 1));
}

#[test]
fn a_ratio_that_falls_is_refused_with_its_pair() {
    let f = vec![vec![0.9, 0.6], vec![0.5, 0.95]];
    let error = run(&search(0.55, 2), &f, &[vec![0.0; 2], vec![0.0; 2]]).unwrap_err();
    let expected = SearchError::NotMonotone { pair: (0, 1), ratio: 0.6, lower: (0, 0), lower_ratio: 0.9 };
    assert_eq!(error, expected);
    assert!(error.to_string().contains("(0, 1)") && error.to_string().contains("0.9"), "{error}");
    // Less than the tolerance is rounding.
    let f = vec![vec![0.6 + 5e-7, 0.6], vec![0.7, 0.95]];
    assert!(run(&search(0.55, 2), &f, &[vec![0.0; 2], vec![0.0; 2]]).is_ok());
    // So is what a wider tolerance lets pass.
    let f = vec![vec![0.605, 0.6], vec![0.7, 0.95]];
    let config = FrontierSearchConfig::new(0.55).with_grid_num(2);
    let search = |tolerance| config.clone().with_ratio_tolerance(tolerance).try_init().unwrap();
    assert!(run(&search(0.001), &f, &[vec![0.0; 2], vec![0.0; 2]]).is_err());
    assert!(run(&search(0.01), &f, &[vec![0.0; 2], vec![0.0; 2]]).is_ok());
}

#[test]
fn what_cannot_be_compared_or_measured_is_refused() {
    let whole = vec![vec![0.9; 2]; 2];
    let broken = vec![vec![0.9, f64::NAN], vec![0.9, 0.9]];
    let error = |f, g| run(&search(0.5, 2), f, g).unwrap_err();
    assert!(matches!(
        error(&broken, &whole),
        SearchError::NotFinite { what: "skip_ratio", pair: (0, 1), .. }
    ));
    assert!(matches!(error(&whole, &broken), SearchError::NotFinite { what: "loss", .. }));
    let failed = search(0.5, 2).run(|_, _| Err(InputError::new("batch", 1, "2")));
    assert_eq!(failed, Err(SearchError::Measure(InputError::new("batch", 1, "2"))));
}

#[test]
fn searches_that_are_none_are_refused() {
    let field = |config: FrontierSearchConfig| -> String {
        let error: ConfigError = config.try_init().unwrap_err();
        error.field
    };
    for target in [0.0, -0.1, 1.1, f64::NAN] {
        assert_eq!(field(FrontierSearchConfig::new(target)), "target_skip");
    }
    let config = || FrontierSearchConfig::new(1.0);
    assert!(config().with_grid_num(2).try_init().is_ok());
    assert_eq!(field(config().with_grid_num(1)), "grid_num");
    assert_eq!(field(config().with_text_max(f64::NAN)), "text_max");
    assert_eq!(field(config().with_vision_max(0.0)), "vision_max");
    assert_eq!(field(config().with_exp_coeff(-1.0)), "exp_coeff");
    assert_eq!(field(config().with_ratio_tolerance(-0.1)), "ratio_tolerance");
    assert!(config().with_exp_coeff(-1.0).with_grid_map(GridMap::Linear).try_init().is_ok());
}
