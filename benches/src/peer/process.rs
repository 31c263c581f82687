//! The worker process: started once, asked line by line.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{PeerKind, Ready, Request};

/// The longest a worker may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Lines kept of what a worker said on its standard error.
const KEPT_LINES: usize = 3;

/// Why a peer is not measured.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PeerError {
    /// It is not installed, or does not start.
    #[error("the peer {} does not start: {reason}; {}", kind.name(), kind.install())]
    Absent {
        /// Which.
        kind: PeerKind,
        /// Why not.
        reason: String,
    },
    /// It ended or did not answer.
    #[error("the peer ended: {0}")]
    Gone(String),
    /// It says why it cannot.
    #[error("{0}")]
    Refused(String),
}

/// A running worker.
#[derive(Debug)]
pub struct Peer {
    kind: PeerKind,
    ready: Ready,
    worker: Worker,
}

#[derive(Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Asked<'a> {
    Time {
        repeats: usize,
        #[serde(flatten)]
        request: &'a Request,
    },
    Run {
        inputs: serde_json::Map<String, serde_json::Value>,
        #[serde(flatten)]
        request: &'a Request,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ready(Ready),
    Seconds(f64),
    Output(Vec<f32>),
    Error(String),
}

impl Peer {
    /// Starts `command` and waits until it is ready.
    pub(super) fn start(kind: PeerKind, command: Command) -> Result<Self, PeerError> {
        let absent = |reason: String| PeerError::Absent { kind, reason };
        let worker = Worker::spawn(command).map_err(|error| absent(error.to_string()))?;
        match worker.receive() {
            Ok(Answer::Ready(ready)) => Ok(Self { kind, ready, worker }),
            Ok(_) => Err(absent("its first line is no greeting".into())),
            Err(error) => Err(absent(error.to_string())),
        }
    }

    /// Which library it is.
    pub fn kind(&self) -> PeerKind {
        self.kind
    }

    /// What it said of itself.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Seconds of one execution, the mean of `repeats`.
    ///
    /// # Errors
    ///
    /// It cannot, or is gone.
    pub fn seconds(&mut self, request: &Request, repeats: usize) -> Result<f64, PeerError> {
        match self.worker.ask(&Asked::Time { repeats, request })? {
            Answer::Seconds(seconds) => Ok(seconds),
            other => Err(other.into_error()),
        }
    }

