//! Mixtures and retrieval.

use gatekit_fusion::imagebind_llm::{FlatIndex, ModalityMix, VectorIndex, VisualCacheConfig};

use super::*;

fn unit(x: Tensor<2>) -> Tensor<2> {
    x.clone() / x.square().sum_dim(1).sqrt()
}

fn index(rows: usize, device: &Device) -> FlatIndex {
    FlatIndex::new(unit(ramp([rows, 4], 0.6, device))).unwrap()
}

#[test]
fn mixtures_are_weighted_means_of_unit_vectors() {
    for device in devices() {
        let embeddings = float(&[3.0, 4.0, 0.0, 2.0], [2, 1, 2], &device);
        let mixed = ModalityMix::new(vec![1.0, 3.0]).unwrap().forward(embeddings.clone()).unwrap();
        assert_close(mixed, float(&[0.15, 0.2 + 0.75], [1, 2], &device), 1e-6);
        let alone = ModalityMix::new(vec![2.0, 0.0]).unwrap().forward(embeddings).unwrap();
        assert_close(alone, float(&[0.6, 0.8], [1, 2], &device), 1e-6);
    }
}

#[test]
fn absent_modalities_may_be_anything() {
    for device in devices() {
        let device = device.autodiff();
        let embeddings = float(&[3.0, 4.0, f64::NAN, f64::INFINITY], [2, 1, 2], &device).require_grad();
        let mixed = ModalityMix::new(vec![1.0, 0.0]).unwrap().forward(embeddings.clone()).unwrap();
        assert_close(mixed.clone(), float(&[0.6, 0.8], [1, 2], &device), 1e-5);
        let gradients = mixed.narrow(1, 0, 1).sum().backward();
        let slopes = values(embeddings.grad(&gradients).unwrap());
        assert!(slopes.iter().all(|slope| slope.is_finite()), "{slopes:?}");
        assert_eq!(slopes[2..], [0.0, 0.0]);
    }
}

#[test]
fn a_zero_embedding_stays_zero() {
    for device in devices() {
        let device = device.autodiff();
        let embeddings = float(&[0.0, 0.0, 0.0, -5.0], [2, 1, 2], &device).require_grad();
        let mixed = ModalityMix::new(vec![1.0, 1.0]).unwrap().forward(embeddings.clone()).unwrap();
        assert_close(mixed.clone(), float(&[0.0, -0.5], [1, 2], &device), 1e-6);
        let gradients = mixed.sum().backward();
        assert!(values(embeddings.grad(&gradients).unwrap()).iter().all(|slope| slope.is_finite()));
    }
}

#[test]
fn neighbours_come_best_first_and_of_equals_the_lower_row() {
    for device in devices() {
        let vectors = float(&[0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.6, 0.8, -1.0, 0.0], [5, 2], &device);
        let index = FlatIndex::new(vectors).unwrap();
        let queries = float(&[0.0, 2.0, -3.0, 0.0], [2, 2], &device);
        assert_eq!(index.search(queries.clone(), 3), [[0, 2, 3], [4, 0, 2]]);
        assert_eq!(index.search(queries.clone(), 1), [[0], [4]]);
        assert_eq!(index.search(queries, 5)[0], [0, 2, 3, 1, 4]);
        assert_eq!(values(index.vectors(&[4, 0], &device)), [-1.0, 0.0, 0.0, 1.0]);
    }
}

#[test]
fn every_sample_retrieves_for_itself() {
    for device in devices() {
        let config = VisualCacheConfig::new().with_cache_size(4);
        let cache = config.try_init(index(9, &device)).unwrap();
        let x = ramp([3, 4], 0.2, &device);
        let together = cache.forward(x.clone()).unwrap();
        for row in 0..3 {
            let alone = cache.forward(x.clone().narrow(0, row, 1)).unwrap();
            assert_eq!(alone.indices[0], together.indices[row]);
            assert_close(alone.enhanced, together.enhanced.clone().narrow(0, row, 1), 1e-6);
        }
        let norms = values(together.enhanced.square().sum_dim(1));
        assert!(norms.iter().all(|norm| (norm - 1.0).abs() < 1e-5), "{norms:?}");
    }
}

#[test]
fn shares_of_nothing_and_of_all() {
    for device in devices() {
        let x = ramp([2, 4], 0.2, &device);
        let with = |weight, size| {
            let config = VisualCacheConfig::new().with_cache_size(size).with_cache_weight(weight);
            config.try_init(index(7, &device)).unwrap().forward(x.clone()).unwrap()
        };
        assert_close(with(0.0, 3).enhanced, unit(x.clone()), 1e-6);
        let all = with(1.0, 7);
        assert_close(all.enhanced, all.retrieved, 1e-6);
        // Of one neighbour, it is that neighbour.
        let nearest = with(1.0, 1);
        let rows: Vec<usize> = nearest.indices.concat();
        assert_close(nearest.retrieved, index(7, &device).vectors(&rows, &device), 1e-6);
    }
}

/// An index of another kind: two vectors by their place.
struct Poles;

impl VectorIndex for Poles {
    fn len(&self) -> usize {
        2
    }

    fn dim(&self) -> usize {
        2
    }

    fn search(&self, queries: Tensor<2>, count: usize) -> Vec<Vec<usize>> {
        let scores = values(queries.narrow(1, 1, 1));
        let rows = |score: &f64| if *score >= 0.0 { vec![0, 1] } else { vec![1, 0] };
        scores.iter().map(|score| rows(score)[..count].to_vec()).collect()
    }

    fn vectors(&self, rows: &[usize], device: &Device) -> Tensor<2> {
        let poles = rows.iter().flat_map(|row| [0.0, if *row == 0 { 1.0 } else { -1.0 }]);
        float(&poles.collect::<Vec<_>>(), [rows.len(), 2], device)
    }
}

#[test]
fn any_index_will_do_and_the_query_has_a_gradient() {
    for device in devices() {
        let device = device.autodiff();
        let cache = VisualCacheConfig::new().with_cache_size(1).try_init(Poles).unwrap();
        let x = float(&[0.6, -0.8], [1, 2], &device).require_grad();
        let found = cache.forward(x.clone()).unwrap();
        assert_eq!(found.indices, [[1]]);
        let norm = (0.3f64 * 0.3 + 0.9 * 0.9).sqrt();
        assert_close(found.enhanced.clone(), float(&[0.3 / norm, -0.9 / norm], [1, 2], &device), 1e-6);
        let gradients = found.enhanced.narrow(1, 0, 1).sum().backward();
        assert!(values(x.grad(&gradients).unwrap()).iter().all(|slope| slope.is_finite() && *slope != 0.0));
    }
}
