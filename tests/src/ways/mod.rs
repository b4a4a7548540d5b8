//! Every way to change a file or a name there is, and which rung of the file probes sees it how well. The table in
//! docs/OPERATIONS.md is made of this, and the program `ways` holds each rung to it.

pub mod content;
pub mod names;
pub mod system;
mod watched;

pub use watched::{Event, Watched, best};

use anyhow::Result;

use crate::ways::system::Dir;

/// How much an event says of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Operation, file, range and process, before it is done.
    Full,
    /// That pages of the file were changed, of those that were clean before.
    Pages,
    /// Nothing.
    None,
}

impl Sight {
    pub fn in_words(self) -> &'static str {
        match self {
            Sight::Full => "yes",
            Sight::Pages => "clean pages",
            Sight::None => "**no**",
        }
    }
}

/// What an event must say of a way.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    pub op: &'static str,
    /// 0: none is expected.
    pub inode: u64,
    /// Below the directory of the ways.
    pub path: String,
    pub new_path: Option<String>,
    /// Only where the operation has a range.
    pub range: Option<(u64, u64)>,
}

pub struct Way {
    pub name: &'static str,
    /// Makes what it needs, and returns what does it.
    pub prepare: fn(&Dir) -> Result<Act>,
    /// On the rungs fentry and kprobe, and on the rung syscall.
    pub functions: Sight,
    pub calls: Sight,
}

impl Way {
    /// On this rung, of a kernel that lacks these hooks.
    pub fn wanted(&self, rung: &str, absent: &[String]) -> Sight {
        let direct = self.name == "io_uring write, direct";
        match rung {
            "syscall" if direct && absent.iter().any(|hook| hook == "iomap_dio_rw_begin") => Sight::None,
            "syscall" => self.calls,
            _ => self.functions,
        }
    }
}

/// Does it. `None`: this file system or kernel does not have it.
pub type Act = Box<dyn FnOnce() -> Result<Option<Expected>>>;

pub fn all() -> Vec<Way> {
    let mut ways = content::ways();
    ways.extend(names::ways());
    ways
}

/// The table of docs/OPERATIONS.md.
pub fn table() -> String {
    let mut text = String::from("| Way | `fentry`, `kprobe` | `syscall` |\n|---|---|---|\n");
    for way in all() {
        let (functions, calls) = (way.functions.in_words(), way.calls.in_words());
        text += &format!("| {} | {functions} | {calls} |\n", way.name);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_in_the_manual_is_that_of_the_ways() {
        let manual =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md")).unwrap();
        assert!(manual.contains(&super::table()), "docs/OPERATIONS.md should have:\n{}", super::table());
    }
}
