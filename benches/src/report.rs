//! A report from beginning to end.

use std::{
    cell::RefCell,
    io::Write,
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    agreement::{self, Agreement},
    cli::ReportArgs,
    entrant::{Ours, Theirs},
    error::BenchError,
    expert_headline,
    figure::Figure,
    headline,
    machine::{Machine, device_name},
    pacgnet_headline,
    peer::{Peer, PeerKind, Ready, Request},
    plan::{Contest, Place, Settings, Spec, on_cpu},
    plots,
    race::{Contestant, Rules, Run, race},
    row::Row,
    store::{Store, write_whole},
    table,
    work::{self, Work},
};

/// Short executions are put together until they last so long.
const SAMPLE_TIME: f64 = 0.02;
/// Threads of a peer may spin for a moment after their work.
const SETTLE: Duration = Duration::from_millis(5);

/// The file with everything.
#[derive(Serialize)]
struct Json<'a> {
    machine: &'a Machine,
    agreements: &'a [Agreement],
    rows: &'a [Row],
    headline: &'a [Figure],
    left_out: &'a [String],
}

/// Measures, prints, and writes.
///
/// # Errors
///
/// [`BenchError`]; a contestant that fails is a row of the results instead.
pub fn run(args: &ReportArgs) -> Result<(), BenchError> {
    let start = Instant::now();
    use_threads(args.thread_count());
    let devices = open_devices(&args.devices)?;
    let settings = args.settings(devices.iter().map(|(name, _)| name.clone()).collect());
    let mut store = Store::open(&args.out, args.earlier())?;
    let peers = start_peers(&args.peers);
    let mut report = Report { args, settings, devices, peers, agreements: Vec::new() };

    let names = report.devices.iter().map(|(name, device)| (name.clone(), device_name(name, device)));
    let libraries = report.peers.iter().map(|peer| {
        let peer = peer.borrow();
        (peer.kind().name().to_owned(), format!("{} on {}", peer.ready().version, peer.ready().device))
    });
    let machine = Machine::here(names.collect(), libraries.collect());
    say(&machine_text(&machine));
    report.compare_peers();

    let contests = report.contests();
    if contests.is_empty() {
        return Err(BenchError::Nothing);
    }
    let left_out = report.run_contests(&contests, &mut store, start)?;

    let mut figures = headline::figures(store.rows());
    figures.extend(expert_headline::figures(store.rows()));
    figures.extend(pacgnet_headline::figures(store.rows()));
    let json = Json {
        machine: &machine,
        agreements: &report.agreements,
        rows: store.rows(),
        headline: &figures,
        left_out: &left_out,
    };
    finish(&args.out, &json)?;
    Ok(())
}

fn finish(folder: &Path, json: &Json) -> Result<(), BenchError> {
    let path = folder.join("results.json");
    let text = serde_json::to_vec_pretty(json)
        .map_err(|error| BenchError::Results { path: path.clone(), reason: error.to_string() })?;
    write_whole(&path, &text).map_err(BenchError::io(&path))?;
    let plots = plots::draw(folder, json.rows)?;
    if !json.headline.is_empty() {
        let text = table::headline(json.headline);
        let path = folder.join("headline.txt");
        write_whole(&path, text.as_bytes()).map_err(BenchError::io(&path))?;
        say(&format!("Headline figures\n{text}"));
    }
    if !json.left_out.is_empty() {
        say(&format!("left out for want of time (--budget): {}", json.left_out.join(", ")));
    }
    say(&format!("{}: results.csv, results.json, {} plots", folder.display(), plots.len()));
    Ok(())
}

/// A reader that went away must not end a report.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn machine_text(machine: &Machine) -> String {
    let list = |pairs: &[(String, String)]| {
        pairs.iter().map(|(name, text)| format!("{name} ({text})")).collect::<Vec<_>>().join(", ")
    };
    format!(
        "{}, {} cores, {}, {}\ngatekit {}, burn {}, {}\ndevices: {}; peers: {}\n",
        machine.cpu,
        machine.cores,
        machine.simd.join(" "),
        machine.os,
        machine.versions.gatekit,
        machine.versions.burn,
        machine.versions.rustc,
        list(&machine.devices),
        if machine.peers.is_empty() { "none".to_owned() } else { list(&machine.peers) },
    )
}

/// The thread pools of our CPU backends are sized once, by these.
fn use_threads(threads: usize) {
    for variable in ["RAYON_NUM_THREADS", "MATMUL_NUM_THREADS"] {
        // SAFETY: the program has started no thread yet.
        unsafe { std::env::set_var(variable, threads.to_string()) };
    }
}

