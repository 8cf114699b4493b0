//! Turns CPU times of the parts of a job, of many runs, into what being observed costs: one that a machine with other
//! guests disturbs less than it does the whole job's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::statistics::{Estimate, lower_quartile, median, ratio_of_means, resampled};

/// Of the bootstrap: each looks at every part.
const RESAMPLES: usize = 1_000;

/// Pairs from which on a bootstrap over them is worth its name.
const ENOUGH: usize = 6;

/// Nanoseconds of CPU time by part; a name that comes again is another part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts(BTreeMap<(String, u32), u64>);

/// What disturbs a measurement, and so what is made of a part's runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Disturbed {
    /// Some runs of any part: by the machine's other guests. The lower quartile of its runs counts.
    Runs,
    /// Any run of some parts: they search for as long as they may, or wait in threads. Parts whose runs of a side differ by
    /// more than this share are left out; of the others the sum in each run counts.
    Parts(f64),
}

/// What observed parts take, of what they take alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Costs {
    disturbed: Disturbed,
    pub(super) ratio: Estimate,
    /// How many parts every run had, and how many of these count.
    parts: (usize, usize),
    /// CPU seconds of those that count, alone, and of all.
    alone: (f64, f64),
}

impl Costs {
    /// What they say of so many pairs. Where instructions are counted, each is a nanosecond.
    pub(super) fn text(&self, pairs: usize) -> String {
        let Estimate { median, low, high } = self.ratio;
        let ((all, counting), (alone, alone_all)) = (self.parts, self.alone);
        let chosen = match self.disturbed {
            Disturbed::Runs => format!(
                "By its parts: the job says what CPU time each of {all} parts took (a test, a file that is parsed), in all \
                 {pairs} pairs. Of the lower quartiles of\neach, alone and observed, the sums ({alone:.2} s alone) have the \
                 ratio"
            ),
            Disturbed::Parts(limit) => format!(
                "By its parts: the job says how many instructions each of {all} parts took (a test, a file that is parsed), in \
                 all {pairs} pairs.\n{counting} of them, with {:.0} % of all instructions, took the same in all runs of a side \
                 but for {:.0} %; the others search for as long as they may,\nwait in threads, or have Python's garbage collected. \
                 Of what the {counting} took in a run, the means ({:.1} million alone) have the ratio, observed / alone,",
                alone / alone_all * 100.0,
                limit * 100.0,
                alone * 1e3
            ),
        };
        // Of a few pairs there are only a few samples.
        let sure = match self.disturbed {
            Disturbed::Parts(_) => "Student's 95 % interval",
            Disturbed::Runs if pairs < ENOUGH => "range over resampled pairs, too few for an interval",
            Disturbed::Runs => "95 % bootstrap interval over the pairs",
        };
        format!("\n{chosen}\n**{median:.4}** ({low:.4} – {high:.4}, {sure}).\n")
    }

    /// Row of a table: the limit, the share of all, the ratio and its interval.
    pub(super) fn row(&self, limit: f64) -> String {
        let (Estimate { median, low, high }, (alone, all)) = (self.ratio, self.alone);
        let share = alone / all * 100.0;
        format!("| {:.1} % | {share:.0} % | {median:.4} | {low:.4} – {high:.4} |\n", limit * 100.0)
    }
}

impl Parts {
    /// What a run has left in a file, lines of a name and nanoseconds.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    /// Lines of a name and nanoseconds.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut parts = Self::default();
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        for line in text.lines() {
            let (name, ns) = line.rsplit_once(' ').with_context(|| format!("`{line}` has no time"))?;
            let time = times.entry(name).or_default();
            parts.0.insert((name.to_owned(), *time), ns.parse().with_context(|| line.to_owned())?);
            *time += 1;
        }
        ensure!(!parts.0.is_empty(), "no parts");
        Ok(parts)
    }
}

/// What a part took alone and observed, by pair.
type Sides = (Vec<f64>, Vec<f64>);

