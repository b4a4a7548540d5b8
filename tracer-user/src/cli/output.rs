use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;

/// Where the result of a command goes. When the reader of a pipe has gone (`| head`), that is not an error: what is
/// written is dropped, and the exit code stays what it is.
pub struct Output {
    stream: BufWriter<Box<dyn Write>>,
    closed: bool,
}

impl Output {
    pub fn stdout() -> Output {
        Output::to(Box::new(io::stdout()))
    }

    fn to(stream: Box<dyn Write>) -> Output {
        Output { stream: BufWriter::with_capacity(64 << 10, stream), closed: false }
    }

    /// Writes one line.
    pub fn line(&mut self, line: impl Display) -> anyhow::Result<()> {
        let done = writeln!(self.stream, "{line}");
        self.done(done)
    }

    /// Writes one line of JSON.
    pub fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(serde_json::to_string(value).context("cannot make JSON of the result")?)
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let done = self.stream.write_all(bytes);
        self.done(done)
    }

    /// Nobody reads any more: a long listing may end.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Everything is written when this returns.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        let done = self.stream.flush();
        self.done(done)
    }

    fn done(&mut self, done: io::Result<()>) -> anyhow::Result<()> {
        match done {
            _ if self.closed => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            done => done.context("cannot write the result to standard output"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
        let mut out = Output::to(Box::new(Fails(ErrorKind::BrokenPipe)));
        out.line("gone").unwrap();
        out.finish().unwrap();
        assert!(out.is_closed());
        out.line("and on").unwrap();
        let mut out = Output::to(Box::new(Fails(ErrorKind::StorageFull)));
        out.line("lost").unwrap();
        out.finish().unwrap_err();
    }
}
