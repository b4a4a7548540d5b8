//! Afterwrite: continuous protection of Linux block volumes without a kernel module.
//!
//! The way of the data and the rules between modules are in ARCHITECTURE.md; the formats in docs/FORMAT.md.

pub mod apply;
#[cfg(feature = "capture")]
pub mod capture;
pub mod cli;
#[cfg(feature = "capture")]
pub mod collect;
pub mod filemap;
pub mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod io;
pub mod journal;
pub mod model;
#[cfg(feature = "capture")]
pub mod origin;
pub mod restore;
#[cfg(feature = "capture")]
pub mod service;
pub mod target;
pub mod tree;
#[cfg(feature = "capture")]
pub mod web;
