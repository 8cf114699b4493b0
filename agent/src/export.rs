//! Turns operations into what monitoring reads: [`metrics`] keeps the series, [`exposition`] writes them, [`http`] serves
//! them; [`spans`] makes spans (with the labels that [`pods`] asks for), [`otlp`] sends them, [`traces`] joins the two; [`progress`] tells who waits for a job.

pub mod exposition;
pub mod metrics;
pub mod otlp;
pub mod progress;
pub mod http;
pub mod pods;
pub mod spans;
pub mod traces;
