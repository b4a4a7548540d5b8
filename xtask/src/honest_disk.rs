//! A disk with a cache that a power cut empties, for a virtual machine that is to lose its power.
//!
//! Killing QEMU alone is too kind. With `cache=unsafe` its flushes do nothing; with `writeback` or `none` they do, but
//! every write that QEMU has handed to the host stays, flushed or not, for the host goes on. Only what was in the guest's own
//! memory would be lost. A real disk also loses what is in its cache: writes it has acknowledged and was not told to
//! flush. So QEMU gets these disks by the NBD protocol from a server in this process, with `cache=writeback` (the guest
//! sees a disk with a cache and flushes it). The server keeps what each 4 KiB block held at the last flush, and a cut
//! puts that back for none, all, or any of the blocks written since: a disk writes its cache back in any order.
//! Blocks are not torn, as on disks with physical sectors of 4 KiB.
//!
//! The protocol: github.com/NetworkBlockDevice/nbd, doc/proto.md; fixed newstyle handshake, simple replies.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use fastrand::Rng;

const BLOCK_BYTES: usize = 4096;
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// QEMU asks for at most 32 MiB at a time.
const REQUEST_BYTES_MAX: u32 = 64 << 20;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, no padding.
const HANDSHAKE_FLAGS: u16 = 3;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
/// It takes flushes, trims and write-zeroes. Without FUA, QEMU makes a write and a flush of it.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 5 | 1 << 6;

/// A disk being served.
pub struct HonestDisk {
    socket: PathBuf,
    ended: Arc<AtomicBool>,
    server: JoinHandle<Result<Cached>>,
}

