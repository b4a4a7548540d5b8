use std::net::{SocketAddr, TcpListener};

use anyhow::Context;
use clap::Args;

use crate::cli::{Outcome, say};
use crate::{service, web};

/// Show the protected volumes over HTTP: a page, the status as JSON, metrics for Prometheus. Nothing can be changed there
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  afterwrite serve\n  afterwrite serve --listen 127.0.0.1:9184   # then http://127.0.0.1:9184/ and …/metrics"
)]
pub struct ServeArgs {
    /// Where to listen. Whoever reaches it can read; there is no password
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9184")]
    listen: SocketAddr,

    /// End when standard input does, too: for `run`, which holds the other end
    #[arg(long, hide = true)]
    until_eof: bool,
}

/// Until Ctrl-C.
pub fn run(args: &ServeArgs) -> anyhow::Result<Outcome> {
    let listener = TcpListener::bind(args.listen)
        .with_context(|| format!("cannot listen on {}; name another --listen", args.listen))?;
    service::give_up_privileges()?;
    let address = listener.local_addr().context("the address that is listened on can't be told")?;
    if !address.ip().is_loopback() {
        say(
            "afterwrite: not only this machine can reach it, and whoever does can read names, paths and labels",
        );
    }
    say(&format!("serving http://{address}/"));
    web::run(listener, service::run_dir(), args.until_eof).context("serving ended")?;
    Ok(Outcome::Done)
}
