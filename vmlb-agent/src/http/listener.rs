//! One port: bound as soon as it is free, and served.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Board;
use super::answer::Endpoint;

/// Between two tries at a port that is taken.
const RETRY: Duration = Duration::from_secs(5);
/// After a connection that could not be accepted: what is short (descriptors, memory) needs a moment.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections of one port at a time; others wait in the kernel.
const CONNECTIONS: usize = 512;
/// Until a client has sent its request: those that send none must not keep probes out.
const REQUEST: Duration = Duration::from_secs(2);
/// For a connection as a whole.
const CONNECTION: Duration = Duration::from_secs(30);
/// Octets of a request's head, the least that hyper takes.
const BUFFER: usize = 8192;

/// Serves a port for as long as this is polled.
pub(super) async fn keep(board: Board, purpose: String, address: SocketAddr, endpoint: Endpoint) {
    let mut told: Option<String> = None;
    loop {
        match bind(address).await {
            Ok(listener) => {
                board.set(&purpose, Some(address), None);
                if told.is_some() {
                    tracing::info!("{purpose}: {address} is answered now");
                }
                serve(listener, endpoint).await;
                return;
            }
            Err(error) => {
                let message = match error.kind() {
                    io::ErrorKind::AddrInUse => "the port is taken by another process".to_owned(),
                    _ => error.to_string(),
                };
                if told.as_ref() != Some(&message) {
                    tracing::warn!(
                        "{purpose}: nobody is answered at {address}: {message}; tried again every {} s",
                        RETRY.as_secs()
                    );
                    board.set(&purpose, Some(address), Some(message.clone()));
                    told = Some(message);
                }
            }
        }
        sleep(RETRY).await;
    }
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        // A node without IPv6.
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port())).await
        }
        bound => bound,
    }
}

async fn serve(listener: TcpListener, endpoint: Endpoint) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed, so it is always had in the end.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let endpoint = endpoint.clone();
                tokio::spawn(async move {
                    // A client that stalls or breaks off is its own affair.
                    let _cut = timeout(CONNECTION, converse(stream, endpoint)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!("a connection could not be accepted: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, endpoint: Endpoint) -> Result<(), hyper::Error> {
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let endpoint = endpoint.clone();
        async move { Ok::<_, Infallible>(endpoint.answer(request.method(), request.uri().path()).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}
