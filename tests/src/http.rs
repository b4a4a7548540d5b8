use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};

use crate::PATIENCE;

/// Status and body that `serve` answers to whatever is sent.
pub fn http(address: &str, request: &[u8]) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // It may answer and close before it has all.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer: {text}"))?;
    ensure!(head.contains("no-store") || status == Some(431) || status == Some(400), "{head}");
    Ok((status.with_context(|| head.to_owned())?, body.to_owned()))
}

pub fn http_ask(address: &str, method: &str, path: &str) -> Result<(u16, String)> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    http(address, request.as_bytes())
}

/// The body; an error for any status but 200.
pub fn http_get(address: &str, path: &str) -> Result<String> {
    let (status, body) = http_ask(address, "GET", path)?;
    ensure!(status == 200, "{path}: {status} {body}");
    Ok(body)
}