/// Of pairs of runs (alone, observed): the ratio of what the parts that count took, with its 95 % interval, by the bootstrap
/// over the pairs where runs are disturbed, by Student where parts are. None, if they are too few.
pub(super) fn costs(pairs: &[(Parts, Parts)], disturbed: Disturbed) -> Option<Costs> {
    let all = || pairs.iter().flat_map(|(alone, observed)| [alone, observed]);
    let mut names: BTreeSet<&(String, u32)> = all().next()?.0.keys().collect();
    for parts in all() {
        names.retain(|name| parts.0.contains_key(*name));
    }
    // By part, alone and observed; then by pair.
    let times = |of: fn(&(Parts, Parts)) -> &Parts, name| -> Vec<f64> {
        pairs.iter().filter_map(|pair| Some(*of(pair).0.get(name)? as f64)).collect()
    };
    let every: Vec<Sides> =
        names.iter().map(|name| (times(|pair| &pair.0, name), times(|pair| &pair.1, name))).collect();
    let counts = |(alone, observed): &&Sides| match disturbed {
        Disturbed::Runs => true,
        Disturbed::Parts(limit) => spread(alone) <= limit && spread(observed) <= limit,
    };
    let counting: Vec<&Sides> = every.iter().filter(counts).collect();
    let of = |runs: &[f64]| match disturbed {
        Disturbed::Runs => lower_quartile(runs),
        Disturbed::Parts(_) => median(runs),
    };
    let sum = |side: fn(&Sides) -> &Vec<f64>, chosen: &[usize]| -> Option<f64> {
        let runs = |part| chosen.iter().filter_map(|pair| side(part).get(*pair).copied()).collect::<Vec<_>>();
        counting.iter().map(|part| of(&runs(part))).sum()
    };
    let in_each_run = |side: fn(&Sides) -> &Vec<f64>| -> Vec<f64> {
        (0..pairs.len()).map(|pair| counting.iter().filter_map(|part| side(part).get(pair)).sum()).collect()
    };
    let ratio = match disturbed {
        Disturbed::Runs => resampled(pairs.len(), RESAMPLES, |chosen| {
            Some(sum(|part| &part.1, chosen)? / sum(|part| &part.0, chosen)?)
        }),
        Disturbed::Parts(_) => ratio_of_means(&in_each_run(|part| &part.0), &in_each_run(|part| &part.1)),
    }?;
    let all_pairs: Vec<usize> = (0..pairs.len()).collect();
    let alone_all: f64 = every.iter().map(|(alone, _)| of(alone)).sum::<Option<f64>>()?;
    let alone = sum(|part| &part.0, &all_pairs)?;
    Some(Costs {
        disturbed,
        ratio,
        parts: (every.len(), counting.len()),
        alone: (alone / 1e9, alone_all / 1e9),
    })
}

/// By what share of the least the values differ.
fn spread(values: &[f64]) -> f64 {
    let (low, high) =
        values.iter().fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(*value), high.max(*value)));
    high / low - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_comes_again_is_another() {
        let parts = Parts::parse("a b 10\na b 20\nc 30\n").unwrap();
        let time = |name: &str, time| parts.0.get(&(name.to_owned(), time)).copied();
        assert_eq!(
            (time("a b", 0), time("a b", 1), time("c", 0), time("c", 1)),
            (Some(10), Some(20), Some(30), None)
        );
        assert!(Parts::parse("").is_err() && Parts::parse("a b\n").is_err() && Parts::parse("a\n").is_err());
    }

    #[test]
    fn what_disturbs_some_runs_is_no_cost_and_what_each_pays_is() {
        // Every third run is disturbed for one of its parts, alone or observed.
        let run = |index: u64, costs: u64| {
            let slow = |part: u64| if index.is_multiple_of(3) && part == index % 2 { 500_000 } else { 0 };
            let time = |part| 1_000_000 + costs + slow(part) + index;
            Parts::parse(&format!("one {}\ntwo {}\n", time(0), time(1))).unwrap()
        };
        let pairs: Vec<_> = (0..20).map(|index| (run(index, 0), run(index + 1, 10_000))).collect();
        let found = costs(&pairs, Disturbed::Runs).unwrap();
        assert_eq!(found.parts, (2, 2));
        assert!(
            (found.ratio.median - 1.01).abs() < 1e-4 && (found.alone.0 - 0.002).abs() < 1e-4,
            "{found:?}"
        );
        assert!(found.ratio.low <= found.ratio.median && found.ratio.high < 1.011, "{found:?}");
        assert_eq!(costs(&[], Disturbed::Runs), None);
    }

    #[test]
    fn parts_that_not_every_run_had_are_left_out() {
        let parts = |text| Parts::parse(text).unwrap();
        let found = costs(&[(parts("a 10\nb 10\n"), parts("a 20\nc 10\n"))], Disturbed::Runs).unwrap();
        assert_eq!((found.parts, found.ratio.median), ((1, 1), 2.0));
        assert!(found.text(1).contains("too few") && found.text(ENOUGH).contains("95 %"), "{found:?}");
    }

    #[test]
    fn parts_that_are_never_the_same_are_left_out_and_said() {
        let parts = |text| Parts::parse(text).unwrap();
        let pairs = [
            (parts("steady 1000\nsearch 3000\n"), parts("steady 1001\nsearch 1000\n")),
            (parts("steady 1000\nsearch 1000\n"), parts("steady 1001\nsearch 2000\n")),
        ];
        let found = costs(&pairs, Disturbed::Parts(0.01)).unwrap();
        assert!(found.parts == (2, 1) && (found.ratio.median - 1.001).abs() < 1e-9, "{found:?}");
        let text = found.text(2);
        assert!(text.contains("1 of them, with 33 % of all") && text.contains("**1.0010**"), "{text}");
        assert!(text.contains("Student's 95 %"), "{text}");
        assert_eq!(found.row(0.01), "| 1.0 % | 33 % | 1.0010 | 1.0010 – 1.0010 |\n");
        assert_eq!(costs(&pairs[..1], Disturbed::Parts(0.01)), None);
    }
}
