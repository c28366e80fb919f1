//! Are Bittensor's key files read as Bittensor reads them, and its signatures judged strictly?
//!
//! The folder is `GRADLEDGER_GOLDEN`, or the copies beside this file. Every set found there is
//! taken. The vectors of the statement's bytes are in `schema/vectors/`.

#![allow(clippy::unwrap_used)] // Clippy's own exception for tests leaves out their helpers.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use gradledger::{
    codec::ss58,
    codec::{
        sr25519::{PublicKey, SIGNATURE_BYTES},
        statement::{Statement, StatementError},
    },
    import::wallet::{FILE_BYTES_MAX, Hotkey, KeyfileError, WalletError, encrypted::Legacy},
    types::digest::Digest,
};
use proptest::{collection, prelude::*};
use serde_json::Value;
use zeroize::Zeroizing;

/// One set: the folder of the key files and what `vectors.json` says of each.
struct Set {
    folder: PathBuf,
    keys: Vec<Value>,
}

/// Every folder with a `vectors.json` at or below the golden `wallet`.
fn sets() -> Vec<Set> {
    fn find(folder: &Path, sets: &mut Vec<Set>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                find(&path, sets);
            } else if path.file_name().unwrap() == "vectors.json" {
                let vectors: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                let keys = vectors["keys"].as_array().unwrap().clone();
                sets.push(Set { folder: folder.to_owned(), keys });
            }
        }
    }
    let golden = std::env::var_os("GRADLEDGER_GOLDEN").map(PathBuf::from);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut sets = Vec::new();
    find(&golden.unwrap_or(own).join("wallet"), &mut sets);
    sets
}

fn keys() -> Vec<(PathBuf, Value)> {
    let of = |set: Set| {
        let path = move |key: Value| (set.folder.join(key["file"].as_str().unwrap()), key);
        set.keys.into_iter().map(path)
    };
    sets().into_iter().flat_map(of).collect()
}

