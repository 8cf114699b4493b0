//! Workers that are recognised in the middle of their exec: their program is mapped before they have an environment.

use super::*;

const WORKERS: u32 = 60;
const STARTED: &str = "model_generation_started_total";

#[test]
fn a_worker_recognised_before_its_exec_is_over_is_told_with_its_own_job() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    // So that some are interrupted where it matters.
    let _busy = [Running::busy()?, Running::busy()?, Running::busy()?];
    let workers = (0..WORKERS)
        .map(|_| watched.waiting(&["env", "FLOW_TYPE=drawn"], &["1"]))
        .collect::<Result<Vec<_>>>()?;
    let all = f64::from(WORKERS);
    let own = [("flow_type", "drawn")];
    let metrics = watched.agent.metrics_when(LIMIT, |m| m.sum(STARTED, &own) >= all)?;
    let drawn = metrics.sum(STARTED, &own);
    ensure!(
        drawn == all,
        "{drawn} of {all} by their own kind of job; {:?}",
        metrics.by(STARTED, "flow_type")
    );
    let (seen, _) =
        watched.seen_of(all, || workers.into_iter().try_for_each(|worker| worker.end().map(drop)))?;
    ensure!(seen == all, "{seen} of {all} calls");
    watched.is_well()
}
