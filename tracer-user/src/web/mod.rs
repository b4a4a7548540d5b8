//! What can be seen of the protections over HTTP, and nothing that changes them: a page, the status as JSON, metrics for
//! Prometheus. All of it comes from the control sockets and, for points, from the journals, which are only read.

mod metrics;
mod points;
mod routes;
mod server;
mod state;
#[cfg(test)]
mod tests;

pub use server::run;
