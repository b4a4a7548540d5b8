//! BLAKE3 of a whole volume from its chunks, hashed in any order by many threads: the digest `b3sum` would print.

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

/// Subtrees of the hash's tree: a power of two.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// What is kept of a chunk.
#[derive(Clone, Copy)]
pub struct ChunkHash([u8; 32]);

/// `total_bytes` is the volume's, `start` a multiple of [`CHUNK_BYTES`].
pub fn hash_chunk(start: u64, bytes: &[u8], total_bytes: u64) -> ChunkHash {
    if total_bytes <= CHUNK_BYTES {
        return ChunkHash(*blake3::hash(bytes).as_bytes());
    }
    let mut hasher = Hasher::new();
    hasher.set_input_offset(start).update(bytes);
    ChunkHash(hasher.finalize_non_root())
}

/// The digest as 64 hexadecimal digits, from the hashes of all chunks in order.
pub fn digest(chunks: &[ChunkHash], total_bytes: u64) -> String {
    match chunks {
        [] => blake3::hash(&[]),
        [only] => blake3::Hash::from_bytes(only.0),
        several => {
            let (left, right) = halves(several, total_bytes);
            merge_subtrees_root(&left, &right, Mode::Hash)
        }
    }
    .to_hex()
    .to_string()
}

fn halves(chunks: &[ChunkHash], bytes: u64) -> (ChainingValue, ChainingValue) {
    let left_bytes = left_subtree_len(bytes);
    let (left, right) = chunks.split_at(usize::try_from(left_bytes / CHUNK_BYTES).unwrap_or(usize::MAX));
    (subtree(left, left_bytes), subtree(right, bytes - left_bytes))
}

fn subtree(chunks: &[ChunkHash], bytes: u64) -> ChainingValue {
    match chunks {
        [only] => only.0,
        several => {
            let (left, right) = halves(several, bytes);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_whole() {
        let volume: Vec<u8> = (0..(7u32 << 20) + 777).map(|n| (n >> 7) as u8 ^ n as u8).collect();
        for len in [0, 1, 1 << 20, (1 << 20) + 1, 2 << 20, 3 << 20, 5 << 20, volume.len()] {
            let bytes = &volume[..len];
            let hashes: Vec<_> = bytes
                .chunks(CHUNK_BYTES as usize)
                .zip((0..).step_by(CHUNK_BYTES as usize))
                .map(|(chunk, start)| hash_chunk(start, chunk, len as u64))
                .collect();
            assert_eq!(digest(&hashes, len as u64), blake3::hash(bytes).to_hex().to_string(), "{len} bytes");
        }
    }
}
