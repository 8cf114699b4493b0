//! Programs that are renamed, replaced or deleted between their mapping and the agent's look at it.

use super::*;

#[test]
fn a_program_renamed_replaced_or_deleted_before_it_is_looked_at_is_observed_or_counted_as_missed()
-> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    for (rights, wrapper) in [("all", Vec::new()), ("chart", by_path())] {
        let watched = Watched::start(&wrapper, &[])?;
        for (number, how) in ["renamed", "replaced", "deleted"].into_iter().enumerate() {
            let program = folder.path().join(format!("hostile-{rights}-{number}"));
            fs::copy(&watched.program, &program)?;
            let missed = |m: &cadscope_tests::metrics::Metrics| m.sum("cadscope_workers_missed_total", &[]);
            let before = missed(&watched.agent.metrics()?);
            let worker = behind_its_back(&watched.agent, || {
                let worker = Waiting::start(&[], &program, &["10"])?;
                match how {
                    "renamed" => fs::rename(&program, program.with_extension("renamed"))?,
                    "replaced" => {
                        let new = program.with_extension("new");
                        fs::copy(&watched.program, &new)?;
                        fs::rename(&new, &program)?;
                    }
                    _ => fs::remove_file(&program)?,
                }
                Ok(worker)
            })?;
            let name = format!("hostile-{rights}-{number}");
            // Only with all rights is it reached by its mapping.
            let by_mapping = rights == "all";
            let looked = until("it is probed, or counted as missed", LIMIT, || {
                let looked = if by_mapping {
                    watched.agent.has_probed(&[&name]).ok()?
                } else {
                    missed(&watched.agent.metrics().ok()?) > before
                };
                looked.then_some(())
            });
            looked.with_context(|| format!("{rights}, {how}: {}", watched.agent.log()))?;
            let expected = if by_mapping { 10.0 } else { 0.0 };
            let (seen, ended) = watched.seen_of(expected, || worker.end())?;
            ensure!((ended.code, ended.stdout.as_str()) == (0, "55"), "{rights}, {how}: {ended:?}");
            ensure!(seen == expected, "{rights}, {how}: {seen} of 10 calls; {}", watched.agent.log());
            watched.is_well()?;
            ensure!(
                by_mapping || !watched.agent.has_probed(&[&name])?,
                "{rights}, {how}: probed by its path"
            );
        }
    }
    harmless(
        "A program renamed, replaced or deleted while it is mapped",
        "before the agent looks at it, with all rights and with those of the chart",
        "it is observed by its mapping, or counted as missed; what stands at its path is not probed for it",
    )
}