impl HonestDisk {
    /// Serves the image at the socket, which is made.
    pub fn serve(image: &Path, socket: &Path) -> Result<HonestDisk> {
        if socket.exists() {
            std::fs::remove_file(socket)?;
        }
        let listener =
            UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
        listener.set_nonblocking(true)?;
        let mut disk = Cached::open(image)?;
        let ended = Arc::new(AtomicBool::new(false));
        let given_up = ended.clone();
        let server = thread::spawn(move || {
            loop {
                match listener.accept() {
                    Ok((connection, _)) => {
                        connection.set_nonblocking(false)?;
                        serve(&connection, &mut disk)?;
                        return Ok(disk);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if given_up.load(Ordering::Relaxed) {
                            return Ok(disk);
                        }
                        thread::sleep(Duration::from_millis(5));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        });
        Ok(HonestDisk { socket: socket.to_owned(), ended, server })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The machine powered itself off: its cache was written back. For after QEMU's end.
    pub fn power_off(self) -> Result<()> {
        self.end().map(|_| ())
    }

    /// The power failed: what was not flushed is lost, in part or as a whole. For after QEMU's end. Says how many
    /// of how many blocks were lost.
    pub fn cut(self, random: &mut Rng) -> Result<(u64, u64)> {
        self.end()?.lose(random)
    }

    fn end(self) -> Result<Cached> {
        self.ended.store(true, Ordering::Relaxed);
        self.server.join().map_err(|_| anyhow::anyhow!("the server of a disk panicked"))?
    }
}

/// An image that holds all that was written, and what its unflushed blocks held before.
struct Cached {
    file: File,
    bytes: u64,
    /// By number; `None` is a block of zeros.
    flushed: BTreeMap<u64, Option<Box<[u8]>>>,
}

impl Cached {
    fn open(image: &Path) -> Result<Cached> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image)
            .with_context(|| format!("cannot open {}", image.display()))?;
        let bytes = file.metadata()?.len();
        Ok(Cached { file, bytes, flushed: BTreeMap::new() })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.remember(offset, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)
    }

    fn zero(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            // Whole disks are discarded: what is a hole stays one.
            let from = i64::try_from(at).expect("an offset in a file");
            at = match lseek(&self.file, from, Whence::SeekData) {
                Ok(data) => at.max(data.cast_unsigned()),
                Err(Errno::ENXIO) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let part = (BLOCK_BYTES as u64 - at % BLOCK_BYTES as u64).min(end.saturating_sub(at));
            self.write(at, &ZEROS[..usize::try_from(part).expect("at most a block")])?;
            at += part;
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.flushed.clear();
    }

    fn remember(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        let block_bytes = BLOCK_BYTES as u64;
        for block in offset / block_bytes..(offset + bytes).div_ceil(block_bytes) {
            if self.flushed.contains_key(&block) {
                continue;
            }
            let at = block * block_bytes;
            let mut old =
                vec![0; usize::try_from(block_bytes.min(self.bytes - at)).expect("at most a block")];
            self.file.read_exact_at(&mut old, at)?;
            let old = (old != ZEROS[..old.len()]).then(|| old.into_boxed_slice());
            self.flushed.insert(block, old);
        }
        Ok(())
    }

    fn lose(self, random: &mut Rng) -> Result<(u64, u64)> {
        // In a quarter of the cuts the cache was written back just before, in another quarter not at all.
        let of_four = [0, 2, 2, 4][random.usize(..4)];
        let mut lost = 0;
        for (block, old) in &self.flushed {
            if random.usize(..4) >= of_four {
                continue;
            }
            let at = block * BLOCK_BYTES as u64;
            let bytes = usize::try_from((BLOCK_BYTES as u64).min(self.bytes - at)).expect("at most a block");
            match old {
                Some(old) => self.file.write_all_at(old, at)?,
                None => self.file.write_all_at(&ZEROS[..bytes], at)?,
            }
            lost += 1;
        }
        Ok((lost, self.flushed.len() as u64))
    }
}

/// Until the client goes, in whatever way: killed, it leaves half a request at most.
fn serve(connection: &UnixStream, disk: &mut Cached) -> Result<()> {
    let mut input = BufReader::with_capacity(1 << 20, connection);
    match handshake(&mut input, connection, disk.bytes).and_then(|go| match go {
        true => requests(&mut input, connection, disk),
        false => Ok(()),
    }) {
        Err(error) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(
                io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset,
            ) => Ok(()),
            _ => Err(error),
        },
        done => done,
    }
}

/// Is there to be more?
fn handshake(input: &mut impl Read, mut output: impl Write, bytes: u64) -> Result<bool> {
    output.write_all(
        &[&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()].concat(),
    )?;
    u32_from(input)?;
    loop {
        if u64_from(input)? != OPTION_MAGIC {
            bail!("an NBD client sent an option without its magic");
        }
        let (option, length) = (u32_from(input)?, u32_from(input)?);
        io::copy(&mut input.take(length.into()), &mut io::sink())?;
        let mut reply = |kind: u32, data: &[u8]| {
            let length = u32::try_from(data.len()).expect("a few bytes").to_be_bytes();
            let head =
                [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes(), &length];
            output.write_all(&[&head.concat(), data].concat())
        };
        match option {
            OPTION_GO => {
                let export = [&[0, 0], &bytes.to_be_bytes()[..], &EXPORT_FLAGS.to_be_bytes()].concat();
                reply(REPLY_INFO, &export)?;
                reply(REPLY_ACK, &[])?;
                return Ok(true);
            }
            OPTION_ABORT => return Ok(false),
            _ => reply(REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn requests(input: &mut impl Read, mut output: impl Write, disk: &mut Cached) -> Result<()> {
    let mut data = Vec::new();
    loop {
        if u32_from(input)? != REQUEST_MAGIC {
            bail!("an NBD client sent a request without its magic");
        }
        let command = u32_from(input)? & 0xffff;
        let (handle, offset, length) = (u64_from(input)?, u64_from(input)?, u32_from(input)?);
        let inside = offset.checked_add(length.into()).is_some_and(|end| end <= disk.bytes);
        if !inside || (command < 2 && length > REQUEST_BYTES_MAX) {
            bail!("an NBD client asked for {length} bytes at {offset} of {}", disk.bytes);
        }
        let mut reply = Vec::new();
        reply.extend([REPLY_MAGIC.to_be_bytes(), [0; 4]].concat());
        reply.extend(handle.to_be_bytes());
        match command {
            0 => {
                let head = reply.len();
                reply.resize(head + length as usize, 0);
                disk.read(offset, &mut reply[head..])?;
            }
            1 => {
                data.resize(length as usize, 0);
                input.read_exact(&mut data)?;
                disk.write(offset, &data)?;
            }
            2 => return Ok(()),
            3 => disk.flush(),
            4 | 6 => disk.zero(offset, length.into())?,
            other => bail!("an NBD client sent the unknown command {other}"),
        }
        output.write_all(&reply)?;
    }
}

fn u32_from(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn u64_from(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: u64 = 64;

    fn disk(name: &str) -> (Cached, PathBuf) {
        let path = std::env::temp_dir().join(format!("xtask-honest-{name}-{}", std::process::id()));
        let file = File::create(&path).expect("a new file");
        file.set_len(BLOCKS * BLOCK_BYTES as u64).expect("it can be sparse");
        (Cached::open(&path).expect("just made"), path)
    }

    fn content(path: &Path) -> Vec<u8> {
        let bytes = std::fs::read(path).expect("it is there");
        std::fs::remove_file(path).expect("it is there");
        bytes
    }

    #[test]
    fn a_cut_loses_some_of_what_was_not_flushed_and_nothing_else() {
        let (mut partly, mut all, mut none) = (0, 0, 0);
        for seed in 0..40 {
            let (mut disk, path) = disk("cut");
            disk.write(0, &[1; 8 * BLOCK_BYTES]).expect("it fits");
            disk.flush();
            // Twice within one flush: what counts is what the flush left.
            disk.write(0, &[2; 4 * BLOCK_BYTES]).expect("it fits");
            disk.write(100, &[3; 4 * BLOCK_BYTES]).expect("it fits");
            disk.zero(7 * BLOCK_BYTES as u64 + 10, 20).expect("it fits");
            let (lost, of) = disk.lose(&mut Rng::with_seed(seed)).expect("it can be written");
            assert_eq!(of, 6);
            let after = content(&path);
            let old = (0..8).filter(|block| after[block * BLOCK_BYTES + 10] == 1).count();
            assert_eq!(
                old as u64,
                lost + 2,
                "blocks 5 and 6 were flushed, and only they stay without a loss"
            );
            assert!(after[8 * BLOCK_BYTES..].iter().all(|byte| *byte == 0));
            match lost {
                0 => none += 1,
                6 => all += 1,
                _ => partly += 1,
            }
        }
        assert!(none > 0 && all > 0 && partly > 0, "{none} {all} {partly}");
    }

    #[test]
    fn what_was_flushed_stays() {
        let (mut disk, path) = disk("flushed");
        disk.write(5000, b"flushed").expect("it fits");
        disk.flush();
        assert_eq!(disk.lose(&mut Rng::with_seed(1)).expect("it can be written"), (0, 0));
        assert_eq!(&content(&path)[5000..5007], b"flushed");
    }

    #[test]
    fn a_client_that_is_killed_in_a_request_leaves_the_ones_before() {
        let (mut disk, path) = disk("client");
        let (server, mut client) = UnixStream::pair().expect("a pair");
        let talk = thread::spawn(move || {
            let request = |command: u16, offset: u64, data: &[u8]| {
                let length = u32::try_from(data.len()).expect("short");
                let head = [&REQUEST_MAGIC.to_be_bytes()[..], &[0, 0], &command.to_be_bytes()].concat();
                [&head[..], &7u64.to_be_bytes(), &offset.to_be_bytes(), &length.to_be_bytes(), data].concat()
            };
            let go = [&[0; 4][..], &OPTION_MAGIC.to_be_bytes(), &OPTION_GO.to_be_bytes(), &[0; 4]].concat();
            client.write_all(&go).expect("it listens");
            client.write_all(&request(1, 4096, b"written")).expect("it listens");
            client.write_all(&request(3, 0, b"")).expect("it listens");
            let half = request(1, 8192, b"never whole");
            client.write_all(&half[..half.len() - 1]).expect("it listens");
            client.shutdown(std::net::Shutdown::Write).expect("still open");
            let mut said = Vec::new();
            client.read_to_end(&mut said).expect("it answers");
            said
        });
        serve(&server, &mut disk).expect("a client may go at any time");
        drop(server);
        let said = talk.join().expect("it did not panic");
        assert_eq!(
            said.len(),
            18 + (20 + 12) + 20 + 2 * 16,
            "handshake, information, acknowledgement, two replies"
        );
        assert!(disk.flushed.is_empty());
        let after = content(&path);
        assert_eq!(&after[4096..4103], b"written");
        assert!(after[8192..].iter().all(|byte| *byte == 0));
    }
}
