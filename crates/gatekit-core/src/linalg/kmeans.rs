//! Clusters by mean absolute distance.

use super::matrix::{Matrix, add_scaled};

/// How [`kmeans_l1`] ended.
#[derive(Debug, Clone, PartialEq)]
pub enum KMeans {
    /// The centroids came to rest before the last permitted round.
    Converged {
        /// The cluster of every point, as assigned in the last round.
        assignment: Vec<usize>,
        /// Centroids `[K, C]`.
        centroids: Matrix,
        /// Rounds that were made.
        rounds: usize,
    },
    /// A cluster had no point.
    EmptyCluster {
        /// The first such cluster.
        cluster: usize,
        /// The round in which it was empty, from 1.
        rounds: usize,
    },
    /// The last permitted round was made, whether or not the centroids rested in it.
    NotConverged {
        /// Rounds that were made.
        rounds: usize,
    },
}

/// Lloyd's rounds with mean absolute distances and arithmetic means, from `centroids` `[K, C]`, on
/// `points` `[M, C]`.
///
/// In a round every point goes to its nearest centroid (of equally near ones the first), then every
/// centroid to the mean of its points. The centroids rest when every entry fulfils
/// `|new - old| <= tolerance + 1e-5 |old|`.
///
/// # Panics
///
/// When points and centroids differ in width.
pub fn kmeans_l1(points: &Matrix, centroids: Matrix, max_rounds: usize, tolerance: f64) -> KMeans {
    assert!(
        points.columns() == centroids.columns(),
        "kmeans_l1: points of {} numbers, centroids of {}",
        points.columns(),
        centroids.columns()
    );
    let mut centroids = centroids;
    for round in 1..=max_rounds {
        let assignment: Vec<usize> =
            (0..points.rows()).map(|point| nearest(points.row(point), &centroids)).collect();
        let mut means = Matrix::zeros(centroids.rows(), centroids.columns());
        let mut counts = vec![0usize; centroids.rows()];
        for (point, &cluster) in assignment.iter().enumerate() {
            add_scaled(means.row_mut(cluster), 1.0, points.row(point));
            counts[cluster] += 1;
        }
        if let Some(cluster) = counts.iter().position(|count| *count == 0) {
            return KMeans::EmptyCluster { cluster, rounds: round };
        }
        for (cluster, count) in counts.iter().enumerate() {
            means.row_mut(cluster).iter_mut().for_each(|value| *value /= *count as f64);
        }
        let rests = means
            .values()
            .iter()
            .zip(centroids.values())
            .all(|(new, old)| (new - old).abs() <= tolerance + 1e-5 * old.abs());
        centroids = means;
        if rests && round < max_rounds {
            return KMeans::Converged { assignment, centroids, rounds: round };
        }
    }
    KMeans::NotConverged { rounds: max_rounds }
}

fn nearest(point: &[f64], centroids: &Matrix) -> usize {
    let distance = |centroid: usize| -> f64 {
        point.iter().zip(centroids.row(centroid)).map(|(x, y)| (x - y).abs()).sum()
    };
    let mut best = (0, f64::INFINITY);
    for centroid in 0..centroids.rows() {
        let distance = distance(centroid);
        if distance < best.1 {
            best = (centroid, distance);
        }
    }
    best.0
}
