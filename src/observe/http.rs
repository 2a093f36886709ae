//! `/metrics` and `/healthz` over HTTP, for monitoring on the same host.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::health::Health;
use super::metrics::{self, Metrics};
use super::relay::Relay;
use super::stall::Stalled;
use crate::telemetry::{Observed, Sample};
use crate::{failpoint, open_files};

/// Connections at the same time; further ones wait to be accepted.
const CONNECTIONS: usize = 16;

/// For the head of a request, and for everything.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Of a request's head. hyper takes no less.
const LONGEST_HEAD: usize = 8192;

/// A port that answers.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
}

impl Server {
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("[monitor] listen = \"{address}\" cannot be had: choose a free port of an address of this host")
        })?;
        Ok(Self { listener })
    }

    /// Where it listens; of interest when port 0 was asked for.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until it is dropped.
    pub async fn serve(self, dispatcher: impl Observed, metrics: Arc<Metrics>, health: watch::Receiver<Health>) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (dispatcher, metrics, health) = (dispatcher.clone(), metrics.clone(), health.clone());
                    tokio::spawn(async move {
                        // Whoever asks and does not wait for the answer is nobody's trouble.
                        let _ = tokio::time::timeout(TIMEOUT, converse(stream, dispatcher, metrics, health)).await;
                        drop(place);
                    });
                }
                Err(error) if open_files::is_limit(&error) => {
                    dispatcher.out_of_files();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => {
                    tracing::warn!(target: "mailqueue::monitor", %error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

async fn converse(
    stream: TcpStream,
    dispatcher: impl Observed,
    metrics: Arc<Metrics>,
    health: watch::Receiver<Health>,
) -> Result<(), hyper::Error> {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, &dispatcher.sample(), &metrics, health.borrow().stalled);
        async move { Ok::<_, Infallible>(answer) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(LONGEST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(
    request: &Request<Incoming>,
    sample: &Sample,
    metrics: &Metrics,
    stalled: Option<Stalled>,
) -> Response<Full<Bytes>> {
    failpoint::hit("in-http");
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        answer.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match request.uri().path() {
        "/metrics" => match metrics.text(sample, stalled) {
            Ok(body) => reply(StatusCode::OK, metrics::CONTENT_TYPE, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/healthz" => healthz(sample, stalled),
        _ => text(StatusCode::NOT_FOUND, "/metrics and /healthz are here\n"),
    }
}

/// What `/healthz` says, on a line.
#[derive(Serialize)]
struct Healthz<'a> {
    /// `ok` or `trouble`.
    status: &'static str,
    /// A sentence each.
    reasons: &'a [String],
    relay: &'static str,
    last_poll: Option<Timestamp>,
    last_accepted: Option<Timestamp>,
}

/// Returns 200 while the loops make progress, databases and relay do what they should, and mails that wait are sent. An
/// operator's pause is no trouble.
fn healthz(sample: &Sample, stalled: Option<Stalled>) -> Response<Full<Bytes>> {
    let mut reasons = sample.troubles();
    reasons.extend(stalled.map(|stalled| stalled.sentence(Timestamp::now())));
    let (code, status) =
        if reasons.is_empty() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "trouble") };
    let line = Healthz {
        status,
        reasons: &reasons,
        relay: Relay::of(sample).state.as_str(),
        last_poll: sample.last_poll,
        last_accepted: sample.last_accepted,
    };
    match serde_json::to_vec(&line) {
        Ok(mut body) => {
            body.push(b'\n');
            reply(code, "application/json", body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(code: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    reply(code, "text/plain; charset=utf-8", body.into().into_bytes())
}

fn reply(code: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}
