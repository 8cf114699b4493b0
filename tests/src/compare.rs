//! Holds cadscope's account of a run against the worker's own record.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::record::Call;
use crate::trace::{Operation, Trace};

/// What may differ, and why that is no fault.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Probes that may be skipped with a reason; their calls are then not expected.
    pub skippable: &'a [&'a str],
    /// Calls with this many open around them and more are not tracked, but counted.
    pub max_depth: u32,
    /// Counters of losses that this run may raise.
    pub losses: &'a [&'a str],
}

/// What came out.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Differences, in words.
    pub complaints: Vec<String>,
    /// Calls with the operations that they are.
    pub pairs: Vec<(Call, Operation)>,
    /// Calls too deep to be tracked.
    pub too_deep: u64,
}

struct Row<T> {
    item: T,
    parent: Option<usize>,
    what: String,
}

/// Compares; an empty list of complaints is agreement.
#[must_use]
pub fn compare(calls: &[Call], trace: &Trace, rules: Rules<'_>) -> Comparison {
    let mut result = Comparison::default();
    let skipped: HashSet<&str> = trace
        .skipped
        .iter()
        .map(|s| s.probe.as_str())
        .filter(|p| rules.skippable.contains(p) && trace.of(p).is_empty())
        .collect();
    let expected = expected_rows(calls, &skipped, rules, &mut result);
    let actual = actual_rows(trace);

    let mut threads: Vec<_> = expected.keys().chain(actual.keys()).copied().collect();
    threads.sort_unstable();
    threads.dedup();
    for thread in threads {
        let want = expected.get(&thread).map_or(&[][..], Vec::as_slice);
        let have = actual.get(&thread).map_or(&[][..], Vec::as_slice);
        let same = want.len() == have.len()
            && want.iter().zip(have).all(|(w, h)| w.what == h.what && w.parent == h.parent);
        if same {
            for (w, h) in want.iter().zip(have) {
                check_pair(w.item, h.item, &mut result.complaints);
                result.pairs.push((w.item.clone(), h.item.clone()));
            }
        } else {
            result.complaints.push(difference(thread, want, have));
        }
    }
    for (counter, lost) in &trace.losses {
        let allowed = rules.losses.iter().any(|l| counter.contains(l));
        if *lost != 0 && !allowed {
            result.complaints.push(format!("losses: {counter} = {lost}"));
        }
    }
    result
}

fn expected_rows<'a>(
    calls: &'a [Call],
    skipped: &HashSet<&str>,
    rules: Rules<'_>,
    result: &mut Comparison,
) -> BTreeMap<(i32, i32), Vec<Row<&'a Call>>> {
    let by_seq: HashMap<(i32, i64), &Call> = calls.iter().map(|c| ((c.pid, c.seq), c)).collect();
    let kept = |call: &Call| !skipped.contains(call.id.as_str());
    let parent_of = |call: &Call| {
        let mut above = call.parent;
        while let Some(parent) = above.and_then(|seq| by_seq.get(&(call.pid, seq))) {
            if kept(parent) {
                return Some(*parent);
            }
            above = parent.parent;
        }
        None
    };
    let mut rows: BTreeMap<(i32, i32), Vec<Row<&Call>>> = BTreeMap::new();
    let mut places: HashMap<(i32, i64), usize> = HashMap::new();
    for call in calls.iter().filter(|c| kept(c)) {
        if call.depth >= rules.max_depth {
            result.too_deep += 1;
            continue;
        }
        let thread = rows.entry((call.pid, call.tid)).or_default();
        places.insert((call.pid, call.seq), thread.len());
        let parent = parent_of(call).and_then(|p| places.get(&(p.pid, p.seq))).copied();
        let what = describe(&call.id, call.outcome(), &call.how, call.exception.as_deref(), call.signal);
        thread.push(Row { item: call, parent, what });
    }
    rows
}

fn actual_rows(trace: &Trace) -> BTreeMap<(i32, i32), Vec<Row<&Operation>>> {
    let mut threads: BTreeMap<(i32, i32), Vec<&Operation>> = BTreeMap::new();
    let ours = |o: &&Operation| o.probe.starts_with("torture.") || o.probe.starts_with("plugin.");
    for operation in trace.operations.iter().filter(ours) {
        threads.entry((operation.pid, operation.tid)).or_default().push(operation);
    }
    threads.into_iter().map(|(thread, operations)| (thread, rows_of(operations))).collect()
}

