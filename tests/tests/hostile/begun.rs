//! Workers that are recognised in the middle of their exec: their program is mapped before they have an environment.

use super::*;

const WORKERS: u32 = 60;
const STARTED: &str = "model_generation_started_total";

#[test]
fn a_worker_recognised_before_its_exec_is_over_is_told_with_its_own_job() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let before = watched.agent.metrics()?.sum(STARTED, &[]);
    // So that some are interrupted where it matters.
    let _busy = [Running::busy()?, Running::busy()?, Running::busy()?];
    let workers = (0..WORKERS)
        .map(|_| watched.waiting(&["env", "FLOW_TYPE=drawn"], &["1"]))
        .collect::<Result<Vec<_>>>()?;
    let all = f64::from(WORKERS);
    let metrics = watched.agent.metrics_when(LIMIT, |m| m.sum(STARTED, &[]) - before >= all)?;
    let own = metrics.sum(STARTED, &[("flow_type", "drawn")]);
    ensure!(own == all, "{own} of {all} by their own kind of job; {:?}", metrics.by(STARTED, "flow_type"));
    for worker in workers {
        worker.end()?;
    }
    watched.is_well()
}
