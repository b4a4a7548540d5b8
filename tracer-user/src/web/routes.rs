//! Which path gives what. Everything is read with GET; nothing takes a body.

use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;

use crate::io::clock::realtime;
use crate::model::Timestamp;
use crate::service::{GroupSeen, Seen};
use crate::web::metrics;
use crate::web::state::State;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// Only what comes from here, and none of it in line.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Answer = Response<Full<Bytes>>;

/// `GET /api/status`.
#[derive(Serialize)]
struct StatusAnswer<'a> {
    version: &'static str,
    /// The clock that the times of marks and writes are by.
    now: Timestamp,
    volumes: &'a [Seen],
    groups: &'a [GroupSeen],
}

pub(super) async fn answer(request: &Request<Incoming>, state: &Arc<State>) -> Answer {
    let (path, query) = (request.uri().path(), request.uri().query());
    let mut answer = route(path, query, state).await;
    // What is not there is not there for any method.
    if answer.status() != StatusCode::NOT_FOUND && !matches!(*request.method(), Method::GET | Method::HEAD) {
        answer = failed(StatusCode::METHOD_NOT_ALLOWED, "read-only: use GET");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    let headers = answer.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    answer
}

async fn route(path: &str, query: Option<&str>, state: &Arc<State>) -> Answer {
    match path {
        "/" => said(StatusCode::OK, HTML, PAGE),
        "/page.css" => said(StatusCode::OK, CSS, STYLE),
        "/page.js" => said(StatusCode::OK, JAVASCRIPT, SCRIPT),
        "/metrics" => match metrics::encode(&*state.seen().await) {
            Ok(text) => said(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        "/api/status" => {
            let seen = state.seen().await;
            json(&StatusAnswer {
                version: env!("CARGO_PKG_VERSION"),
                now: realtime(),
                volumes: &seen.volumes,
                groups: &seen.groups,
            })
        }
        _ => match path.strip_prefix("/api/volumes/").and_then(|rest| rest.strip_suffix("/points")) {
            Some(name) => points(name, query, state).await,
            None => failed(
                StatusCode::NOT_FOUND,
                "there is /, /api/status, /api/volumes/NAME/points and /metrics",
            ),
        },
    }
}

/// Of `?last=N` the last N.
async fn points(name: &str, query: Option<&str>, state: &Arc<State>) -> Answer {
    let last = match query.map(|query| query.strip_prefix("last=").map(str::parse::<usize>)) {
        None => None,
        Some(Some(Ok(count))) => Some(count),
        Some(_) => return failed(StatusCode::BAD_REQUEST, "the query is ?last=N or nothing"),
    };
    let name = percent_decode_str(name).decode_utf8_lossy();
    let survey = state.seen().await;
    let seen = &survey.volumes;
    // A name is only ever looked up among those that are there.
    let Some(volume) = seen.iter().find(|seen| seen.name == name) else {
        return failed(StatusCode::NOT_FOUND, "no volume of that name; /api/status has those there are");
    };
    state.timelines.keep(&seen.iter().map(|seen| seen.name.as_str()).collect::<Vec<_>>());
    let Some(status) = volume.status.as_ref().filter(|status| !status.journal.is_empty()) else {
        return failed(
            StatusCode::SERVICE_UNAVAILABLE,
            "no process says where its journal is; `afterwrite points JOURNAL` reads it",
        );
    };
    let newest = status.last_mark.as_ref().map(|mark| mark.id);
    match state.timelines.of(&volume.name, status.journal.as_str().into(), newest).await {
        Ok(listing) => match last {
            Some(count) if count < listing.points.len() => {
                let mut listing = (*listing).clone();
                listing.keep_last(count);
                json(&listing)
            }
            _ => json(&*listing),
        },
        Err(why) => failed(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => said(StatusCode::OK, JSON, bytes),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn failed(status: StatusCode, why: &str) -> Answer {
    said(status, TEXT, format!("{why}\n"))
}

fn said(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
