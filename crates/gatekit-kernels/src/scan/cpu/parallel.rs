//! How work is cut into jobs.

use rayon::prelude::*;

use crate::scratch::{Arena, LINE, with_scratch};
use crate::{
    float::Float,
    simd::{Kernel, Level, Simd},
};

/// Time steps that are copied to scratch memory and scanned together: few enough for the first-level cache.
pub(super) const STEPS: usize = 32;

/// Multiply-adds below which waking other threads costs more than they save.
const SERIAL_WORK: usize = 1 << 21;

/// Most padded lanes of a job, which bounds its scratch memory.
const WIDEST: usize = 256;

/// Lines that would cost a job as much as what it does whatever its number of lanes.
const COMMON_LINES: usize = 1;

/// How the vectorised index of the states is divided among jobs.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    /// Blocks of a state.
    pub(super) count: usize,
    /// Lanes of every block but perhaps the last, a multiple of 16.
    pub(super) lanes: usize,
    /// All lanes, padded.
    total: usize,
}

impl Blocks {
    /// Divides `dim` lanes so that `sequences` independent scans are done soonest on all threads.
    pub(super) fn new(dim: usize, sequences: usize) -> Self {
        let total = dim.next_multiple_of(LINE);
        let threads = rayon::current_num_threads();
        let time = |lines: &usize| {
            let jobs = sequences * (total / LINE).div_ceil(*lines);
            jobs.div_ceil(threads) * (lines + COMMON_LINES)
        };
        let lines = (1..=(total.min(WIDEST)) / LINE).rev().min_by_key(time).expect("at least one line");
        let lanes = lines * LINE;
        Self { count: total.div_ceil(lanes), lanes, total }
    }

    /// First lane and number of lanes of a block.
    pub(super) fn get(&self, block: usize) -> (usize, usize) {
        let from = block * self.lanes;
        (from, self.lanes.min(self.total - from))
    }
}

/// A numbered set of independent jobs, generic over the vector width.
pub(super) trait Task: Sync {
    /// What it computes in.
    type Float: Float;

    /// Lengths of the pieces of scratch memory that the largest job takes.
    fn scratch(&self) -> Vec<usize>;

    /// Does job `index`. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// To be called through [`for_each`] only, each index once.
    unsafe fn run<S: Simd<Float = Self::Float>>(&self, index: usize, arena: Arena<Self::Float>);
}

/// One job of a task, with its scratch memory.
struct Job<'a, T: Task> {
    task: &'a T,
    index: usize,
    arena: Arena<'a, T::Float>,
}

impl<T: Task> Kernel for Job<'_, T> {
    type Float = T::Float;

    #[inline(always)]
    unsafe fn run<S: Simd<Float = T::Float>>(self) {
        unsafe { self.task.run::<S>(self.index, self.arena) }
    }
}

/// Does all `jobs` of a task, whose multiply-adds are about `work`.
///
/// # Safety
/// See [`Level::run`].
pub(super) unsafe fn for_each(level: Level, task: &impl Task, jobs: usize, work: usize) {
    let pieces = task.scratch();
    // SAFETY: each index once; the level is the caller's promise.
    let run = |index| with_scratch(&pieces, |arena| unsafe { level.run(Job { task, index, arena }) });
    if work < SERIAL_WORK || jobs == 1 {
        (0..jobs).for_each(run);
    } else {
        (0..jobs).into_par_iter().with_max_len(1).for_each(run);
    }
}
