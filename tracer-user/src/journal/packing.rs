//! A frame's payload, compressed if that makes it smaller.

use crate::journal::format::{Codec, FRAME_HEADER_LEN, RAW_LEN_MAX};

/// Frames from this size on are tried first: on what can't be compressed the whole effort is for nothing.
const TRIED_BYTES: usize = 256 << 10;
/// Taken for that from so many places, of this size each.
const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 8 << 10;
/// A sample that does not shrink by this part says that the frame won't either.
const WORTH_PART: usize = 32;

/// Compresses frames at one level, or leaves them as they are.
pub struct Packer(Option<zstd::bulk::Compressor<'static>>);

impl Packer {
    /// `zstd_level` 0 stores frames as they are.
    pub fn new(zstd_level: i32) -> Packer {
        Packer(match zstd_level {
            0 => None,
            level => zstd::bulk::Compressor::new(level).ok(),
        })
    }

    /// Compresses what follows the room for the header, into `out` after the same room, if that makes it smaller.
    pub fn pack(&mut self, frame: &[u8], out: &mut Vec<u8>) -> Codec {
        let Some(compressor) = &mut self.0 else { return Codec::Raw };
        if !is_worth_it(compressor, &frame[FRAME_HEADER_LEN..], out) {
            return Codec::Raw;
        }
        // One byte less than raw: when it does not fit, zstd says so, and the frame is stored raw.
        out.resize(frame.len() - 1, 0);
        match compressor.compress_to_buffer(&frame[FRAME_HEADER_LEN..], &mut out[FRAME_HEADER_LEN..]) {
            Ok(count) => {
                out.truncate(FRAME_HEADER_LEN + count);
                Codec::Zstd
            }
            Err(_) => Codec::Raw,
        }
    }
}

/// Whether `raw` is small, or samples of it can be compressed. `scratch` has any content afterwards.
fn is_worth_it(compressor: &mut zstd::bulk::Compressor<'_>, raw: &[u8], scratch: &mut Vec<u8>) -> bool {
    if raw.len() < TRIED_BYTES {
        return true;
    }
    let samples = raw.chunks(raw.len() / SAMPLES).take(SAMPLES);
    let samples: Vec<u8> =
        samples.flat_map(|chunk| &chunk[chunk.len() / 2..][..SAMPLE_BYTES]).copied().collect();
    scratch.resize(samples.len() - samples.len() / WORTH_PART, 0);
    compressor.compress_to_buffer(&samples, &mut scratch[..]).is_ok()
}

pub fn len_u32(len: usize) -> u32 {
    debug_assert!(len <= RAW_LEN_MAX, "frames are capped below 16 MiB");
    u32::try_from(len).expect("frames and their indexes are capped at 16 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::store::faulty::Random;

    #[test]
    fn noise_is_stored_as_it_is_and_all_else_is_compressed() {
        let mut random = Random::new(1);
        let mut noise = || u8::try_from(random.below(256)).unwrap();
        let mut frame = vec![0; FRAME_HEADER_LEN];
        frame.extend((0..1 << 20).map(|_| noise()));
        let (mut packer, mut out) = (Packer::new(1), vec![0; FRAME_HEADER_LEN]);
        assert_eq!(packer.pack(&frame, &mut out), Codec::Raw);
        // One of its eight parts is none.
        frame[FRAME_HEADER_LEN..][5 << 17..6 << 17].fill(b'a');
        assert_eq!(packer.pack(&frame, &mut out), Codec::Zstd);
        assert!(out.len() < frame.len() * 15 / 16);
        let unpacked = zstd::bulk::decompress(&out[FRAME_HEADER_LEN..], frame.len()).unwrap();
        assert_eq!(unpacked, frame[FRAME_HEADER_LEN..]);
    }
}
