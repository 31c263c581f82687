//! How times are taken: the contestants of a contest run in turn, so that whatever changes meanwhile (the
//! clock of the processor, other programs) meets all of them alike.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use crate::statistics::Summary;

/// At least so many times where they can be had.
const FEWEST: usize = 3;
/// At most so many executions to a time.
const MOST_EXECUTIONS: f64 = 1000.0;

/// Someone whose executions are timed.
pub trait Contestant {
    /// Seconds of one execution, the mean of `executions` in a row.
    ///
    /// # Errors
    ///
    /// Why it cannot, in words; it then takes no further part.
    fn seconds(&mut self, executions: usize) -> Result<f64, String>;
}

/// When enough is measured.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Times a contestant, at least.
    pub repeat: usize,
    /// Seconds measured of a contestant, at least.
    pub min_time: f64,
    /// Seconds measured of a contestant, at most, where three times fit.
    pub max_time: f64,
    /// Short executions are put together until they last so long.
    pub sample_time: f64,
    /// Pause before every time, in which the threads of others go to sleep.
    pub settle: Duration,
    /// From here on one time is enough.
    pub deadline: Option<Instant>,
}

/// What a contestant did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// Its times.
    pub summary: Summary,
    /// Executions that each time is the mean of.
    pub executions: usize,
}

/// Warms all contestants up, then times them round by round.
pub fn race(contestants: &mut [&mut dyn Contestant], rules: &Rules) -> Vec<Result<Run, String>> {
    let mut entries: Vec<Entry> = contestants.iter_mut().map(|one| Entry::warm_up(*one, rules)).collect();
    loop {
        let mut measured = false;
        for (contestant, entry) in contestants.iter_mut().zip(&mut entries) {
            if entry.wants_more(rules) {
                sleep(rules.settle);
                entry.measure(*contestant);
                measured = true;
            }
        }
        if !measured {
            break;
        }
    }
    entries.into_iter().map(Entry::finish).collect()
}

struct Entry {
    executions: usize,
    times: Vec<f64>,
    failure: Option<String>,
}

impl Entry {
    /// The first execution compiles and allocates; the second says how many make a time.
    fn warm_up(contestant: &mut dyn Contestant, rules: &Rules) -> Self {
        let first = contestant.seconds(1);
        let typical = match first {
            Ok(first) if first < 0.5 * rules.max_time => contestant.seconds(1),
            first => first,
        };
        match typical {
            Ok(seconds) => {
                let executions = (rules.sample_time / seconds.max(1e-9)).ceil().clamp(1.0, MOST_EXECUTIONS);
                Self { executions: executions as usize, times: Vec::new(), failure: None }
            }
            Err(failure) => Self { executions: 0, times: Vec::new(), failure: Some(failure) },
        }
    }

    fn wants_more(&self, rules: &Rules) -> bool {
        if self.failure.is_some() {
            return false;
        }
        let (count, total) = (self.times.len(), self.times.iter().sum::<f64>() * self.executions as f64);
        let enough = count >= rules.repeat && total >= rules.min_time;
        let too_long = count >= FEWEST.min(rules.repeat) && total >= rules.max_time;
        let late = count >= 1 && rules.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        !(enough || too_long || late)
    }

    fn measure(&mut self, contestant: &mut dyn Contestant) {
        match contestant.seconds(self.executions) {
            Ok(seconds) => self.times.push(seconds),
            Err(failure) => self.failure = Some(failure),
        }
    }

    fn finish(self) -> Result<Run, String> {
        match (self.failure, Summary::of(&self.times)) {
            (None, Some(summary)) => Ok(Run { summary, executions: self.executions }),
            (failure, _) => Err(failure.unwrap_or_else(|| "nothing was measured".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;

    /// Takes the given times in turn and notes who ran.
    struct Scripted {
        name: char,
        seconds: Vec<f64>,
        log: Rc<RefCell<String>>,
    }

    impl Contestant for Scripted {
        fn seconds(&mut self, executions: usize) -> Result<f64, String> {
            self.log.borrow_mut().push_str(&format!("{}{executions} ", self.name));
            if self.seconds.len() > 1 { Ok(self.seconds.remove(0)) } else { Ok(self.seconds[0]) }
        }
    }

    struct Failing;

    impl Contestant for Failing {
        fn seconds(&mut self, _: usize) -> Result<f64, String> {
            Err("out of memory".to_owned())
        }
    }

    const RULES: Rules = Rules {
        repeat: 3,
        min_time: 0.0,
        max_time: 10.0,
        sample_time: 0.02,
        settle: Duration::ZERO,
        deadline: None,
    };

    #[test]
    fn contestants_take_turns_and_a_failing_one_drops_out() {
        let log = Rc::new(RefCell::new(String::new()));
        let mut quick = Scripted { name: 'q', seconds: vec![1.0, 0.01], log: log.clone() };
        let mut slow = Scripted { name: 's', seconds: vec![6.0, 4.0, 5.0, 6.0, 7.0], log: log.clone() };
        let runs = race(&mut [&mut quick, &mut Failing, &mut slow], &RULES);
        // The first execution of the slow one is warm-up enough.
        assert_eq!(*log.borrow(), "q1 q1 s1 q2 s1 q2 s1 q2 s1 ");
        assert_eq!(runs[0].as_ref().map(|run| (run.executions, run.summary.median)), Ok((2, 0.01)));
        assert_eq!(runs[1], Err("out of memory".to_owned()));
        assert_eq!(runs[2].as_ref().map(|run| run.summary.median), Ok(5.0));
    }

    #[test]
    fn measuring_ends_by_time() {
        let log = Rc::new(RefCell::new(String::new()));
        let mut one = Scripted { name: 'a', seconds: vec![0.25], log: log.clone() };
        let longer = Rules { min_time: 1.5, ..RULES };
        let samples = |runs: Vec<Result<Run, String>>| runs[0].as_ref().map(|run| run.summary.samples).ok();
        assert_eq!(samples(race(&mut [&mut one], &longer)), Some(6));
        let shorter = Rules { repeat: 100, max_time: 1.0, ..RULES };
        assert_eq!(samples(race(&mut [&mut one], &shorter)), Some(4));
        let late = Rules { deadline: Some(Instant::now()), ..RULES };
        assert_eq!(samples(race(&mut [&mut one], &late)), Some(1));
    }
}
