//! Connections: how many, how long, how large a request may be.

use std::convert::Infallible;
use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use crate::web::routes::answer;
use crate::web::state::State;

/// Who comes beyond waits.
const CONNECTIONS_MAX: usize = 64;
/// To send a request; also how long a connection may rest between two.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// After which a connection is closed as soon as it rests …
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// … and this much later in any case.
const LAST_ANSWER_TIME: Duration = Duration::from_secs(10);
/// Of a request's line and headers together; hyper answers a longer one with 431 or 414.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// When the process has no descriptors left, say.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// That read journals, and one that waits for the end of standard input.
const BLOCKING_THREADS: usize = 5;

/// Serves until SIGINT, SIGTERM or SIGHUP; or until standard input ends, if that is wanted.
///
/// # Errors
/// The listener or the signals can't be used.
pub fn run(listener: TcpListener, run_dir: PathBuf, until_eof: bool) -> std::io::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    let result = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let told = async move {
            tokio::select! {
                () = end_of_input(), if until_eof => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        };
        serve(listener, run_dir, told).await
    });
    // A journal on a disk that hangs is not waited for.
    runtime.shutdown_background();
    result
}

async fn end_of_input() {
    let read = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    // One that can't be read has ended, too.
    let _ = tokio::task::spawn_blocking(read).await;
}

/// Serves until `shutdown` is there.
async fn serve(
    listener: TcpListener,
    run_dir: PathBuf,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let state = Arc::new(State::new(run_dir));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            let permit = connections.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            (permit, accepted) = accepted => match accepted {
                Ok((stream, _)) => {
                    let state = state.clone();
                    tokio::spawn(async move {
                        converse(stream, state).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    log::warn!("a connection could not be accepted: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
}

async fn converse(stream: TcpStream, state: Arc<State>) {
    let answers = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(answer(&request, &state).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), answers);
    let mut connection = pin!(connection);
    // Whatever goes wrong with one connection is its own affair, and hyper has said so to the other end if it could.
    if tokio::time::timeout(CONNECTION_TIME, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER_TIME, connection).await;
    }
}
