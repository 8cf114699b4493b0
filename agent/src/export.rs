//! Turns operations into what monitoring reads: [`metrics`] keeps the series, [`exposition`] writes them, [`http`] serves them.

pub mod exposition;
pub mod http;
pub mod metrics;
