//! The numbers of a tensor, on the host.

use std::ops::{Index, IndexMut};

use burn::tensor::{DType, Device, Tensor, TensorData};

/// A matrix of float64 in row-major order; indexed by `[row, column]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// From values in row-major order.
    ///
    /// # Panics
    ///
    /// When there are not `rows * columns` of them.
    pub fn new(rows: usize, columns: usize, values: Vec<f64>) -> Self {
        assert!(
            values.len() == rows * columns,
            "Matrix: {} values for {rows} rows of {columns}",
            values.len()
        );
        Self { rows, columns, values }
    }

    /// All zero.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self::new(rows, columns, vec![0.0; rows * columns])
    }

    /// `value(row, column)` everywhere.
    pub fn from_fn(rows: usize, columns: usize, mut value: impl FnMut(usize, usize) -> f64) -> Self {
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let values = places.map(|(row, column)| value(row, column)).collect();
        Self::new(rows, columns, values)
    }

    /// Reads a tensor back from its device.
    pub fn of(tensor: &Tensor<2>) -> Self {
        let [rows, columns] = tensor.dims();
        Self::new(rows, columns, tensor.to_data().iter::<f64>().collect())
    }

    /// The tensor `[rows, columns]` on a device.
    pub fn to_tensor(&self, device: &Device, dtype: DType) -> Tensor<2> {
        let data = TensorData::new(self.values.clone(), [self.rows, self.columns]);
        Tensor::from_data(data, (device, dtype))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values, row by row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// One row, to be written.
    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// Rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        Self::from_fn(self.columns, self.rows, |row, column| self[[column, row]])
    }

    /// The matrix product.
    ///
    /// # Panics
    ///
    /// When the inner sizes differ.
    pub fn matmul(&self, other: &Self) -> Self {
        assert!(self.columns == other.rows, "Matrix: {} columns times {} rows", self.columns, other.rows);
        let mut product = Self::zeros(self.rows, other.columns);
        for row in 0..self.rows {
            for (inner, factor) in self.row(row).iter().enumerate() {
                add_scaled(product.row_mut(row), *factor, other.row(inner));
            }
        }
        product
    }
}

impl Index<[usize; 2]> for Matrix {
    type Output = f64;

    fn index(&self, [row, column]: [usize; 2]) -> &f64 {
        &self.values[row * self.columns + column]
    }
}

impl IndexMut<[usize; 2]> for Matrix {
    fn index_mut(&mut self, [row, column]: [usize; 2]) -> &mut f64 {
        &mut self.values[row * self.columns + column]
    }
}

pub(super) fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

pub(super) fn add_scaled(x: &mut [f64], factor: f64, y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * y);
}
