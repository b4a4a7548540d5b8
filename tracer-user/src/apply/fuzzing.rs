//! Fuzz targets of the applier's decoders: see `crate::fuzzing`.

pub use crate::apply::hash_list::fuzzing::hash_list;

use crate::apply::Checkpoint;

pub fn checkpoint(data: &[u8]) {
    let decode = |bytes: &[u8]| {
        if let Ok(checkpoint) = Checkpoint::decode(bytes) {
            let again = checkpoint.encode().expect("what was decoded can be encoded");
            assert_eq!(Checkpoint::decode(again.as_bytes()).ok(), Some(checkpoint));
        }
    };
    decode(data);
    decode(&[data, format!("blake3 = \"{}\"\n", blake3::hash(data).to_hex()).as_bytes()].concat());
}
