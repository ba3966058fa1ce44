//! What is answered to whom.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;

use crate::health::{Answer, Health};
use crate::metrics::{self, Metrics};
use crate::object::Name;

/// How many ready backends of a Service are behind this node, for balancers that weigh.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Who answers at a port.
#[derive(Clone, Debug)]
pub(super) enum Endpoint {
    /// `/healthz` and `/livez`.
    Health(Arc<Health>),
    /// A Service's `healthCheckNodePort`, whatever the path.
    Service(Arc<Health>, Name),
    /// `/metrics`.
    Metrics(Arc<Metrics>),
}

impl Endpoint {
    /// Answers a request.
    pub async fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match self {
            Self::Health(health) => {
                let (now, clock) = (Instant::now(), SystemTime::now());
                match path {
                    "/healthz" => of_health(&health.healthz(now, clock)),
                    "/livez" => of_health(&health.livez(now, clock)),
                    _ => response(StatusCode::NOT_FOUND, PLAIN, "/healthz and /livez are here\n"),
                }
            }
            Self::Service(health, name) => match health.service(name, Instant::now()) {
                Some(answer) => of_health(&answer),
                None => response(StatusCode::NOT_FOUND, PLAIN, "the Service is gone\n"),
            },
            Self::Metrics(metrics) if path == "/metrics" => scrape(metrics.clone()).await,
            Self::Metrics(_) => response(StatusCode::NOT_FOUND, PLAIN, "/metrics is here\n"),
        }
    }
}

/// Reading the maps takes its time: it must not keep health checks waiting.
async fn scrape(metrics: Arc<Metrics>) -> Response<Full<Bytes>> {
    let text = tokio::task::spawn_blocking(move || metrics.text()).await;
    match text.map_err(anyhow::Error::from).and_then(|text| text) {
        Ok(text) => response(StatusCode::OK, metrics::CONTENT_TYPE, text),
        Err(error) => {
            tracing::warn!("metrics cannot be told: {error:#}");
            response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error:#}\n"))
        }
    }
}

fn of_health(answer: &Answer) -> Response<Full<Bytes>> {
    let status = if answer.is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = response(status, JSON, format!("{}\n", answer.body));
    if let Some(weight) = answer.weight {
        response.headers_mut().insert(WEIGHT, HeaderValue::from(weight));
    }
    response
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
