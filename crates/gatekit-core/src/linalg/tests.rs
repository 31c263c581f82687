//! Solutions against their definitions.

use super::*;

/// Numbers between `-amplitude` and `amplitude`; rows of a sine would all lie in one plane.
fn noise(count: usize, amplitude: f64) -> Vec<f64> {
    let mut state = (count as u64) << 20 | (amplitude * 64.0) as u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    next();
    (0..count).map(|_| amplitude * next()).collect()
}

fn matrix(rows: usize, columns: usize, amplitude: f64) -> Matrix {
    Matrix::new(rows, columns, noise(rows * columns, amplitude))
}

fn largest(matrix: &Matrix) -> f64 {
    matrix.values().iter().fold(0.0, |largest, value| value.abs().max(largest))
}

fn minus(a: &Matrix, b: &Matrix) -> Matrix {
    Matrix::from_fn(a.rows(), a.columns(), |row, column| a[[row, column]] - b[[row, column]])
}

#[test]
fn least_squares_leave_a_residual_at_right_angles() {
    for (rows, columns) in [(9, 4), (4, 4), (1, 1), (30, 7)] {
        let (a, b) = (matrix(rows, columns, 2.0), matrix(rows, 3, 1.0));
        let x = lstsq(&a, &b).unwrap();
        let residual = minus(&a.matmul(&x), &b);
        assert!(largest(&a.transposed().matmul(&residual)) < 1e-11, "{rows} x {columns}");
    }
}

#[test]
fn of_many_solutions_the_shortest_is_taken() {
    // Rows, columns and rank.
    for (rows, columns, rank) in [(3, 8, 3), (6, 9, 2), (9, 6, 4), (5, 5, 1)] {
        let a = matrix(rows, rank, 1.0).matmul(&matrix(rank, columns, 1.5));
        let b = matrix(rows, 2, 1.0);
        let x = lstsq(&a, &b).unwrap();
        let residual = minus(&a.matmul(&x), &b);
        assert!(largest(&a.transposed().matmul(&residual)) < 1e-11);
        // Shortest: within the span of the rows of A, so that x = A^T z for some z.
        let z = lstsq(&a.transposed(), &x).unwrap();
        assert!(largest(&minus(&a.transposed().matmul(&z), &x)) < 1e-11, "{rows} x {columns} of {rank}");
    }
    let zero = lstsq(&Matrix::zeros(3, 2), &matrix(3, 2, 1.0)).unwrap();
    assert_eq!(zero, Matrix::zeros(2, 2));
    assert_eq!(lstsq(&Matrix::zeros(0, 2), &Matrix::zeros(0, 1)).unwrap(), Matrix::zeros(2, 1));
}

