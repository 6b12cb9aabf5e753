//! `serve-metrics`: the metrics of a store over HTTP, for Prometheus.
//!
//! Invariants: one thread answers, and waits for nobody: who sends nothing has a task of its own, which ends after [`FIRST`],
//! and who sends slowly, or reads nothing, one that ends after [`PATIENCE`]; there are at most [`CONNECTIONS`] of these, and whoever comes then waits until one ends; a
//! request is read up to [`REQUEST`] bytes. Nothing but `GET /metrics` is answered with more than a line, and nothing that
//! a client sends changes anything.

use crate::failure::{Failure, OK, Outcome};
use crate::interrupt;
use crate::options::OpenArgs;
use crate::show;
use clap::Args;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use thermocline::{Cache, metrics};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at a time. Prometheus needs one.
const CONNECTIONS: usize = 64;
/// How long one may take, from its first byte to its last: as long as Prometheus waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one may take until its first byte: who asks has the question ready, and who only takes a place gives it back soon.
const FIRST: Duration = Duration::from_secs(2);
/// Bytes of a request. The least that hyper can be told.
const REQUEST: usize = 8 << 10;
/// How soon a signal is seen.
const LOOK: Duration = Duration::from_millis(100);
/// After a connection could not be taken, because there were too many open files, say.
const REST: Duration = Duration::from_millis(100);

/// The options of `serve-metrics`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// PORT alone is of this machine's loopback address; port 0: any that is free. HOST:PORT, [::1]:PORT and
    /// 0.0.0.0:PORT (everybody) as usual
    #[arg(value_name = "ADDR", value_parser = address)]
    address: Address,
    #[command(flatten)]
    store: OpenArgs,
}

/// Where to listen, as it was given and as what that stands for.
#[derive(Debug, Clone)]
struct Address {
    given: String,
    found: Vec<SocketAddr>,
}

fn address(text: &str) -> Result<Address, String> {
    let wrong = "name a port, as in 9100, or an address and a port, as in 0.0.0.0:9100 or [::1]:9100";
    let port = text.strip_prefix(':').unwrap_or(text);
    let whole = if port.parse::<u16>().is_ok() { format!("127.0.0.1:{port}") } else { text.to_owned() };
    let found: Vec<SocketAddr> = match whole.to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Err(wrong.into()),
        Err(e) => return Err(format!("{e}: {wrong}")),
    };
    if found.is_empty() { Err(wrong.into()) } else { Ok(Address { given: text.to_owned(), found }) }
}

/// Serves until a signal comes.
pub fn serve(args: &ServeArgs, json: bool) -> Outcome {
    interrupt::watch("and the store is not closed: what was not written yet is lost")?;
    // Before the store is opened: an address that cannot be had costs nothing then.
    let listener = listen(&args.address)?;
    let at = listener.local_addr().map_err(|e| refused(&args.address, &e))?;
    let cache = args.store.open_to_serve()?;
    let url = format!("http://{at}/metrics");
    let served = match json {
        true => show::json(&json!({ "url": url })),
        false => show::text(&format!("serving {url} until Ctrl-C or SIGTERM; the store is closed then\n")),
    }
    .and_then(|()| match at.ip().is_loopback() {
        true => Ok(()),
        false => show::note(&format!(
            "whoever reaches {at} can read the metrics, the paths of the store's directories among them: there is no \
             password and no encryption"
        )),
    })
    .and_then(|()| run(listener, &cache));
    cache.close()?;
    served.map(|()| OK)
}

fn listen(address: &Address) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(&address.found[..]).map_err(|e| refused(address, &e))?;
    listener.set_nonblocking(true).map_err(|e| refused(address, &e))?;
    Ok(listener)
}

fn refused(address: &Address, e: &io::Error) -> Failure {
    let given = &address.given;
    match e.kind() {
        io::ErrorKind::AddrInUse => Failure::usage(format!(
            "{given}: another program listens there: name another port (0: any that is free), or end that program; `ss \
             -ltnp` says which it is"
        )),
        io::ErrorKind::PermissionDenied => Failure::usage(format!(
            "{given}: permission denied: ports below 1024 are the administrator's: name one from 1024 to 65535"
        )),
        io::ErrorKind::AddrNotAvailable => Failure::usage(format!(
            "{given}: this machine does not have the address: 127.0.0.1 is the machine itself, 0.0.0.0 all of its \
             addresses; `ip address` lists them"
        )),
        _ => Failure::failed(format!("listen on {given}: {e}")),
    }
}

fn run(listener: TcpListener, cache: &Cache) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::failed(format!("serve metrics: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    // What is still under way when this ends is dropped with the runtime.
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        while !interrupt::stopped() {
            let Ok(Ok(place)) = timeout(LOOK, places.clone().acquire_owned()).await else { continue };
            match timeout(LOOK, listener.accept()).await {
                Ok(Ok((stream, _))) => {
                    let cache = cache.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        // Who went away or was too slow is told nothing, and comes again.
                        let _ = timeout(PATIENCE, answer(stream, cache)).await;
                    });
                }
                Ok(Err(_)) => tokio::time::sleep(REST).await,
                Err(_) => {}
            }
        }
        Ok(())
    })
}

/// One connection, of one request.
async fn answer(stream: TcpStream, cache: Cache) -> hyper::Result<()> {
    if timeout(FIRST, stream.peek(&mut [0])).await.is_err() {
        return Ok(());
    }
    let service = service_fn(move |request| {
        let response = respond(&request, &cache);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(REQUEST);
    http.serve_connection(TokioIo::new(stream), service).await
}

fn respond<B>(request: &Request<B>, cache: &Cache) -> Response<String> {
    let (status, media_type, body) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => {
            (StatusCode::OK, metrics::CONTENT_TYPE, cache.prometheus())
        }
        ("/metrics", _) => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "ask with GET\n".to_owned()),
        _ => (
            StatusCode::NOT_FOUND,
            PLAIN,
            "the metrics are at /metrics, and nothing else is here\n".to_owned(),
        ),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(media_type));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    }
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_of_the_loopback_address() {
        let found = |text| address(text).map(|a| a.found.iter().map(ToString::to_string).collect::<Vec<_>>());
        for text in ["9100", ":9100", "127.0.0.1:9100"] {
            assert_eq!(found(text), Ok(vec!["127.0.0.1:9100".to_owned()]), "{text}");
        }
        assert_eq!(found("0.0.0.0:0"), Ok(vec!["0.0.0.0:0".to_owned()]));
        assert_eq!(found("[::1]:9100"), Ok(vec!["[::1]:9100".to_owned()]));
        for text in ["", ":", "70000", "127.0.0.1", "127.0.0.1:", "::1"] {
            assert!(found(text).is_err_and(|e| e.contains("name a port")), "{text}: {:?}", found(text));
        }
    }
}
