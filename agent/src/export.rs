//! Turns operations into what monitoring reads: [`metrics`] keeps the series, [`exposition`] writes them, [`http`] serves
//! them; [`spans`] makes spans, [`otlp`] sends them, [`traces`] joins the two.

pub mod exposition;
pub mod http;
pub mod metrics;
pub mod otlp;
pub mod spans;
pub mod traces;
