//! Fuzz target of the tree's decoder: see `crate::fuzzing`. Records of trees are decoded in `journal/`.

use crate::tree::checkpoint::TreeCheckpoint;

pub fn tree_checkpoint(data: &[u8]) {
    let decode = |bytes: &[u8]| {
        if let Ok(checkpoint) = TreeCheckpoint::decode(bytes) {
            let again = checkpoint.encode().expect("what was decoded can be encoded");
            assert_eq!(TreeCheckpoint::decode(again.as_bytes()).ok(), Some(checkpoint));
        }
    };
    decode(data);
    decode(&[data, format!("blake3 = \"{}\"\n", blake3::hash(data).to_hex()).as_bytes()].concat());
}
