//! `folds.toml`: what stands for the part of the history that was folded, and where the segments go on. See docs/FORMAT.md.

use serde::{Deserialize, Serialize};

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::segment::Chain;
use crate::journal::walk::{io_error, read_all};
use crate::model::{Lsn, MarkId};

pub const FOLDS_NAME: &str = "folds.toml";
const NEW_NAME: &str = "folds.toml.new";
const FOLD_PREFIX: &str = "fold-";
const VERSION: u64 = 1;
/// Some 500,000 marks.
const LEN_MAX: u64 = 8 << 20;
const CHECKSUM_KEY: &str = "crc32c = \"";

/// The manifest. One that is not there means that nothing was folded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folds {
    version: u64,
    /// Segments below are not part of the journal any more.
    pub first_lsn: Lsn,
    /// The hash on which the first segment follows.
    #[serde(with = "hex")]
    pub previous: [u8; 32],
    /// The number of the last mark that was folded.
    pub last_mark: MarkId,
    /// For the name of the next fold.
    pub next_number: u64,
    /// In order, from nothing on; each begins where the one before it ends.
    #[serde(default)]
    pub folds: Vec<Fold>,
    /// Base images of marks that are in the segments, too: short cuts.
    #[serde(default)]
    pub images: Vec<Fold>,
}

/// The net effect of the records after one mark up to another one, and marks in between. Its files are a journal of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    pub number: u64,
    /// The mark it follows on; 0 for one that begins from nothing.
    pub after: Lsn,
    /// The records that its marks were, ascending.
    pub marks: Vec<Lsn>,
    pub bytes: u64,
    /// Of its last segment's seal.
    #[serde(with = "hex")]
    pub hash: [u8; 32],
}

impl Fold {
    pub fn upto(&self) -> Lsn {
        self.marks.last().copied().unwrap_or(self.after)
    }

    /// What the names of its files begin with.
    pub fn prefix(&self) -> String {
        fold_prefix(self.number)
    }
}

pub fn fold_prefix(number: u64) -> String {
    format!("{FOLD_PREFIX}{number:010}.")
}

/// Whether a file of this name belongs to a fold, and not to one of these.
pub fn is_left_over(name: &str, folds: &Folds) -> bool {
    name == NEW_NAME
        || (name.starts_with(FOLD_PREFIX) && !folds.all().any(|fold| name.starts_with(&fold.prefix())))
}

impl Default for Folds {
    fn default() -> Folds {
        Folds {
            version: VERSION,
            first_lsn: Lsn(1),
            previous: [0; 32],
            last_mark: MarkId(0),
            next_number: 1,
            folds: Vec::new(),
            images: Vec::new(),
        }
    }
}

impl Folds {
    /// Where the folded part ends; 0 when nothing was folded. The records up to there can't be told one by one any more.
    pub fn upto(&self) -> Lsn {
        self.folds.last().map_or(Lsn::ZERO, Fold::upto)
    }

    pub fn all(&self) -> impl Iterator<Item = &Fold> {
        self.folds.iter().chain(&self.images)
    }

    pub fn is_mark(&self, lsn: Lsn) -> bool {
        self.folds.iter().any(|fold| fold.marks.binary_search(&lsn).is_ok())
    }

    /// What the first segment has to start with.
    pub fn chain(&self) -> Chain {
        match self.first_lsn {
            Lsn(1) => Chain::start(),
            next_lsn => Chain { next_lsn, hash: self.previous, previous: FOLDS_NAME.to_owned() },
        }
    }

    pub fn encode(&self) -> Result<String, String> {
        let mut text = toml::to_string(self).map_err(|error| error.to_string())?;
        text.insert_str(0, "# What stands for the history that was folded. Do not edit.\n");
        let crc = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("# {CHECKSUM_KEY}{crc:08x}\"\n"));
        Ok(text)
    }

    pub fn decode(text: &str) -> Result<Folds, BadFolds> {
        let other = |what: &str| BadFolds::Other(what.to_owned());
        #[derive(Deserialize)]
        struct OnlyVersion {
            version: u64,
        }
        let OnlyVersion { version } =
            toml::from_str(text).map_err(|_| other("it has no version or is no TOML"))?;
        if version != VERSION {
            return Err(BadFolds::Version(version));
        }
        let end = text.rfind("# crc32c").ok_or_else(|| other("it has no checksum"))?;
        let wanted = format!("# {CHECKSUM_KEY}{:08x}\"\n", crc32c::crc32c(&text.as_bytes()[..end]));
        if text[end..] != wanted {
            return Err(other("its checksum is wrong: it was edited or damaged"));
        }
        let folds: Folds = toml::from_str(text).map_err(|error| other(error.message()))?;
        if folds.is_sound() { Ok(folds) } else { Err(other("its folds do not follow on each other")) }
    }

    fn is_sound(&self) -> bool {
        let ascends = |fold: &Fold| {
            let befores = std::iter::once(&fold.after).chain(&fold.marks);
            !fold.marks.is_empty() && befores.zip(&fold.marks).all(|(before, mark)| before < mark)
        };
        let afters = std::iter::once(Lsn::ZERO).chain(self.folds.iter().map(Fold::upto));
        self.all().all(ascends)
            && self.folds.iter().zip(afters).all(|(fold, after)| fold.after == after)
            && self.images.iter().all(|image| image.after == Lsn::ZERO && image.marks.len() == 1)
            && self.all().all(|fold| fold.number < self.next_number && fold.upto().0 < u64::MAX)
            && (1..=self.upto().0 + 1).contains(&self.first_lsn.0)
            && self.last_mark.0 < u64::MAX
    }
}

