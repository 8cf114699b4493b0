//! Turns dashboards as they are meant (rows of panels with queries) into the JSON that Grafana imports.
//!
//! The files under dashboards/ are written only from here; a test fails where they differ.

use std::fs;

use anyhow::{Context, Result};

use crate::places::repository;
use model::Dashboard;

mod agent;
mod fleet;
mod model;
mod query;
mod versions;
mod worker;

/// All of them, in the order of use.
fn all() -> [Dashboard; 4] {
    [fleet::dashboard(), worker::dashboard(), versions::dashboard(), agent::dashboard()]
}

/// Writes dashboards/*.json.
pub(crate) fn write() -> Result<()> {
    let folder = repository()?.join("dashboards");
    fs::create_dir_all(&folder)?;
    for dashboard in all() {
        let file = folder.join(dashboard.file());
        fs::write(&file, text(&dashboard)?).with_context(|| file.display().to_string())?;
        println!("{}: {} panels", file.display(), dashboard.panels());
    }
    Ok(())
}

fn text(dashboard: &Dashboard) -> Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(&dashboard.json())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_dashboards_are_the_generated_ones() {
        for dashboard in all() {
            let file = repository().unwrap().join("dashboards").join(dashboard.file());
            let found = fs::read_to_string(&file).unwrap_or_default();
            let wanted = text(&dashboard).unwrap();
            assert!(found == wanted, "{} differs: run `cargo xtask dashboards`", file.display());
        }
    }

    #[test]
    fn the_fleet_has_the_sixteen_panels_and_the_variables() {
        let json = fleet::dashboard().json();
        let panels = json["panels"].as_array().unwrap();
        let numbered = panels.iter().filter_map(|panel| panel["title"].as_str());
        for (title, number) in SEED.iter().zip(1..) {
            let wanted = format!("{number}. {title}");
            assert!(numbered.clone().any(|title| title == wanted), "no panel {wanted}");
        }
        let variables = json["templating"]["list"].as_array().unwrap();
        for name in ["datasource", "namespace", "node", "freecad_version", "occt_version", "flow_type"] {
            assert!(variables.iter().any(|variable| variable["name"] == name), "no variable {name}");
        }
    }

    /// The panels that were promised.
    const SEED: [&str; 16] = [
        "Model generation success rate",
        "P95 latencies",
        "Active flows",
        "AI provider performance",
        "Document operations",
        "OCCT operations",
        "OCCT memory usage",
        "Assembly solver",
        "LCS resolution",
        "Material library",
        "Material application",
        "Topology hash",
        "Export validation",
        "Export duration",
        "Workbench usage",
        "Worker resources",
    ];

    #[test]
    fn every_panel_says_what_it_shows_and_lies_on_the_grid() {
        for dashboard in all() {
            let json = dashboard.json();
            let mut cells = std::collections::BTreeSet::new();
            for panel in json["panels"].as_array().unwrap() {
                let title = panel["title"].as_str().unwrap();
                let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
                assert!(place("x") + place("w") <= 24, "{title}");
                for x in place("x")..place("x") + place("w") {
                    for y in place("y")..place("y") + place("h") {
                        assert!(cells.insert((x, y)), "{title} lies on another panel");
                    }
                }
                if panel["type"] != "row" {
                    assert!(panel["description"].as_str().unwrap().len() > 20, "{title} has no description");
                    assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
                }
            }
        }
    }
}
