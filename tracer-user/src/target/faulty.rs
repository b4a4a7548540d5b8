//! A disk for tests that fails on command and forgets what was not synced.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::model::ByteRange;
use crate::target::medium::Medium;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Eio,
    NoSpace,
    /// The machine stops: this operation and all later ones fail.
    Crash,
}

/// Clones share the disk.
#[derive(Clone)]
pub(crate) struct FaultyDisk(Arc<Mutex<State>>);

struct State {
    durable: Vec<u8>,
    /// In order, since the last sync. `None` is zeros.
    pending: Vec<(u64, Vec<u8>)>,
    volatile: Vec<u8>,
    machine: Machine,
}

/// What counts the operations of all disks of a machine and says which fails. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Machine(Arc<Mutex<Operations>>);

#[derive(Default)]
struct Operations {
    /// Writes, zeroings and syncs so far.
    ops: usize,
    fault: Option<(usize, Fault)>,
}

impl Machine {
    pub(crate) fn fail_at(&self, op: usize, fault: Fault) {
        self.0.lock().unwrap().fault = Some((op, fault));
    }

    pub(crate) fn ops(&self) -> usize {
        self.0.lock().unwrap().ops
    }

    /// Counts an operation; an error if it fails.
    pub(crate) fn step(&self) -> io::Result<()> {
        let mut operations = self.0.lock().unwrap();
        let op = operations.ops;
        operations.ops += 1;
        match operations.fault {
            Some((at, Fault::Eio)) if at == op => Err(io::Error::from_raw_os_error(libc::EIO)),
            Some((at, Fault::NoSpace)) if at == op => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Some((at, Fault::Crash)) if at <= op => Err(io::Error::other("the machine has stopped")),
            _ => Ok(()),
        }
    }

    fn is_failing(&self) -> bool {
        let operations = self.0.lock().unwrap();
        operations.fault.is_some_and(|(at, _)| at + 1 == operations.ops)
    }
}

impl FaultyDisk {
    /// Starts with bytes that are not zero, so that what is never written shows.
    pub(crate) fn new(size_bytes: usize) -> FaultyDisk {
        FaultyDisk::holding(vec![0xee; size_bytes])
    }

    pub(crate) fn holding(bytes: Vec<u8>) -> FaultyDisk {
        FaultyDisk::of(&Machine::default(), bytes)
    }

    /// One of several disks of a machine.
    pub(crate) fn of(machine: &Machine, bytes: Vec<u8>) -> FaultyDisk {
        let volatile = bytes.clone();
        FaultyDisk(Arc::new(Mutex::new(State {
            durable: bytes,
            pending: Vec::new(),
            volatile,
            machine: machine.clone(),
        })))
    }

    pub(crate) fn fail_at(&self, op: usize, fault: Fault) {
        self.state().machine.fail_at(op, fault);
    }

    pub(crate) fn ops(&self) -> usize {
        self.state().machine.ops()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().volatile.clone()
    }

    /// What a power cut leaves: all that was synced, and of each later write the whole, half, or nothing, as the bits
    /// of `keep` say (two a write).
    pub(crate) fn after_power_cut(&self, keep: u64) -> Vec<u8> {
        let state = self.state();
        let mut bytes = state.durable.clone();
        for (number, (start, data)) in state.pending.iter().enumerate() {
            let kept = match (keep >> (2 * (number % 32))) & 3 {
                0 => 0,
                1 => data.len() / 2,
                _ => data.len(),
            };
            let start = *start as usize;
            bytes[start..start + kept].copy_from_slice(&data[..kept]);
        }
        bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn change(&mut self, start: u64, bytes: Vec<u8>) -> io::Result<()> {
        let done = self.machine.step();
        let at = start as usize;
        if done.is_ok() {
            self.volatile[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        // A write that failed may have reached the disk in part.
        if done.is_ok() || self.machine.is_failing() {
            self.pending.push((start, bytes));
        }
        done
    }
}

impl Medium for FaultyDisk {
    fn write_at(&mut self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.state().change(start, bytes.to_vec())
    }

    fn zero(&mut self, range: ByteRange, _discard: bool) -> io::Result<()> {
        self.state().change(range.start, vec![0; range.len() as usize])
    }

    fn read_at(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        let start = start as usize;
        bytes.copy_from_slice(&self.state().volatile[start..start + bytes.len()]);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state();
        state.machine.step()?;
        state.durable = state.volatile.clone();
        state.pending.clear();
        Ok(())
    }
}