fn open_devices(names: &[String]) -> Result<Vec<(String, Device)>, BenchError> {
    let compiled = gatekit::device::compiled();
    let cpu: Vec<&str> = compiled.iter().copied().filter(|name| on_cpu(name)).collect();
    let names: Vec<&str> = match (names.is_empty(), cpu.is_empty()) {
        (false, _) => names.iter().map(String::as_str).collect(),
        (true, false) => cpu,
        (true, true) => compiled,
    };
    names.into_iter().map(|name| Ok((name.to_owned(), gatekit::device::parse(name)?))).collect()
}

/// The peers that start; why the others do not is said, and the report goes on without them.
fn start_peers(kinds: &[PeerKind]) -> Vec<Rc<RefCell<Peer>>> {
    let start = |kind: &PeerKind| match kind.start() {
        Ok(peer) => Some(Rc::new(RefCell::new(peer))),
        Err(error) => {
            eprintln!("warning: {error}");
            None
        }
    };
    kinds.iter().filter_map(start).collect()
}

struct Report<'a> {
    args: &'a ReportArgs,
    settings: Settings,
    devices: Vec<(String, Device)>,
    peers: Vec<Rc<RefCell<Peer>>>,
    agreements: Vec<Agreement>,
}

impl Report<'_> {
    /// Whether peers compute what we do; an op where one does not is not measured against it.
    fn compare_peers(&mut self) {
        for peer in &self.peers {
            let mut peer = peer.borrow_mut();
            let device = self.devices.iter().find(|(name, _)| on_cpu(name) != peer.kind().on_gpu());
            let Some((name, device)) = device.or(self.devices.first()) else { continue };
            let ops = match self.args {
                ReportArgs { headline: true, .. } => &crate::plan::HEADLINE_OPS[..],
                ReportArgs { experts: true, .. } => &expert_headline::OPS[..],
                ReportArgs { pacgnet: true, .. } => &pacgnet_headline::OPS[..],
                _ => &self.settings.ops,
            };
            for &op in ops {
                let Some(agreement) = agreement::of(&mut peer, op, &self.settings, (name, device)) else {
                    continue;
                };
                say(&agreement.to_string());
                self.agreements.push(agreement);
            }
        }
        if !self.agreements.is_empty() {
            say("");
        }
    }

    fn contests(&self) -> Vec<Contest> {
        let agrees = |kind: PeerKind, op: crate::op::Op| {
            self.agreements.iter().all(|one| one.peer != kind.name() || one.op != op || one.agrees)
        };
        let peers: Vec<(PeerKind, Ready)> = self
            .peers
            .iter()
            .map(|peer| {
                let peer = peer.borrow();
                let mut ready = peer.ready().clone();
                ready.cases.retain(|case| agrees(peer.kind(), case.op));
                (peer.kind(), ready)
            })
            .collect();
        match self.args {
            ReportArgs { headline: true, .. } => self.settings.headline(&peers),
            ReportArgs { experts: true, .. } => self.settings.experts(&peers),
            ReportArgs { pacgnet: true, .. } => self.settings.pacgnet(&peers),
            _ => self.settings.contests(&peers),
        }
    }

    /// Runs what the store does not hold; returns the names of contests there was no time for.
    fn run_contests(
        &self,
        contests: &[Contest],
        store: &mut Store,
        start: Instant,
    ) -> Result<Vec<String>, BenchError> {
        let bar = ProgressBar::new(contests.len() as u64);
        let style =
            ProgressStyle::with_template("{bar:24.cyan/dim} {pos}/{len}  {msg}  {elapsed}, {eta} left");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        let end = self.args.budget.map(|seconds| start + Duration::from_secs_f64(seconds.max(0.0)));
        let mut left_out = Vec::new();
        for (index, contest) in contests.iter().enumerate() {
            bar.set_message(contest.name.clone());
            let empty: Vec<Row> = contest.specs.iter().map(|spec| self.settings.row(contest, spec)).collect();
            if empty.iter().all(|row| store.has(&row.key())) {
                bar.inc(1);
                continue;
            }
            let now = Instant::now();
            if end.is_some_and(|end| now >= end) {
                left_out.push(contest.name.clone());
                continue;
            }
            let deadline = end.map(|end| now + (end - now) / (contests.len() - index) as u32);
            let rows = self.run_contest(contest, empty, deadline);
            let kinds = self.args.peers.iter().map(|kind| kind.name()).collect::<Vec<_>>();
            bar.suspend(|| say(&table::contest(&contest.name, &rows, &kinds)));
            store.append(rows)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(left_out)
    }

    fn run_contest(&self, contest: &Contest, mut rows: Vec<Row>, deadline: Option<Instant>) -> Vec<Row> {
        let (repeat, min_time) =
            if self.args.quick { (3, 0.0) } else { (self.args.repeat, self.args.min_time) };
        let with_peers = contest.specs.iter().any(|spec| self.peer_of(spec).is_some());
        let rules = Rules {
            repeat,
            min_time,
            max_time: self.args.max_time,
            sample_time: if self.args.quick { 0.0 } else { SAMPLE_TIME },
            settle: if with_peers { SETTLE } else { Duration::ZERO },
            deadline,
        };
        let mut entrants: Vec<Entrant> = contest.specs.iter().map(|spec| self.entrant(spec)).collect();
        let runs = {
            let mut contestants: Vec<&mut dyn Contestant> =
                entrants.iter_mut().map(Entrant::contestant).collect();
            race(&mut contestants, &rules)
        };
        for (((row, spec), entrant), run) in rows.iter_mut().zip(&contest.specs).zip(&entrants).zip(runs) {
            fill(row, spec, run);
            match entrant {
                Entrant::Ours(ours) => {
                    row.input_bytes = ours.input_bytes();
                    row.extra_bytes = ours.extra_bytes();
                }
                Entrant::Theirs(_) => {
                    let same = |one: &&Agreement| one.peer == row.device && one.op.name() == row.op;
                    row.difference = self.agreements.iter().find(same).and_then(|one| one.difference);
                }
            }
        }
        rows
    }

    fn peer_of(&self, spec: &Spec) -> Option<(&Rc<RefCell<Peer>>, Request)> {
        let (kind, op, shape, pass) = match spec {
            Spec::Peer { kind, op, pass, shape, .. } => (kind, op.name(), *shape, *pass),
            Spec::Matmul { on: Place::Peer(kind), size } => (
                kind,
                crate::row::MATMUL,
                crate::shape::Shape::new(1, *size, 1, *size),
                crate::op::Pass::Forward,
            ),
            _ => return None,
        };
        let peer = self.peers.iter().find(|peer| peer.borrow().kind() == *kind)?;
        let Settings { precision, threads, .. } = self.settings;
        Some((peer, Request::new(op, shape, pass, precision, threads, self.args.seed)))
    }

    fn device(&self, name: &str) -> Device {
        let known = self.devices.iter().find(|(known, _)| known == name);
        known.map(|(_, device)| device.clone()).unwrap_or_else(|| panic!("device `{name}` is not open"))
    }

    fn entrant(&self, spec: &Spec) -> Entrant {
        if let Some((peer, request)) = self.peer_of(spec) {
            return Entrant::Theirs(Theirs { peer: peer.clone(), request });
        }
        let (precision, seed) = (self.settings.precision, self.args.seed);
        Entrant::Ours(match spec {
            Spec::Ours { device, case } => {
                let (case, watch, device) = (*case, on_cpu(device), self.device(device));
                Ours::new(watch, move || work::prepare(case, &device, seed))
            }
            Spec::Matmul { on: Place::Device(device), size } => {
                let (size, device) = (*size, self.device(device));
                Ours::new(false, move || Work::matmul(size, precision, &device))
            }
            Spec::Copy { device, shape } => {
                let (bytes, device) = (shape.state_bytes(), device.as_deref().map(|name| self.device(name)));
                Ours::new(false, move || Work::copy(bytes, device.as_ref()))
            }
            Spec::Peer { .. } | Spec::Matmul { .. } => Ours::new(false, || panic!("the peer does not run")),
        })
    }
}

enum Entrant {
    Ours(Ours),
    Theirs(Theirs),
}

impl Entrant {
    fn contestant(&mut self) -> &mut dyn Contestant {
        match self {
            Self::Ours(ours) => ours,
            Self::Theirs(theirs) => theirs,
        }
    }
}

/// Puts the times into a row.
fn fill(row: &mut Row, spec: &Spec, run: Result<Run, String>) {
    match run {
        Ok(Run { summary, executions }) => {
            row.median_s = Some(summary.median);
            row.lower_quartile_s = Some(summary.lower_quartile);
            row.upper_quartile_s = Some(summary.upper_quartile);
            row.minimum_s = Some(summary.minimum);
            (row.samples, row.executions) = (summary.samples, executions);
            row.flops = spec.flops().map(|flops| flops / summary.median);
            row.bytes_per_s = spec.traffic().map(|bytes| bytes / summary.median);
        }
        // A line of its own in the file.
        Err(error) => row.error = error.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}
