//! What a ledger keeps for Hub clients: the small files given at `init`, and the digests of what its
//! states are exported as. See `schema/hub.md`.
//!
//! Trust: none. A given file is compared with the genesis when it is read; the digests can be taken
//! again from the state at any time. Losing a given file costs bringing it back from where it came
//! from; losing digests, hashing those files again.

use std::{collections::BTreeSet, io};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{
    StoreError,
    files::{create_dir_durable, read_whole, write_whole},
    place::Place,
};
use crate::types::{digest::Digest, json, record::FileId};

/// Most files that can be given.
pub const GIVEN_MAX: usize = 32;

/// Most bytes of all given files together: a tokenizer of a large vocabulary takes some 35 MB.
pub const GIVEN_BYTES_MAX: u64 = 64 << 20;

/// Longest name of a given file.
const NAME_BYTES_MAX: usize = 128;

/// Largest list of digests that is read: 100,000 files.
const SUMS_BYTES_MAX: u64 = 32 << 20;

/// Version of the lists that are written and read.
const VERSION: u64 = 1;

/// Files that cannot go with a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum GivenError {
    #[error(
        "{name:?} cannot be the name of a file beside the model: 1 to {NAME_BYTES_MAX} letters, \
         digits, '.', '_' and '-', the first not '.' or '-', and no name of a file with weights"
    )]
    Name { name: String },
    #[error("{name} is given twice")]
    Twice { name: String },
    #[error("{found} files are given; {GIVEN_MAX} can be")]
    Many { found: usize },
    #[error("the files take more than {GIVEN_BYTES_MAX} bytes together")]
    Bytes,
}

/// That these files can stand beside a model's: what `init` writes and every reader of a genesis asks.
///
/// # Errors
///
/// [`GivenError`] names the first that cannot.
pub fn check_given(files: &[FileId]) -> Result<(), GivenError> {
    if files.len() > GIVEN_MAX {
        return Err(GivenError::Many { found: files.len() });
    }
    let (mut seen, mut left) = (BTreeSet::new(), GIVEN_BYTES_MAX);
    for FileId { name, bytes, .. } in files {
        if !is_given_name(name) {
            return Err(GivenError::Name { name: name.clone() });
        }
        // Some disks take upper and lower case for one.
        if !seen.insert(name.to_ascii_lowercase()) {
            return Err(GivenError::Twice { name: name.clone() });
        }
        left = left.checked_sub(*bytes).ok_or(GivenError::Bytes)?;
    }
    Ok(())
}

fn is_given_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let lower = name.to_ascii_lowercase();
    let ours = lower.ends_with(".safetensors")
        || lower.ends_with(".safetensors.index.json")
        || lower == "sha256sums";
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with(['.', '-'])
        && !ours
}

/// Keeps a given file; durable when this returns.
///
/// # Errors
///
/// [`StoreError::Io`], fatal.
pub fn put_given(place: &Place, bytes: &[u8]) -> Result<(), StoreError> {
    let path = place.given_file(Digest::of(bytes));
    put(place, &path, bytes)
}