#[test]
fn small_singular_values_keep_their_digits() {
    // Columns of very different size: x = 1 in each.
    let scales = [1.0, 1e-3, 1e3, 1e-2];
    let base = matrix(8, 4, 1.0);
    let a = Matrix::from_fn(8, 4, |row, column| base[[row, column]] * scales[column]);
    let b = a.matmul(&Matrix::new(4, 1, vec![1.0; 4]));
    for value in lstsq(&a, &b).unwrap().values() {
        assert!((value - 1.0).abs() < 1e-8, "{value}");
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    let bad = Matrix::new(1, 1, vec![f64::NAN]);
    assert_eq!(lstsq(&bad, &Matrix::zeros(1, 1)).unwrap_err().field, "a");
    assert_eq!(lstsq(&Matrix::zeros(1, 1), &bad).unwrap_err().field, "b");
    let step = |x: &Matrix, y: f64| min_norm_step(x, &[y], &[0.0; 2], Factorization::Qr, 0.0);
    assert_eq!(step(&Matrix::new(1, 2, vec![f64::INFINITY, 0.0]), 1.0).unwrap_err().field, "x");
    assert_eq!(step(&Matrix::new(1, 2, vec![1.0, 0.0]), f64::NAN).unwrap_err().field, "y");
}

#[test]
fn both_factorizations_find_the_nearest_solution() {
    for (samples, dims) in [(1, 2), (3, 10), (6, 10), (9, 10)] {
        let (x, w) = (matrix(samples, dims, 1.0), noise(dims, 0.7));
        let y = noise(samples, 2.0);
        for factorization in [Factorization::Qr, Factorization::Cholesky] {
            let moved = min_norm_step(&x, &y, &w, factorization, 0.0).unwrap();
            let solved = x.matmul(&Matrix::new(dims, 1, moved.clone()));
            assert!(largest(&minus(&solved, &Matrix::new(samples, 1, y.clone()))) < 1e-10);
            // Nearest: the step is made of rows of X.
            let step = Matrix::from_fn(dims, 1, |row, _| moved[row] - w[row]);
            let z = lstsq(&x.transposed(), &step).unwrap();
            assert!(largest(&minus(&x.transposed().matmul(&z), &step)) < 1e-10);
        }
    }
    // A solution stays where it is.
    let (x, w) = (matrix(3, 5, 1.0), noise(5, 1.0));
    let y = x.matmul(&Matrix::new(5, 1, w.clone()));
    let stays = min_norm_step(&x, y.values(), &w, Factorization::Qr, 0.0).unwrap();
    assert!(stays.iter().zip(&w).all(|(got, want)| (got - want).abs() < 1e-14));
    assert_eq!(
        min_norm_step(&Matrix::zeros(0, 2), &[], &[1.0, 2.0], Factorization::Qr, 0.0).unwrap(),
        [1.0, 2.0]
    );
}

#[test]
fn rows_of_very_different_length_are_no_obstacle() {
    let base = matrix(4, 8, 1.0);
    let scales = [6.0, 1e-4, 0.1, 1e-2];
    let x = Matrix::from_fn(4, 8, |row, column| base[[row, column]] * scales[row]);
    let truth = noise(8, 1.0);
    let y = x.matmul(&Matrix::new(8, 1, truth)).values().to_vec();
    let w = min_norm_step(&x, &y, &[0.0; 8], Factorization::Qr, f64::from(f32::EPSILON)).unwrap();
    for (row, y) in y.iter().enumerate() {
        let got: f64 = x.row(row).iter().zip(&w).map(|(x, w)| x * w).sum();
        assert!((got - y).abs() < 1e-12 * scales[row].max(1e-2), "row {row}");
    }
}

#[test]
fn dependent_rows_and_too_many_of_them_are_refused() {
    let mut x = matrix(3, 6, 1.0);
    let sum: Vec<f64> = x.row(0).iter().zip(x.row(1)).map(|(a, b)| f64::from((a + b) as f32)).collect();
    x.row_mut(2).copy_from_slice(&sum);
    for factorization in [Factorization::Qr, Factorization::Cholesky] {
        let error =
            min_norm_step(&x, &[0.0; 3], &[0.0; 6], factorization, f64::from(f32::EPSILON)).unwrap_err();
        assert!(error.to_string().contains("fewer samples"), "{error}");
        let square = matrix(6, 6, 1.0);
        let error = min_norm_step(&square, &[0.0; 6], &[0.0; 6], factorization, 0.0).unwrap_err();
        assert!(error.to_string().contains("6 samples of 6 dimensions"), "{error}");
        let zero = min_norm_step(&Matrix::zeros(1, 3), &[0.0], &[0.0; 3], factorization, 0.0);
        assert!(zero.is_err());
    }
}

#[test]
fn clusters_are_found_and_their_failures_named() {
    let points = Matrix::new(6, 1, vec![0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
    let start = Matrix::new(2, 1, vec![0.5, 9.0]);
    let KMeans::Converged { assignment, centroids, rounds } = kmeans_l1(&points, start.clone(), 20, 1e-4)
    else {
        panic!("it converges");
    };
    assert_eq!((assignment, rounds), (vec![0, 1, 0, 1, 0, 1], 2));
    assert_eq!(centroids.values(), [1.0, 11.0]);
    // It rests in round 2, which is the last one permitted.
    assert_eq!(kmeans_l1(&points, start.clone(), 2, 1e-4), KMeans::NotConverged { rounds: 2 });
    assert_eq!(kmeans_l1(&points, start, 0, 1e-4), KMeans::NotConverged { rounds: 0 });
    // All points are alike; of equally near centroids the first wins.
    let alike = Matrix::zeros(4, 2);
    let outcome = kmeans_l1(&alike, Matrix::zeros(3, 2), 20, 1e-4);
    assert_eq!(outcome, KMeans::EmptyCluster { cluster: 1, rounds: 1 });
}

#[test]
fn columns_are_taken_once() {
    let cost = Matrix::new(3, 3, vec![1.0, 0.5, 2.0, 1.0, 0.5, 0.7, 0.0, 0.0, 9.0]);
    assert_eq!(greedy_match(&cost), [1, 2, 0]);
    let ties = Matrix::new(2, 3, vec![1.0, 1.0, 1.0, f64::NAN, f64::INFINITY, 2.0]);
    assert_eq!(greedy_match(&ties), [0, 2]);
    assert_eq!(greedy_match(&Matrix::new(1, 2, vec![f64::NAN, f64::INFINITY])), [0]);
    assert!(greedy_match(&Matrix::zeros(0, 3)).is_empty());
}
