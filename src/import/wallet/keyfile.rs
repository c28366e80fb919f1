//! The JSON of a key file, and how its parts have to agree.

use std::{fmt, io};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, Visitor},
};
use zeroize::Zeroizing;

use super::{FILE_BYTES_MAX, encrypted::Legacy};
use crate::{
    codec::{
        sr25519::{KeyError, PUBLIC_BYTES, SECRET_BYTES, SEED_BYTES, SecretKey},
        ss58::{self, Ss58Error},
    },
    types::digest::Digest,
};

/// What `cryptoType` says of sr25519, and what a file without it means.
const SR25519: u64 = 1;

/// A key file that is refused. None of these holds anything secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyfileError {
    /// No key file is that long.
    #[error("longer than {FILE_BYTES_MAX} bytes: not a key file")]
    TooLarge,
    /// Encrypted as old wallets did.
    #[error(
        "encrypted the old way ({method}), which is not read here; let Bittensor's wallet encrypt it \
         anew: python -c \"from bittensor_wallet import Keyfile; \
         Keyfile('PATH').check_and_update_encryption()\""
    )]
    Legacy {
        /// Which way.
        method: Legacy,
    },
    /// Neither a JSON object nor any known encryption.
    #[error("not a Bittensor key file: it starts neither as a JSON object nor with `$NACL`")]
    NotAKeyfile,
    /// Encrypted, but cut off.
    #[error("cut off: {found} bytes, an encrypted key file has more than {least}")]
    Truncated {
        /// How many there are.
        found: usize,
        /// Tag, nonce and authenticator.
        least: usize,
    },
    /// The file is encrypted, and no password was to be had.
    #[error("encrypted, and there is no password: {source}")]
    NoPassword {
        /// What the one who was asked said.
        source: io::Error,
    },
    /// Deriving a key from a password takes much memory, by intent.
    #[error("no {mib} MiB of memory, which opening an encrypted key file takes")]
    Memory {
        /// How much it takes.
        mib: u32,
    },
    /// The authenticator does not fit: a wrong password looks as a changed file does.
    #[error("the password is wrong, or the file is damaged")]
    WrongPassword,
    /// Not JSON, a member named twice, or a value of a wrong kind.
    #[error("line {line}, column {column}: not the JSON of a key file")]
    Malformed {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// A member that should be bytes in hex.
    #[error("`{field}` is not {bytes} bytes in hex")]
    NotHex {
        /// Its name.
        field: &'static str,
        /// How long it should be.
        bytes: usize,
    },
    /// A key of another signature scheme.
    #[error(
        "`cryptoType` is {found}{}: a hotkey that signs here is sr25519, type {SR25519}",
        if *.found == 0 { ", an ed25519 key" } else { "" }
    )]
    Scheme {
        /// What the file says.
        found: u64,
    },
    /// A phrase alone is not turned into a key here.
    #[error(
        "only a phrase, no `privateKey` or `secretSeed`; make the hotkey file anew from the phrase: \
         btcli wallet regen-hotkey"
    )]
    PhraseOnly,
    /// Public parts alone cannot sign.
    #[error(
        "no `privateKey` or `secretSeed`: nothing to sign with. A file named `...pub.txt` is the \
         public half; name the hotkey file itself"
    )]
    NoSecret,
    /// The private key is not one.
    #[error("`privateKey`: {source}")]
    PrivateKey {
        /// Why.
        source: KeyError,
    },
    /// The seed makes another key than the private key beside it.
    #[error("`secretSeed` and `privateKey` are of two different keys")]
    OtherSeed,
    /// The secret does not belong to a public part beside it.
    #[error("`{field}` is that of {stated}, but the secret is that of {derived}")]
    OtherKey {
        /// The member's name.
        field: &'static str,
        /// The public key that it states.
        stated: Digest,
        /// The secret's public key.
        derived: Digest,
    },
    /// The address is not one.
    #[error("`ss58Address` is not an address: {source}")]
    Address {
        /// Why.
        source: Ss58Error,
    },
}

/// The members that mean something here; `null` is as if absent, others are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    private_key: Option<Hex<SECRET_BYTES>>,
    secret_seed: Option<Hex<SEED_BYTES>>,
    // Not copied: only whether it is there counts.
    secret_phrase: Option<IgnoredAny>,
    public_key: Option<Hex<PUBLIC_BYTES>>,
    account_id: Option<Hex<PUBLIC_BYTES>>,
    ss58_address: Option<String>,
    crypto_type: Option<u64>,
}