fn rows_of(mut operations: Vec<&Operation>) -> Vec<Row<&Operation>> {
    operations.sort_by_key(|o| (o.start_ns, o.depth));
    let starts: HashMap<i64, usize> = operations.iter().enumerate().map(|(i, o)| (o.start_ns, i)).collect();
    let row = |o: &Operation| {
        let parent = o.parent_start_ns.map(|s| starts.get(&s).copied().unwrap_or(usize::MAX));
        let what = describe(&o.probe, &o.outcome, &o.ended_by, o.exception.as_deref(), o.signal);
        (parent, what)
    };
    let rows = operations.iter().map(|o| (*o, row(o)));
    rows.map(|(item, (parent, what))| Row { item, parent, what }).collect()
}

fn describe(id: &str, outcome: &str, how: &str, exception: Option<&str>, signal: Option<i32>) -> String {
    let exception = exception.map(|e| format!(" <{e}>")).unwrap_or_default();
    let signal = signal.map(|s| format!(" signal {s}")).unwrap_or_default();
    format!("{id}: {outcome}, {how}{exception}{signal}")
}

fn check_pair(call: &Call, operation: &Operation, complaints: &mut Vec<String>) {
    let mut complain = |what: String| complaints.push(format!("{} of thread {}: {what}", call.id, call.tid));
    if let (Some(want), Some(have)) = (call.n, operation.int("n"))
        && want != have
    {
        complain(format!("n is {want}, reported {have}"));
    }
    if call.how == "return" {
        if let (Some(want), Some(have)) = (call.result, operation.int("result"))
            && want != have
        {
            complain(format!("returned {want}, reported {have}"));
        }
        if matches!(call.id.as_str(), "torture.small" | "torture.work")
            && (operation.int("n").is_none() || operation.int("result").is_none())
        {
            complain(format!("argument or result not read: {:?}", operation.values));
        }
    }
    if operation.start_ns < call.before_ns {
        complain(format!("began {} ns before it was made", call.before_ns - operation.start_ns));
    }
    if operation.end_ns < operation.start_ns {
        complain("ended before it began".to_owned());
    }
    // A tail-calling function lasts until the one that it went on in has returned: that one works `n` microseconds.
    if let (Some(us), Some((start, end))) = (call.n, call.clock_ns)
        && call.id.contains(".tail_")
        && us >= 1500
        && end - start > us * 1000
        && operation.duration_ns() < us * 500
    {
        complain(format!("worked {us} us, reported {} ns", operation.duration_ns()));
    }
    if let Some((_, end)) = call.clock_ns
        && (operation.start_ns > end || (call.how == "return" && operation.end_ns > end))
    {
        complain(format!("ended {} ns after the call was over", operation.end_ns - end));
    }
}

fn difference(thread: (i32, i32), want: &[Row<&Call>], have: &[Row<&Operation>]) -> String {
    let first = want
        .iter()
        .zip(have)
        .position(|(w, h)| w.what != h.what || w.parent != h.parent)
        .unwrap_or(want.len().min(have.len()));
    let from = first.saturating_sub(4);
    let mut text = format!(
        "pid {} tid {}: {} calls recorded, {} operations reported; first difference at {first}\n",
        thread.0,
        thread.1,
        want.len(),
        have.len()
    );
    let place = |parent: Option<usize>| match parent {
        None => "-".to_owned(),
        Some(usize::MAX) => "?".to_owned(),
        Some(index) => index.to_string(),
    };
    for index in from..(first + 6).min(want.len().max(have.len())) {
        let mark = if index == first { '>' } else { ' ' };
        let w = want.get(index).map(|r| format!("{} in {}", r.what, place(r.parent))).unwrap_or_default();
        let h = have.get(index).map(|r| format!("{} in {}", r.what, place(r.parent))).unwrap_or_default();
        text += &format!("  {mark}{index:4} recorded {w:60} | reported {h}\n");
    }
    text
}

/// Median over pairs longer than `at_least_ns` of the difference between reported and own duration, as a share of
/// what is allowed: the greater of 1 % and 30 µs. With the number of pairs.
#[must_use]
pub fn duration_error(pairs: &[(i64, i64)], at_least_ns: i64) -> (f64, usize) {
    let mut shares: Vec<f64> = pairs
        .iter()
        .filter(|(own, _)| *own >= at_least_ns)
        .map(|(own, reported)| {
            let allowed = (own / 100).max(30_000);
            to_f64((reported - own).abs()) / to_f64(allowed)
        })
        .collect();
    shares.sort_by(f64::total_cmp);
    (shares.get(shares.len() / 2).copied().unwrap_or(0.0), shares.len())
}

/// Exact for durations below 2^53 ns (104 days).
#[must_use]
pub fn to_f64(ns: i64) -> f64 {
    let negative = ns < 0;
    let size = std::time::Duration::from_nanos(ns.unsigned_abs()).as_secs_f64() * 1e9;
    if negative { -size } else { size }
}
