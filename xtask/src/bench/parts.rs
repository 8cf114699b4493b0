//! Turns CPU times of the parts of a job, of many runs, into what being observed costs: one that a machine with other
//! guests disturbs less than it does the whole job's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::statistics::{Estimate, lower_quartile, resampled};

/// Of the bootstrap: each looks at every part.
const RESAMPLES: usize = 1_000;

/// Nanoseconds of CPU time by part; a name that comes again is another part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts(BTreeMap<(String, u32), u64>);

/// What observed parts take, of what they take alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Costs {
    pub(super) ratio: Estimate,
    /// How many parts every run had.
    pub(super) parts: usize,
    /// CPU seconds of them, alone.
    pub(super) alone: f64,
}

impl Costs {
    /// What they say of so many pairs; of what, and how much of it all parts took alone.
    pub(super) fn text(&self, pairs: usize, what: &str, alone: &str) -> String {
        let Estimate { median, low, high } = self.ratio;
        format!(
            "\nBy its parts: the job says what {what} each of {} parts took (a test, a file that is parsed), in all \
             {pairs} pairs. The lower quartile of\neach, alone and observed, and of their sums ({alone} alone) the ratio: \
             **{median:.4}** ({low:.4} – {high:.4}, 95 % bootstrap interval over the pairs).\n",
            self.parts
        )
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

/// Of pairs of runs (alone, observed): of each part the lower quartile of its times on either side, and of their sums
/// the ratio, with its 95 % interval by the bootstrap over the pairs.
pub(super) fn costs(pairs: &[(Parts, Parts)]) -> Option<Costs> {
    let all = || pairs.iter().flat_map(|(alone, observed)| [alone, observed]);
    let mut names: BTreeSet<&(String, u32)> = all().next()?.0.keys().collect();
    for parts in all() {
        names.retain(|name| parts.0.contains_key(*name));
    }
    // By part, then by pair.
    let times = |of: fn(&(Parts, Parts)) -> &Parts| -> Vec<Vec<f64>> {
        let by_pair = |name| pairs.iter().filter_map(|pair| Some(*of(pair).0.get(name)? as f64)).collect();
        names.iter().map(|name| by_pair(*name)).collect()
    };
    let (alone, observed) = (times(|pair| &pair.0), times(|pair| &pair.1));
    let sum = |side: &[Vec<f64>], chosen: &[usize]| -> Option<f64> {
        let of = |part: &Vec<f64>| {
            lower_quartile(&chosen.iter().filter_map(|pair| part.get(*pair).copied()).collect::<Vec<_>>())
        };
        side.iter().map(of).sum()
    };
    let ratio =
        resampled(pairs.len(), RESAMPLES, |chosen| Some(sum(&observed, chosen)? / sum(&alone, chosen)?))?;
    let every: Vec<usize> = (0..pairs.len()).collect();
    Some(Costs { ratio, parts: names.len(), alone: sum(&alone, &every)? / 1e9 })
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
        let found = costs(&pairs).unwrap();
        assert_eq!(found.parts, 2);
        assert!((found.ratio.median - 1.01).abs() < 1e-4 && (found.alone - 0.002).abs() < 1e-4, "{found:?}");
        assert!(found.ratio.low <= found.ratio.median && found.ratio.high < 1.011, "{found:?}");
        assert_eq!(costs(&[]), None);
    }

    #[test]
    fn parts_that_not_every_run_had_are_left_out() {
        let parts = |text| Parts::parse(text).unwrap();
        let found = costs(&[(parts("a 10\nb 10\n"), parts("a 20\nc 10\n"))]).unwrap();
        assert_eq!((found.parts, found.ratio.median), (1, 2.0));
    }
}