    /// The output for given inputs, in row-major order.
    ///
    /// # Errors
    ///
    /// As [`seconds`](Self::seconds).
    pub fn output(
        &mut self,
        request: &Request,
        inputs: &[(&'static str, Vec<f32>)],
    ) -> Result<Vec<f32>, PeerError> {
        let inputs =
            inputs.iter().map(|(name, values)| ((*name).to_owned(), values.as_slice().into())).collect();
        match self.worker.ask(&Asked::Run { inputs, request })? {
            Answer::Output(values) => Ok(values),
            other => Err(other.into_error()),
        }
    }
}

impl Answer {
    fn into_error(self) -> PeerError {
        match self {
            Self::Error(text) => PeerError::Refused(text),
            _ => PeerError::Gone("it answered something else than asked".into()),
        }
    }
}

#[derive(Debug)]
struct Worker {
    child: Child,
    /// Closed before the process is waited for: that is how it learns to end.
    requests: Option<ChildStdin>,
    answers: Receiver<String>,
    said: Arc<Mutex<VecDeque<String>>>,
}

impl Worker {
    fn spawn(mut command: Command) -> std::io::Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let requests = child.stdin.take();
        let (sender, answers) = channel();
        if let Some(lines) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(lines).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let said = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(lines) = child.stderr.take() {
            let said = said.clone();
            thread::spawn(move || {
                for line in BufReader::new(lines).lines().map_while(Result::ok) {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    said.push_back(line);
                    if said.len() > KEPT_LINES {
                        said.pop_front();
                    }
                }
            });
        }
        Ok(Self { child, requests, answers, said })
    }

    fn ask(&mut self, command: &Asked) -> Result<Answer, PeerError> {
        let line = serde_json::to_string(command).map_err(|error| PeerError::Refused(error.to_string()))?;
        let sent = self.requests.as_mut().map(|pipe| writeln!(pipe, "{line}").and_then(|()| pipe.flush()));
        match sent {
            Some(Ok(())) => self.receive(),
            _ => Err(self.gone("it takes no requests")),
        }
    }

    fn receive(&self) -> Result<Answer, PeerError> {
        match self.answers.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line)
                .map_err(|error| PeerError::Gone(format!("its answer is not understood ({error}): {line}"))),
            Err(RecvTimeoutError::Timeout) => Err(self.gone("no answer")),
            Err(RecvTimeoutError::Disconnected) => Err(self.gone("its output ended")),
        }
    }

    /// The reason, and the last words of the process.
    fn gone(&self, reason: &str) -> PeerError {
        // What it said last may still be on its way through the pipe.
        thread::sleep(Duration::from_millis(100));
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = said.iter().map(String::as_str).collect();
        match words.is_empty() {
            true => PeerError::Gone(reason.to_owned()),
            false => PeerError::Gone(format!("{reason}, it said: {}", words.join(" | "))),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.requests.take());
        for _ in 0..20 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        // It does not end by itself: it is ours to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        op::{Op, Pass, Precision},
        shape::Shape,
    };

    /// A worker written in the shell.
    fn dummy(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const GREETING: &str = r#"echo '{"ready":{"version":"1","device":"cpu","dtypes":["f32"],
        "cases":[{"op":"gla","form":"dummy","passes":["forward"]}]}}' | tr -d '\n'; echo"#;

    fn request() -> Request {
        Request::new("gla", Shape::new(1, 2, 1, 1), Pass::Forward, Precision::F32, 2, 0)
    }

    #[test]
    fn a_worker_greets_and_answers() {
        let script = format!(
            "{GREETING}; while read line; do case $line in
                *'\"do\":\"time\"'*'\"repeats\":7'*) echo '{{\"seconds\":0.5}}';;
                *'\"inputs\":{{\"q\":[1.0,2.0]}}'*) echo '{{\"output\":[3,4.5]}}';;
                *) echo '{{\"error\":\"no\"}}';;
            esac; done"
        );
        let mut peer = Peer::start(PeerKind::Torch, dummy(&script)).expect("started");
        assert_eq!(peer.ready().form(Op::Gla, Pass::Forward, Precision::F32), Some("dummy"));
        assert_eq!(peer.ready().form(Op::Gla, Pass::Decode, Precision::F32), None);
        assert_eq!(peer.ready().form(Op::Gla, Pass::Forward, Precision::Bf16), None);
        assert_eq!(peer.seconds(&request(), 7), Ok(0.5));
        assert_eq!(peer.output(&request(), &[("q", vec![1.0, 2.0])]), Ok(vec![3.0, 4.5]));
        assert_eq!(peer.seconds(&request(), 8), Err(PeerError::Refused("no".into())));
    }

    #[test]
    fn a_worker_that_ends_is_gone_with_its_last_words() {
        let mut peer = Peer::start(PeerKind::Ggml, dummy(&format!("{GREETING}; read line; echo broken >&2")))
            .expect("started");
        let error = peer.seconds(&request(), 1).expect_err("it ended");
        assert!(error.to_string().contains("broken"), "{error}");
    }

    #[test]
    fn a_worker_that_does_not_start_says_why_and_how_to_install_it() {
        let error = Peer::start(PeerKind::Torch, dummy("echo 'No module named torch' >&2; exit 1"));
        let text = error.expect_err("it ended").to_string();
        assert!(text.contains("No module named torch") && text.contains("pip install torch"), "{text}");
        let error = Peer::start(PeerKind::Torch, Command::new("/nonexistent/python"));
        assert!(matches!(error, Err(PeerError::Absent { .. })));
    }
}