/// The secret of a plain key file, which is known to belong to the public parts beside it.
pub(super) fn secret(json: &[u8]) -> Result<SecretKey, KeyfileError> {
    // serde would read the members from a list as well.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(KeyfileError::NotAKeyfile);
    }
    // serde's message is left out: it may quote a value.
    let malformed =
        |e: serde_json::Error| KeyfileError::Malformed { line: e.line(), column: e.column() };
    let members: Members = serde_json::from_slice(json).map_err(malformed)?;
    let scheme = members.crypto_type.unwrap_or(SR25519);
    if scheme != SR25519 {
        return Err(KeyfileError::Scheme { found: scheme });
    }
    let secret = members.secret()?;
    members.check(secret.public().to_digest())?;
    Ok(secret)
}

impl Members {
    /// The private key; where there is none, the one that the seed makes.
    fn secret(&self) -> Result<SecretKey, KeyfileError> {
        let private = bytes("privateKey", &self.private_key)?;
        let seed = bytes("secretSeed", &self.secret_seed)?.map(SecretKey::from_seed);
        let Some(private) = private else {
            return seed.ok_or(match self.secret_phrase {
                Some(_) => KeyfileError::PhraseOnly,
                None => KeyfileError::NoSecret,
            });
        };
        let private =
            SecretKey::from_bytes(private).map_err(|source| KeyfileError::PrivateKey { source })?;
        match seed {
            Some(seed) if seed.public() != private.public() => Err(KeyfileError::OtherSeed),
            _ => Ok(private),
        }
    }

    /// Whether all public parts are those of `derived`.
    fn check(&self, derived: Digest) -> Result<(), KeyfileError> {
        let same = |field, stated| {
            if stated == derived {
                return Ok(());
            }
            Err(KeyfileError::OtherKey { field, stated, derived })
        };
        for (field, key) in [("publicKey", &self.public_key), ("accountId", &self.account_id)] {
            if let Some(key) = bytes(field, key)? {
                same(field, Digest(*key))?;
            }
        }
        if let Some(address) = &self.ss58_address {
            let key = ss58::decode(address).map_err(|source| KeyfileError::Address { source })?;
            same("ss58Address", key)?;
        }
        Ok(())
    }
}

/// `N` bytes in hex, with `0x` or without; none if the text is something else.
struct Hex<const N: usize>(Option<Zeroizing<[u8; N]>>);