fn is_encrypted(key: &Value) -> bool {
    key["encrypted"].as_bool().unwrap()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

fn bytes(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn signature(digits: &str) -> [u8; SIGNATURE_BYTES] {
    bytes(digits).try_into().unwrap()
}

/// For files that are not encrypted: asking is a fault.
fn never() -> io::Result<Zeroizing<String>> {
    panic!("a password was asked for")
}

/// For files that are encrypted, where nobody knows the password.
fn nobody() -> io::Result<Zeroizing<String>> {
    Err(io::Error::other("nobody to ask"))
}

fn load(path: &Path, password: &str) -> Result<Hotkey, WalletError> {
    Hotkey::load(path, &mut || Ok(Zeroizing::new(password.to_owned())))
}

/// What the vectors say of a key that was read.
fn check(hotkey: &Hotkey, key: &Value) {
    let public: Digest = text(key, "public_key").parse().unwrap();
    assert_eq!(hotkey.public(), public);
    assert_eq!(hotkey.address(), text(key, "ss58"));
    assert_eq!(format!("{hotkey:?}"), format!("Hotkey({})", text(key, "ss58")));
    for case in key["signatures"].as_array().unwrap() {
        let message = bytes(text(case, "message"));
        let own = hotkey.secret().sign(&message);
        assert_eq!(hotkey.secret().public().verify(&message, &own), Ok(()));
    }
}

#[test]
fn golden_plain_key_files_are_read() {
    for (path, key) in keys().into_iter().filter(|(_, key)| !is_encrypted(key)) {
        check(&Hotkey::load(&path, &mut never).unwrap(), &key);
    }
}

/// One test for all, since each opening takes 512 MiB.
#[test]
fn golden_encrypted_key_files_open_with_their_password_alone() {
    for (path, key) in keys().into_iter().filter(|(_, key)| is_encrypted(key)) {
        let password = text(&key, "password");
        check(&load(&path, password).unwrap(), &key);
        let refused = |result: Result<Hotkey, WalletError>| match result {
            Err(WalletError::Keyfile { source, .. }) => source,
            other => panic!("{other:?}"),
        };
        let wrong = refused(load(&path, &format!("{password} ")));
        assert!(matches!(wrong, KeyfileError::WrongPassword), "{wrong}");
        let none = refused(Hotkey::load(&path, &mut nobody));
        assert!(matches!(none, KeyfileError::NoPassword { .. }), "{none}");
        // Cut off: seen before anyone is asked.
        let short = Hotkey::from_bytes(&fs::read(&path).unwrap()[..44], &mut never).unwrap_err();
        assert!(matches!(short, KeyfileError::Truncated { found: 44, least: 45 }), "{short}");
    }
}

#[test]
fn golden_signatures_are_judged_strictly() {
    let mut judged = 0;
    for (path, key) in keys() {
        let digest: Digest = text(&key, "public_key").parse().unwrap();
        assert_eq!(ss58::decode(text(&key, "ss58")), Ok(digest));
        assert_eq!(ss58::encode(digest), text(&key, "ss58"));
        let public = PublicKey::try_from(digest).unwrap();
        for case in key["signatures"].as_array().unwrap() {
            let (message, name) = (bytes(text(case, "message")), text(case, "name"));
            let signature = signature(text(case, "signature"));
            let valid = case["valid"].as_bool().unwrap();
            let verdict = public.verify(&message, &signature);
            assert_eq!(verdict.is_ok(), valid, "{} {name}: {verdict:?}", path.display());
            judged += 1;
            // Python's class takes a signature over `<Bytes>m</Bytes>` for one over m, and back.
            let bare = message.strip_prefix(b"<Bytes>").and_then(|m| m.strip_suffix(b"</Bytes>"));
            let wrapped = [b"<Bytes>", &message[..], b"</Bytes>"].concat();
            for other in bare.into_iter().chain([&wrapped[..]]) {
                assert!(public.verify(other, &signature).is_err(), "{name}");
            }
        }
    }
    let own = std::env::var_os("GRADLEDGER_GOLDEN").is_none();
    assert!(judged == 21 || !own, "{judged} signatures");
}

#[test]
fn golden_statements_have_these_bytes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/vectors/statement.jsonl");
    let vectors = fs::read_to_string(path).unwrap();
    let mut signed = 0;
    for line in vectors.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let name = text(&case, "name");
        let data = bytes(text(&case, "bytes"));
        let read = Statement::from_bytes(&data);
        if let Some(why) = case["refused"].as_str() {
            let as_said = match read.unwrap_err() {
                StatementError::Length { found } => why == "length" && found == data.len(),
                StatementError::Tag => why == "tag",
                StatementError::Integer { found, .. } => why == "integer" && found == 1 << 53,
                other => panic!("{name}: {other}"),
            };
            assert!(as_said, "{name}");
            continue;
        }
        let digest = |field| text(&case, field).parse::<Digest>().unwrap();
        let statement = Statement {
            run: digest("run"),
            round: case["round"].as_u64().unwrap(),
            base: digest("base"),
            delta: digest("delta"),
            delta_bytes: case["delta_bytes"].as_u64().unwrap(),
            hotkey: digest("hotkey"),
        };
        assert_eq!(&statement.to_bytes()[..], data, "{name}");
        assert_eq!(read, Ok(statement), "{name}");
        assert_eq!(statement.id(), digest("id"), "{name}");
        // Where Bittensor's wallet signed it: over these bytes, and over wrapped ones.
        if let Some(good) = case["signature"].as_str() {
            assert_eq!(statement.verify(&signature(good)), Ok(()), "{name}");
            let wrapped = signature(text(&case, "signature_wrapped"));
            let verdict = statement.verify(&wrapped);
            assert!(matches!(verdict, Err(StatementError::Signature(_))), "{name}");
            signed += 1;
        }
    }
    assert_eq!(signed, 3);
}

#[test]
fn a_file_that_is_no_key_file_says_what_it_is() {
    let refused = |bytes: &[u8]| Hotkey::from_bytes(bytes, &mut never).unwrap_err();
    let vault = refused(b"$ANSIBLE_VAULT;1.1;AES256\n3937666338356166");
    assert!(matches!(vault, KeyfileError::Legacy { method: Legacy::AnsibleVault }));
    let fernet = refused(b"gAAAAABl0000");
    assert!(matches!(fernet, KeyfileError::Legacy { method: Legacy::Fernet }));
    for (found, way) in [(vault, "Ansible Vault"), (fernet, "Fernet")] {
        let said = found.to_string();
        assert!(said.contains(way) && said.contains("check_and_update_encryption"), "{said}");
    }
    assert!(matches!(refused(b""), KeyfileError::NotAKeyfile));
    assert!(matches!(refused(b"$NACL"), KeyfileError::Truncated { found: 5, least: 45 }));
    assert!(matches!(refused(&[b' '; FILE_BYTES_MAX + 1]), KeyfileError::TooLarge));
}