/// The bytes of a given file.
///
/// # Errors
///
/// [`StoreError::Given`] if they are not those of the genesis; [`StoreError::Io`].
pub fn read_given(place: &Place, file: &FileId) -> Result<Vec<u8>, StoreError> {
    let path = place.given_file(file.sha256);
    let bytes = read_whole(&*place.files, &path, GIVEN_BYTES_MAX)
        .map_err(|source| StoreError::Io { path: path.clone(), source })?;
    let found = Digest::of(&bytes);
    if found == file.sha256 && bytes.len() as u64 == file.bytes {
        return Ok(bytes);
    }
    Err(StoreError::Given { path, name: file.name.clone(), expected: file.sha256, found })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sums {
    version: u64,
    files: Vec<FileId>,
}

/// What is known of the files that the state `root` is exported as in `dtype`; nothing where there is
/// no list, or one that cannot be read: it is made again.
pub fn load_sums(place: &Place, root: Digest, dtype: &str) -> Vec<FileId> {
    let bytes = read_whole(&*place.files, &place.hub_sums(root, dtype), SUMS_BYTES_MAX);
    let read = bytes.ok().and_then(|bytes| json::from_slice::<Sums>(&bytes).ok());
    read.filter(|sums| sums.version == VERSION).map(|sums| sums.files).unwrap_or_default()
}

/// Keeps what is known.
///
/// # Errors
///
/// [`StoreError::Io`].
pub fn save_sums(
    place: &Place,
    root: Digest,
    dtype: &str,
    files: &[FileId],
) -> Result<(), StoreError> {
    let sums = Sums { version: VERSION, files: files.to_vec() };
    put(place, &place.hub_sums(root, dtype), &json::to_vec(&sums))
}

/// Removes the lists of states that are not in `kept`; gives how many went.
///
/// # Errors
///
/// [`StoreError::Io`].
pub fn drop_sums(place: &Place, kept: impl Fn(Digest) -> bool) -> Result<usize, StoreError> {
    let dir = place.hub().join("sums");
    let at = |source| StoreError::Io { path: dir.clone(), source };
    let names = match place.files.list(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        names => names.map_err(at)?,
    };
    let root = |name: &std::path::PathBuf| name.to_str()?.split_once('-')?.0.parse().ok();
    let gone = names.iter().filter(|name| !root(name).is_some_and(&kept));
    gone.map(|name| place.files.remove(&dir.join(name)).map_err(at))
        .try_fold(0, |n, done| done.map(|()| n + 1))
}

fn put(place: &Place, path: &std::path::Path, bytes: &[u8]) -> Result<(), StoreError> {
    let dir = path.parent().expect("below hub/");
    create_dir_durable(&*place.files, dir)
        .and_then(|()| write_whole(&*place.files, path, bytes))
        .map_err(|source| StoreError::Io { path: path.to_owned(), source })
}

/// What a repository or its owner is called: what Hub clients take, with room for a suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryName(String);

/// Longest name of a repository, its suffix left out.
const REPOSITORY_NAME_MAX: usize = 92;

impl RepositoryName {
    /// The name of a run; what cannot stand in a repository's becomes `-`.
    pub fn of_run(run: &str) -> Self {
        let mut name = String::new();
        for c in run.chars() {
            let c = if c.is_ascii_alphanumeric() || c == '_' || c == '.' { c } else { '-' };
            // They refuse two of these side by side, and either at an end.
            if !(matches!(c, '-' | '.') && (name.is_empty() || name.ends_with(['-', '.']))) {
                name.push(c);
            }
        }
        name.truncate(REPOSITORY_NAME_MAX);
        let name = name.trim_end_matches(['-', '.']);
        let name = name.strip_suffix(".git").unwrap_or(name);
        Self(if name.is_empty() { "run".to_owned() } else { name.to_owned() })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for RepositoryName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Self(String::deserialize(deserializer)?);
        if Self::of_run(&name.0) == name {
            return Ok(name);
        }
        Err(D::Error::custom(
            "Hub clients take up to 92 letters, digits, '_', '.' and '-', no two of '.' and '-' side by \
             side and none at an end",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: u64) -> FileId {
        FileId { name: name.to_owned(), bytes, sha256: Digest::default() }
    }

    #[test]
    fn names_of_given_files_are_plain_and_not_those_of_weights() {
        for name in ["config.json", "tokenizer.json", "README.md", "a", "vocab_1-b.txt"] {
            assert_eq!(check_given(&[file(name, 1)]), Ok(()), "{name}");
        }
        let long = "a".repeat(129);
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "../a",
            "a\\b",
            ".hidden",
            "-rf",
            "a b",
            "a\0",
            "ä",
            &long,
            "model.safetensors",
            "X.SAFETENSORS",
            "model.safetensors.index.json",
            "SHA256SUMS",
        ] {
            let refused = GivenError::Name { name: name.to_owned() };
            assert_eq!(check_given(&[file(name, 1)]), Err(refused));
        }
    }

    #[test]
    fn given_files_are_few_small_and_distinct() {
        let twice = [file("a", 1), file("A", 1)];
        assert_eq!(check_given(&twice), Err(GivenError::Twice { name: "A".to_owned() }));
        let many: Vec<_> = (0..33).map(|n| file(&format!("f{n}"), 1)).collect();
        assert_eq!(check_given(&many), Err(GivenError::Many { found: 33 }));
        assert_eq!(check_given(&many[..32]), Ok(()));
        let half = GIVEN_BYTES_MAX / 2;
        assert_eq!(check_given(&[file("a", half), file("b", half)]), Ok(()));
        assert_eq!(check_given(&[file("a", half), file("b", half + 1)]), Err(GivenError::Bytes));
        assert_eq!(check_given(&[file("a", 1), file("b", u64::MAX)]), Err(GivenError::Bytes));
    }

    #[test]
    fn a_run_gets_a_name_that_hub_clients_take() {
        let long = "x".repeat(200);
        for (run, name) in [
            ("my-run", "my-run"),
            ("Covenant 72B/v2", "Covenant-72B-v2"),
            ("a--b..c.-d", "a-b.c.d"),
            ("-.-", "run"),
            ("ä", "run"),
            ("x.git", "x"),
            ("trailing.", "trailing"),
            (&long, &long[..92]),
        ] {
            assert_eq!(RepositoryName::of_run(run).as_str(), name);
            let read: RepositoryName = serde_json::from_value(name.into()).unwrap();
            assert_eq!(read.as_str(), name);
        }
        for name in ["a/b", "", "a--b", "a b", ".a", "x.git"] {
            assert!(serde_json::from_value::<RepositoryName>(name.into()).is_err(), "{name}");
        }
    }
}