/// The bytes of a member, if the file has it.
fn bytes<'a, const N: usize>(
    field: &'static str,
    member: &'a Option<Hex<N>>,
) -> Result<Option<&'a [u8; N]>, KeyfileError> {
    match member {
        None => Ok(None),
        Some(Hex(Some(bytes))) => Ok(Some(bytes)),
        Some(Hex(None)) => Err(KeyfileError::NotHex { field, bytes: N }),
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text<const N: usize>;

        impl<const N: usize> Visitor<'_> for Text<N> {
            type Value = Hex<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{N} bytes in hex")
            }

            // From the parser's own text, so that no copy of a secret is left in a string.
            fn visit_str<E: Error>(self, text: &str) -> Result<Hex<N>, E> {
                let digits = text.strip_prefix("0x").unwrap_or(text);
                let mut bytes = Zeroizing::new([0; N]);
                let read = hex::decode_to_slice(digits, &mut *bytes);
                Ok(Hex(read.ok().map(|()| bytes)))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        format!("0x{}", hex::encode(bytes))
    }

    /// A good file, with what a test changes in it; `null` stands for absent.
    fn with(changes: &Value) -> Result<SecretKey, KeyfileError> {
        let key = SecretKey::from_seed(&[7; 32]);
        let public = key.public().to_digest();
        let mut file = json!({
            "accountId": hex(&public.0),
            "publicKey": hex(&public.0),
            "privateKey": hex(&*key.to_bytes()),
            "secretSeed": hex(&[7; 32]),
            "secretPhrase": "bottom drive",
            "ss58Address": ss58::encode(public),
            "cryptoType": 1,
        });
        for (name, value) in changes.as_object().unwrap() {
            file[name] = value.clone();
        }
        secret(file.to_string().as_bytes())
    }

    fn refused(changes: Value) -> KeyfileError {
        with(&changes).unwrap_err()
    }

    #[test]
    fn each_part_may_be_missing_if_a_secret_is_there() {
        let public = SecretKey::from_seed(&[7; 32]).public();
        for name in ["accountId", "publicKey", "privateKey", "secretSeed", "ss58Address"] {
            assert_eq!(with(&json!({ name: null })).unwrap().public(), public, "{name}");
        }
        let uri = json!({ "secretPhrase": null, "secretSeed": null, "cryptoType": null });
        assert_eq!(with(&uri).unwrap().public(), public);
        assert_eq!(with(&json!({ "more": [{}] })).unwrap().public(), public);
        let bare = hex::encode_upper([7; 32]);
        assert_eq!(with(&json!({ "secretSeed": bare })).unwrap().public(), public);
    }

    #[test]
    fn parts_of_two_keys_are_refused() {
        let other = SecretKey::from_seed(&[8; 32]);
        let public = other.public().to_digest();
        for field in ["publicKey", "accountId"] {
            let found = refused(json!({ field: hex(&public.0) }));
            assert!(matches!(found, KeyfileError::OtherKey { field: f, .. } if f == field));
        }
        let found = refused(json!({ "ss58Address": ss58::encode(public) }));
        assert!(matches!(found, KeyfileError::OtherKey { field: "ss58Address", .. }));
        let found = refused(json!({ "secretSeed": hex(&[8; 32]) }));
        assert!(matches!(found, KeyfileError::OtherSeed));
        let private = hex(&*other.to_bytes());
        let found = refused(json!({ "privateKey": private, "secretSeed": null }));
        assert!(matches!(found, KeyfileError::OtherKey { field: "publicKey", .. }));
    }

    #[test]
    fn a_file_that_cannot_sign_says_what_to_do() {
        let found = refused(json!({ "privateKey": null, "secretSeed": null }));
        assert!(matches!(found, KeyfileError::PhraseOnly), "{found}");
        let none = json!({ "privateKey": null, "secretSeed": null, "secretPhrase": null });
        assert!(matches!(refused(none), KeyfileError::NoSecret));
        let found = refused(json!({ "cryptoType": 0 }));
        assert!(found.to_string().contains("an ed25519 key"), "{found}");
        let found = refused(json!({ "cryptoType": 2 }));
        assert!(matches!(found, KeyfileError::Scheme { found: 2 }), "{found}");
    }

    #[test]
    fn malformed_parts_are_named() {
        for (field, value) in [
            ("privateKey", json!("0x00")),
            ("privateKey", json!("")),
            ("secretSeed", json!("zz".repeat(32))),
            ("publicKey", json!("0x0x".repeat(17))),
            ("accountId", json!("é".repeat(32))),
        ] {
            let found = refused(json!({ field: value }));
            assert!(matches!(found, KeyfileError::NotHex { field: f, .. } if f == field));
        }
        let found = refused(json!({ "privateKey": hex(&[255; 64]) }));
        assert!(matches!(found, KeyfileError::PrivateKey { source: KeyError::NotAScalar }));
        let found = refused(json!({ "privateKey": hex(&[0; 64]), "secretSeed": null }));
        assert!(matches!(found, KeyfileError::PrivateKey { source: KeyError::Nobody }));
        assert!(matches!(refused(json!({ "ss58Address": "5" })), KeyfileError::Address { .. }));
        for value in [json!(1), json!({}), json!([1])] {
            let found = refused(json!({ "privateKey": value }));
            assert!(matches!(found, KeyfileError::Malformed { line: 1, .. }));
        }
    }

    #[test]
    fn other_texts_are_not_key_files() {
        for text in ["", " ", "[null]", "\"x\"", "5Grwva", "\u{feff}{}"] {
            let found = secret(text.as_bytes()).unwrap_err();
            assert!(matches!(found, KeyfileError::NotAKeyfile), "{text:?}");
        }
        let deep = format!("{{\"x\":{}", "[".repeat(60_000));
        let twice = r#"{"privateKey":null,"privateKey":null}"#;
        for text in ["{", "{}x", "{\"privateKey\":", "{\"cryptoType\":-1}", &deep, twice] {
            let found = secret(text.as_bytes()).unwrap_err();
            assert!(matches!(found, KeyfileError::Malformed { .. }), "{found}");
        }
    }

    #[test]
    fn no_error_shows_a_secret() {
        let seed = "5eed".repeat(16);
        let texts = [
            format!(r#"{{"secretSeed":"{seed}"#),
            format!(r#"{{"secretSeed":"{seed}","secretSeed":"{seed}"}}"#),
            format!(r#"{{"secretSeed":"x{seed}"}}"#),
            format!(r#"{{"cryptoType":"{seed}"}}"#),
            format!(r#"{{"secretSeed":"{seed}","publicKey":"{}"}}"#, "00".repeat(32)),
            format!(r#"{{"privateKey":"{}"}}"#, "f5eed5ee".repeat(16)),
            format!(r#"{{"secretPhrase":"{seed}"}}"#),
        ];
        for text in texts {
            let found = secret(text.as_bytes()).unwrap_err();
            assert!(!format!("{found} {found:?}").contains("5eed5eed"), "{found:?}");
        }
    }
}
