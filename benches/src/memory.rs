//! Bytes the program holds: an allocator that counts while it is asked to.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

/// One count at a time.
static TURN: Mutex<()> = Mutex::new(());

static COUNTING: AtomicBool = AtomicBool::new(false);
/// Relative to when the counting began; below zero when older blocks are freed.
static HELD: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

/// Counts what passes through the allocator `A`; while nobody asks, at the price of one load.
#[derive(Debug)]
pub struct Counting<A>(pub A);

fn add(bytes: i64) {
    if COUNTING.load(Ordering::Relaxed) {
        let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
        PEAK.fetch_max(held, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the inner allocator unchanged; counting touches no memory of theirs.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: the caller's promises are handed on.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        add(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: as above.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The inner allocator may hold both blocks for a while; a caller cannot tell, and neither can this.
        add(size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { self.0.realloc(block, layout, size) }
    }
}

/// The most bytes held at once while `run` ran, beyond what was held before.
///
/// Counts all threads: nothing else may run meanwhile.
pub fn peak_of(run: impl FnOnce()) -> usize {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    HELD.store(0, Ordering::Relaxed);
    PEAK.store(0, Ordering::Relaxed);
    COUNTING.store(true, Ordering::SeqCst);
    run();
    COUNTING.store(false, Ordering::SeqCst);
    usize::try_from(PEAK.load(Ordering::Relaxed)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_was_held_at_once() {
        const BLOCK: usize = 64 << 20;
        let older = vec![1_u8; BLOCK];
        let peak = peak_of(|| {
            drop(older);
            for _ in 0..3 {
                let blocks = [vec![1_u8; BLOCK], vec![2_u8; BLOCK], vec![3_u8; BLOCK]];
                std::hint::black_box(&blocks);
            }
        });
        // The older block went first; other tests of this process hold, and free, little.
        assert!((2 * BLOCK - BLOCK / 2..2 * BLOCK + BLOCK / 2).contains(&peak), "{peak}");
    }
}
