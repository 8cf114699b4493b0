//! Turns `GET /progress?job_id=…` into a stream of server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Bytes, Frame};
use tokio::sync::mpsc;

use super::hub::{CLIENTS, Filter, Hub, Place};

/// What the stream begins with: a client that lost it asks again after two seconds.
const GREETING: &[u8] = b": progress of jobs, see docs/progress.md\nretry: 2000\n\n";

/// Parameters of the request.
#[derive(Debug, Default, serde::Deserialize)]
pub struct Asked {
    job_id: Option<String>,
    request_id: Option<String>,
    pid: Option<String>,
}

/// The body of an answer, which ends with its listener.
#[derive(Debug)]
struct Events {
    greeting: Option<Bytes>,
    events: mpsc::Receiver<Bytes>,
    _place: Place,
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(greeting) = self.greeting.take() {
            return Poll::Ready(Some(Ok(Frame::data(greeting))));
        }
        self.events.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

/// The answer.
#[must_use]
pub fn answer(hub: &Arc<Hub>, asked: Asked) -> Response {
    let pid = match asked.pid.map(|pid| pid.parse::<u32>()).transpose() {
        Ok(pid) => pid,
        Err(_) => return (StatusCode::BAD_REQUEST, "pid is the number of a process\n").into_response(),
    };
    let filter = Filter { job_id: asked.job_id, request_id: asked.request_id, pid };
    let Some((events, place)) = hub.client(filter) else {
        let text = format!("{CLIENTS} clients listen already; ask again later\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let events = Events { greeting: Some(Bytes::from_static(GREETING)), events, _place: place };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, Body::new(events)).into_response()
}
