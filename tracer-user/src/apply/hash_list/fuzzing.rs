//! Fuzz target of the hash list: see `crate::fuzzing`.

use crate::apply::hash_list::format::{ENTRY_LEN, HEADER_LEN, HashListHeader, entry_start};
use crate::model::GranuleHash;

/// The number of the first entry, the header, then entries.
pub fn hash_list(data: &[u8]) {
    let Some((first, data)) = data.split_first_chunk::<4>() else { return };
    let first = u64::from(u32::from_le_bytes(*first));
    decode(data, first);
    let Some((header, entries)) = data.split_first_chunk::<HEADER_LEN>() else { return };
    let mut header = *header;
    let crc = crc32c::crc32c(&header[..124]);
    header[124..].copy_from_slice(&crc.to_le_bytes());
    let Ok(list) = HashListHeader::decode(&header) else { return };
    decode(&[&header, entries].concat(), first);
    // And with every entry's checksum put right: then each of them is known.
    let mut bytes = header.to_vec();
    for (index, entry) in (first..).zip(entries.as_chunks::<ENTRY_LEN>().0) {
        let hash = GranuleHash(*entry.first_chunk().expect("a hash is shorter than its entry"));
        let entry = list.encode_entry(index, hash);
        assert_eq!(list.decode_entry(index, &entry), (entry != [0; ENTRY_LEN]).then_some(hash));
        bytes.extend_from_slice(&entry);
    }
    decode(&bytes, first);
}

fn decode(bytes: &[u8], first: u64) {
    let Ok(header) = HashListHeader::decode(bytes) else { return };
    let (fixed, entries) = bytes.split_at(HEADER_LEN);
    assert_eq!(header.encode(), fixed);
    assert_eq!(header.file_bytes(), entry_start(header.granules.count()));
    let decoded = header.decode_entries(first, entries);
    assert_eq!(decoded.len(), entries.len() / ENTRY_LEN);
    for ((index, hash), entry) in (first..).zip(decoded).zip(entries.as_chunks::<ENTRY_LEN>().0) {
        assert!(hash.is_none_or(|hash| header.encode_entry(index, hash) == *entry));
    }
}
