//! Every developer command of cadscope. `cargo xtask --help` lists them.
fn main() {}