/// Why `folds.toml` cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum BadFolds {
    Version(u64),
    Other(String),
}

/// The bytes of the manifest; none when there is none.
pub fn read_bytes<S: Store>(store: &S) -> Result<Vec<u8>, JournalError> {
    loop {
        let size = match store.size(FOLDS_NAME) {
            Ok(size) => size,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(store, "read", FOLDS_NAME, error)),
        };
        if size > LEN_MAX {
            return Err(damaged("it is too large".to_owned()));
        }
        let bytes = read_all(store, FOLDS_NAME, size + 1)?;
        // Else it was replaced between the two, and this may be the beginning of a longer one.
        if bytes.len() as u64 == size {
            return Ok(bytes);
        }
    }
}

pub fn decode_bytes(bytes: &[u8]) -> Result<Folds, JournalError> {
    if bytes.is_empty() {
        return Ok(Folds::default());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text".to_owned()))?;
    Folds::decode(text).map_err(|error| match error {
        BadFolds::Version(version) => {
            JournalError::UnsupportedVersion { file: FOLDS_NAME.to_owned(), version }
        }
        BadFolds::Other(why) => damaged(why),
    })
}

pub fn read_folds<S: Store>(store: &S) -> Result<Folds, JournalError> {
    decode_bytes(&read_bytes(store)?)
}

/// Replaces the manifest: it is the old one or the new one, durably. All that it speaks of must be durable before.
pub fn write_folds<S: Store>(store: &mut S, folds: &Folds) -> Result<(), JournalError> {
    let text = folds.encode().map_err(JournalError::InvalidRecord)?;
    if text.len() as u64 > LEN_MAX {
        // One that nobody could read any more.
        let what = "more folded marks than folds.toml may hold; keep fewer (--keep-marks, --drop-labelled)";
        return Err(JournalError::InvalidRecord(what.to_owned()));
    }
    let write = |store: &mut S| {
        if store.size(NEW_NAME).is_ok() {
            store.remove(NEW_NAME)?;
        }
        store.create(NEW_NAME)?;
        store.append(NEW_NAME, text.as_bytes())?;
        store.sync(NEW_NAME)?;
        store.rename(NEW_NAME, FOLDS_NAME)?;
        store.sync_dir()
    };
    write(store).map_err(|error| io_error(store, "write", FOLDS_NAME, error))
}

fn damaged(what: String) -> JournalError {
    JournalError::Damaged { segment: FOLDS_NAME.to_owned(), offset: 0, what }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&blake3::Hash::from(*hash).to_hex())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(&text).map(Into::into).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folds() -> Folds {
        let fold = |number, after: u64, marks: &[u64]| Fold {
            number,
            after: Lsn(after),
            marks: marks.iter().copied().map(Lsn).collect(),
            bytes: 100,
            hash: [number as u8; 32],
        };
        Folds {
            first_lsn: Lsn(81),
            previous: [7; 32],
            last_mark: MarkId(9),
            next_number: 8,
            folds: vec![fold(3, 0, &[10]), fold(7, 10, &[20, 30, 90])],
            images: vec![fold(5, 0, &[200])],
            ..Folds::default()
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_no_changed_byte_passes() {
        for folds in [folds(), Folds::default()] {
            let text = folds.encode().unwrap();
            assert_eq!(Folds::decode(&text), Ok(folds));
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1;
                assert!(Folds::decode(std::str::from_utf8(&bytes).unwrap()).is_err(), "byte {at}");
            }
        }
        assert_eq!(Folds::decode("version = 2\n"), Err(BadFolds::Version(2)));
    }

    #[test]
    fn folds_that_leave_a_hole_are_refused() {
        let wrong: [fn(&mut Folds); 9] = [
            |folds| folds.folds[1].after = Lsn(11),
            |folds| folds.folds[0].after = Lsn(1),
            |folds| folds.folds[1].marks[0] = Lsn(10),
            |folds| folds.folds[1].marks.clear(),
            |folds| folds.folds.clear(),
            |folds| folds.first_lsn = Lsn(92),
            |folds| folds.first_lsn = Lsn(0),
            |folds| folds.images[0].after = Lsn(10),
            |folds| folds.next_number = 7,
        ];
        for change in wrong {
            let mut folds = folds();
            change(&mut folds);
            assert!(matches!(Folds::decode(&folds.encode().unwrap()), Err(BadFolds::Other(_))), "{folds:?}");
        }
    }
}
