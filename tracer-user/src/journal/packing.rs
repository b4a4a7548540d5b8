//! A frame's payload, compressed if that makes it smaller.

use crate::journal::format::{Codec, FRAME_HEADER_LEN, RAW_LEN_MAX};

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

pub fn len_u32(len: usize) -> u32 {
    debug_assert!(len <= RAW_LEN_MAX, "frames are capped below 16 MiB");
    u32::try_from(len).expect("frames and their indexes are capped at 16 MiB")
}
