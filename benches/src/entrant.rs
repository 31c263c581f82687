//! Contestants: our own code, and peers.

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Instant,
};

use crate::{
    memory::peak_of,
    peer::{Peer, Request},
    race::Contestant,
    work::Work,
};

/// Executions whose memory is looked at; they are warm-up and not timed for the result.
const WATCHED: usize = 2;

/// Our code.
pub struct Ours {
    /// The inputs are drawn when it is its turn, so that a failure is this contestant's alone.
    prepare: Option<Box<dyn FnOnce() -> Work>>,
    work: Option<Work>,
    watch_memory: bool,
    calls: usize,
    peak: Option<usize>,
}

impl Ours {
    /// Whoever `prepare` prepares; the memory of work on the processor can be watched.
    pub fn new(watch_memory: bool, prepare: impl FnOnce() -> Work + 'static) -> Self {
        Self { prepare: Some(Box::new(prepare)), work: None, watch_memory, calls: 0, peak: None }
    }

    /// Bytes of the inputs, once they are there.
    pub fn input_bytes(&self) -> Option<usize> {
        self.work.as_ref().map(|work| work.input_bytes)
    }

    /// The most bytes held beyond inputs, outputs and gradients.
    pub fn extra_bytes(&self) -> Option<usize> {
        Some(self.peak?.saturating_sub(self.work.as_ref()?.result_bytes))
    }

    fn execute(&mut self, executions: usize) -> f64 {
        if let Some(prepare) = self.prepare.take() {
            let mut work = prepare();
            // Inputs may still be in the making.
            work.finish();
            self.work = Some(work);
        }
        let Some(work) = &mut self.work else {
            panic!("it failed before");
        };
        self.calls += 1;
        let start = Instant::now();
        if self.watch_memory && self.calls <= WATCHED {
            self.peak = Some(peak_of(|| work.execute(executions)));
        } else {
            work.execute(executions);
        }
        start.elapsed().as_secs_f64() / executions as f64
    }
}

impl Contestant for Ours {
    fn seconds(&mut self, executions: usize) -> Result<f64, String> {
        catch_unwind(AssertUnwindSafe(|| self.execute(executions))).map_err(|panic| message(&*panic))
    }
}

/// What a panic said.
pub fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}

/// A peer's code.
pub struct Theirs {
    /// One worker serves all contests.
    pub peer: Rc<RefCell<Peer>>,
    /// What it is asked for.
    pub request: Request,
}

impl Contestant for Theirs {
    fn seconds(&mut self, executions: usize) -> Result<f64, String> {
        self.peer.borrow_mut().seconds(&self.request, executions).map_err(|error| error.to_string())
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{
        case::Case,
        op::{Form, Op, Pass, Precision},
        shape::Shape,
        work,
    };

    fn case(op: Op, form: Form, pass: Pass) -> Case {
        Case { op, form, pass, shape: Shape::new(2, 70, 3, 16), precision: Precision::F32 }
    }

    #[test]
    fn every_op_runs_in_every_form_and_pass_it_has() {
        for &op in Op::ALL {
            for &form in Form::ALL {
                for pass in Pass::ALL.iter().copied().filter(|&pass| op.has(form, pass)) {
                    let case = case(op, form, pass);
                    let mut ours = Ours::new(true, move || work::prepare(case, &Device::flex(), 0));
                    let seconds = ours.seconds(2).unwrap_or_else(|error| panic!("{case:?}: {error}"));
                    assert!(seconds > 0.0);
                    assert!(ours.input_bytes().is_some_and(|bytes| bytes > 0), "{case:?}");
                    assert!(ours.extra_bytes().is_some(), "{case:?}");
                }
            }
        }
    }

    #[test]
    fn inputs_are_counted() {
        let case = case(Op::Kda, Form::Fused, Pass::ForwardBackward);
        let work = work::prepare(case, &Device::flex(), 0);
        let tokens = 2 * 70 * 3;
        assert_eq!(work.input_bytes, 4 * tokens * (4 * 16 + 1));
        assert_eq!(work.result_bytes, 4 * tokens * (16 + 4 * 16 + 1));
    }

    #[test]
    fn a_panic_is_a_failure_in_words() {
        let mut ours = Ours::new(false, || panic!("no memory for {} tensors", 3));
        assert_eq!(ours.seconds(1), Err("no memory for 3 tensors".to_owned()));
        assert_eq!(ours.seconds(1), Err("it failed before".to_owned()));
    }
}
