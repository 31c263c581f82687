//! Support for the tests that hold across crates.
//!
//! * [`devices`]: which devices the tests run on (`GATEKIT_DEVICES`)
//! * [`case`], [`fields`], [`evaluation`], [`judge`], [`mod@verdict`]: a golden case, from file to verdict
//! * [`golden`]: the cases of a folder
//! * [`systems`]: the table of what can be built and run, one file a system
//! * [`trials`], [`folder`]: test programs whose tests are read from a folder
//! * [`random`], [`mod@reference`], [`scans`], [`models`]: data, float64 yardsticks and problems of the property tests

pub mod array;
pub mod case;
pub mod devices;
pub mod evaluation;
pub mod failure;
pub mod fields;
pub mod folder;
pub mod golden;
pub mod judge;
pub mod models;
pub mod random;
pub mod reference;
pub mod scans;
pub mod systems;
pub mod trials;
pub mod verdict;