#[test]
fn a_file_is_read_to_its_bound_and_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hk");
    let absent = Hotkey::load(&path, &mut never).unwrap_err();
    assert!(matches!(absent, WalletError::Io { .. }), "{absent}");
    let endless = Hotkey::load(Path::new("/dev/zero"), &mut never).unwrap_err();
    assert!(matches!(endless, WalletError::Keyfile { source: KeyfileError::TooLarge, .. }));
    let Some(plain) = plain_files().first() else { return };
    let mut largest = plain.0.clone();
    largest.resize(FILE_BYTES_MAX, b'\n');
    fs::write(&path, &largest).unwrap();
    assert_eq!(Hotkey::load(&path, &mut never).unwrap().public(), plain.1);
    largest.push(b'\n');
    fs::write(&path, &largest).unwrap();
    let larger = Hotkey::load(&path, &mut never).unwrap_err();
    assert!(matches!(larger, WalletError::Keyfile { source: KeyfileError::TooLarge, .. }));
}

/// The bytes and public key of each plain file.
fn plain_files() -> &'static [(Vec<u8>, Digest)] {
    static FILES: OnceLock<Vec<(Vec<u8>, Digest)>> = OnceLock::new();
    let file = |(path, key): (PathBuf, Value)| {
        (fs::read(path).unwrap(), text(&key, "public_key").parse().unwrap())
    };
    let plain = |(_, key): &(PathBuf, Value)| !is_encrypted(key);
    FILES.get_or_init(|| keys().into_iter().filter(plain).map(file).collect())
}

/// A change to a file: where (in 65536ths of it), how many bytes go, and what comes instead.
type Change = (u16, u8, Vec<u8>);

fn change() -> impl Strategy<Value = Change> {
    let text = prop_oneof![
        Just(Vec::new()),
        any::<u8>().prop_map(|byte| vec![byte]),
        prop::sample::select(vec![&b"\""[..], b"null", b"0", b"\\u0030", b"{", b"}", b",", b":"])
            .prop_map(<[u8]>::to_vec),
    ];
    (any::<u16>(), prop_oneof![3 => 0u8..3, 1 => any::<u8>()], text)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A file of which little was changed is refused, or its key is still the one it was.
    #[test]
    fn a_changed_golden_file_is_refused_or_means_the_same(
        changes in collection::vec(change(), 1..4),
    ) {
        for (file, public) in plain_files() {
            let mut bytes = file.clone();
            for (at, gone, instead) in &changes {
                let at = usize::from(*at) * bytes.len() / 65536;
                let end = bytes.len().min(at + usize::from(*gone));
                bytes.splice(at..end, instead.iter().copied());
            }
            if let Ok(hotkey) = Hotkey::from_bytes(&bytes, &mut nobody) {
                prop_assert_eq!(hotkey.public(), *public);
            }
        }
    }

    #[test]
    fn any_bytes_are_a_key_file_or_an_error(
        start in prop::sample::select(vec![&b""[..], b"$NACL", b"{", b"{\"privateKey\":\"0x"]),
        rest in collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [start, &rest].concat();
        prop_assert!(Hotkey::from_bytes(&bytes, &mut nobody).is_err());
    }

    #[test]
    fn any_bytes_are_a_signature_or_an_error(
        key in any::<[u8; 32]>(),
        bytes in any::<[u8; SIGNATURE_BYTES]>(),
    ) {
        if let Ok(key) = PublicKey::from_bytes(key) {
            prop_assert_eq!(key.to_bytes(), key.to_digest().0);
            prop_assert!(key.verify(b"", &bytes).is_err());
        }
    }

    #[test]
    fn any_address_reads_back_or_is_an_error(key in any::<[u8; 32]>(), text in ".{0,60}") {
        prop_assert_eq!(ss58::decode(&ss58::encode(Digest(key))), Ok(Digest(key)));
        if let Ok(key) = ss58::decode(&text) {
            prop_assert_eq!(ss58::encode(key), text);
        }
    }
}
