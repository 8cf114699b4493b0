//! Harness for the tests that need root: builds the torture worker, runs cadscope, reads its answers.
//!
//! One file under `tests/` for each promise to the user; run them with
//! `cargo test -p cadscope-tests -- --test-threads=1` as root, after `cargo xtask build --release`.
//! They share one machine's probes and its clock, so they hold a lock and run one after the other.
//!
//! | variable | meaning |
//! |---|---|
//! | `CADSCOPE_BIN` | the program under test, instead of `target/release/cadscope` |
//! | `CADSCOPE_FULL=1` | the long form: 1,000 torture runs, 100 kills |
//! | `CADSCOPE_ONLY=a,b` | only these torture scenarios or variants |

pub mod agent;
pub mod browser;
pub mod builds;
pub mod cgroup;
pub mod chart;
pub mod collector;
pub mod compare;
pub mod dashboard;
pub mod document;
pub mod freecad;
pub mod hot;
pub mod independent;
pub mod kubernetes;
pub mod metrics;
pub mod network;
pub mod node;
pub mod pod;
pub mod podman;
pub mod privileges;
pub mod prometheus;
pub mod record;
pub mod reliability;
pub mod residue;
pub mod run;
pub mod terminal;
pub mod trace;
pub mod wall_clock;
pub mod worker;
