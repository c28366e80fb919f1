//! Floats in hashed JSON: the bit pattern in hex, since decimal text has many spellings.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// An f32 that is stored as 8 lower-case hex digits, such as `3ecccccd` for 0.4.
#[derive(Clone, Copy, Debug)]
pub struct F32Bits(pub f32);

impl PartialEq for F32Bits {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for F32Bits {}

impl Serialize for F32Bits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:08x}", self.0.to_bits()))
    }
}

impl<'de> Deserialize<'de> for F32Bits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 8 || !text.bytes().all(lower_hex) {
            return Err(D::Error::custom(format!("{text:?} is not 8 lower-case hex digits")));
        }
        let bits = u32::from_str_radix(&text, 16).map_err(D::Error::custom)?;
        Ok(Self(f32::from_bits(bits)))
    }
}
