//! Whether Parquet's metadata has the shape that its decoder takes for granted.
//!
//! Parquet 60 takes a field by its number, whatever its type, and passes over a list of booleans
//! without a byte for each, however many it claims: a file of 400 bytes keeps it busy for a minute.
//! So each struct is walked first. A field that the decoder knows has the type it expects; what it
//! passes over has a byte at least for each element, and no lists of booleans, no maps. Then the
//! decoder takes the same steps, and no more of them than there are bytes.
//!
//! Source: the Thrift compact protocol (`thrift/doc/specs/thrift-compact-protocol.md`) and
//! `parquet.thrift` of parquet-format 2.12.

/// What a field holds.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    Bool,
    /// A number of 16, 32 or 64 bits; all are written alike.
    I16,
    I32,
    I64,
    Double,
    Binary,
    Struct(Fields),
    List(&'static Shape),
}

use Shape::{Binary, Bool, Double, I16, I32, I64, List, Struct};

/// The fields of a struct that the decoder knows, by their number.
pub(super) type Fields = &'static [(i16, Shape)];

/// `FileMetaData`; the schema is given to the decoder, which passes over the file's.
pub(super) const FILE: Fields = &[
    (1, I32),
    (3, I64),
    (4, List(&Struct(ROW_GROUP))),
    (5, List(&Struct(KEY_VALUE))),
    (6, Binary),
    (7, List(&Struct(COLUMN_ORDER))),
];

/// `OffsetIndex`.
pub(super) const OFFSET_INDEX: Fields = &[(1, List(&Struct(PAGE_LOCATION))), (2, List(&I64))];

/// `PageHeader`.
const PAGE: Fields = &[
    (1, I32),
    (2, I32),
    (PAGE_BYTES, I32),
    (4, I32),
    (5, Struct(DATA_PAGE)),
    (6, Struct(&[])),
    (7, Struct(&[(1, I32), (2, I32), (3, Bool)])),
    (8, Struct(DATA_PAGE_2)),
];
/// `PageHeader.compressed_page_size`.
const PAGE_BYTES: i16 = 3;

const ROW_GROUP: Fields = &[
    (1, List(&Struct(COLUMN_CHUNK))),
    (2, I64),
    (3, I64),
    (4, List(&Struct(&[(1, I32), (2, Bool), (3, Bool)]))),
    (5, I64),
    (6, I64),
    (7, I16),
];
const COLUMN_CHUNK: Fields =
    &[(1, Binary), (2, I64), (3, Struct(COLUMN)), (4, I64), (5, I32), (6, I64), (7, I32)];
const COLUMN: Fields = &[
    (1, I32),
    (2, List(&I32)),
    (3, List(&Binary)),
    (4, I32),
    (5, I64),
    (6, I64),
    (7, I64),
    (8, List(&Struct(KEY_VALUE))),
    (9, I64),
    (10, I64),
    (11, I64),
    (12, Struct(STATISTICS)),
    (13, List(&Struct(&[(1, I32), (2, I32), (3, I32)]))),
    (14, I64),
    (15, I32),
    (16, Struct(&[(1, I64), (2, List(&I64)), (3, List(&I64))])),
    (17, Struct(&[(1, Struct(BOUNDING_BOX)), (2, List(&I32))])),
];
const STATISTICS: Fields = &[
    (1, Binary),
    (2, Binary),
    (3, I64),
    (4, I64),
    (5, Binary),
    (6, Binary),
    (7, Bool),
    (8, Bool),
    (9, I64),
];
const BOUNDING_BOX: Fields = &[
    (1, Double),
    (2, Double),
    (3, Double),
    (4, Double),
    (5, Double),
    (6, Double),
    (7, Double),
    (8, Double),
];
const KEY_VALUE: Fields = &[(1, Binary), (2, Binary)];
const COLUMN_ORDER: Fields = &[(1, Struct(&[])), (2, Struct(&[])), (3, Struct(&[]))];
const PAGE_LOCATION: Fields = &[(1, I64), (2, I32), (3, I64)];
const DATA_PAGE: Fields = &[(1, I32), (2, I32), (3, I32), (4, I32), (5, Struct(STATISTICS))];
const DATA_PAGE_2: Fields = &[
    (1, I32),
    (2, I32),
    (3, I32),
    (4, I32),
    (5, I32),
    (6, I32),
    (7, Bool),
    (8, Struct(STATISTICS)),
];

/// How deep structs and lists lie in each other at most; ours do eight deep.
const DEPTH_MAX: u32 = 24;

/// Most bytes of a number of 64 bits, and of a list's length, which has 32.
const NUMBER_BYTES_MAX: u32 = 10;
const LENGTH_BYTES_MAX: u32 = 5;

/// How many elements the list claims that is a struct's first field.
pub(super) fn first_list_claims(bytes: &[u8]) -> Option<u64> {
    let mut walk = Walk { rest: bytes };
    walk.byte()?;
    walk.list_header().map(|(_, claimed)| claimed)
}

/// Whether `bytes` begin with such a struct.
pub(super) fn is_sound(bytes: &[u8], fields: Fields) -> bool {
    Walk { rest: bytes }.structure(fields, DEPTH_MAX, &mut |_, _| {}).is_some()
}

/// Whether a column chunk is one page after the other, each behind a header.
pub(super) fn pages_are_sound(chunk: &[u8]) -> bool {
    let mut walk = Walk { rest: chunk };
    while !walk.rest.is_empty() {
        let mut page_bytes = None;
        let header = walk.structure(PAGE, DEPTH_MAX, &mut |field, number| {
            if field == PAGE_BYTES {
                page_bytes = usize::try_from(number).ok();
            }
        });
        if header.and(page_bytes).and_then(|bytes| walk.take(bytes)).is_none() {
            return false;
        }
    }
    true
}

/// A type as it is written: four bits in front of a field or a list.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Written(u8);

impl Written {
    const STOP: Self = Self(0);
    const TRUE: Self = Self(1);
    const FALSE: Self = Self(2);
    const BYTE: Self = Self(3);
    const DOUBLE: Self = Self(7);
    const BINARY: Self = Self(8);
    const LIST: Self = Self(9);
    const SET: Self = Self(10);
    const STRUCT: Self = Self(12);
    const UUID: Self = Self(13);

    const fn of(byte: u8) -> Self {
        Self(byte & 15)
    }

    const fn is(self, shape: Shape) -> bool {
        match shape {
            Bool => matches!(self, Self::TRUE | Self::FALSE),
            I16 => self.0 == 4,
            I32 => self.0 == 5,
            I64 => self.0 == 6,
            Double => matches!(self, Self::DOUBLE),
            Binary => matches!(self, Self::BINARY),
            Struct(_) => matches!(self, Self::STRUCT),
            List(_) => matches!(self, Self::LIST),
        }
    }
}

/// What is left to walk over. Every step is None where it does not find what it should.
struct Walk<'a> {
    rest: &'a [u8],
}

impl Walk<'_> {
    fn take(&mut self, bytes: usize) -> Option<()> {
        self.rest = self.rest.get(bytes..)?;
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    /// Seven bits a byte, low ones first, in so many bytes at most.
    fn varint(&mut self, bytes_max: u32) -> Option<u64> {
        let mut number = 0;
        for at in 0..bytes_max {
            let byte = self.byte()?;
            number |= u64::from(byte & 127) << (7 * at);
            if byte < 128 {
                return Some(number);
            }
        }
        None
    }

    /// As [`Walk::varint`], the sign in the lowest bit.
    fn number(&mut self) -> Option<i64> {
        let number = self.varint(NUMBER_BYTES_MAX)?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// Tells `number` of each of its fields that is one.
    fn structure(
        &mut self,
        fields: Fields,
        depth: u32,
        number: &mut dyn FnMut(i16, i64),
    ) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        let mut id = 0i16;
        loop {
            let header = self.byte()?;
            let written = Written::of(header);
            if written == Written::STOP {
                return Some(());
            }
            id = match header >> 4 {
                0 => self.number()? as i16,
                further => id.checked_add(i16::from(further))?,
            };
            let shape = fields.iter().find(|(known, _)| *known == id).map(|(_, shape)| *shape);
            if shape.is_some_and(|shape| !written.is(shape)) {
                return None;
            }
            match written {
                // The type is the value.
                Written::TRUE | Written::FALSE => {}
                Written(4..=6) => number(id, self.number()?),
                _ => self.value(written, shape, depth)?,
            }
        }
    }

    /// A value of which the type has been read, by its shape if that is known.
    fn value(&mut self, written: Written, shape: Option<Shape>, depth: u32) -> Option<()> {
        match written {
            Written::BYTE => self.take(1),
            Written(4..=6) => self.varint(NUMBER_BYTES_MAX).map(|_| ()),
            Written::DOUBLE => self.take(8),
            Written::UUID => self.take(16),
            Written::BINARY => {
                let bytes = self.varint(NUMBER_BYTES_MAX)?;
                self.take(usize::try_from(bytes).ok()?)
            }
            Written::LIST | Written::SET => {
                let element = match shape {
                    Some(List(element)) => Some(*element),
                    _ => None,
                };
                self.list(element, depth)
            }
            Written::STRUCT => {
                let fields = match shape {
                    Some(Struct(fields)) => fields,
                    _ => &[],
                };
                self.structure(fields, depth, &mut |_, _| {})
            }
            // Booleans as elements, maps, and what is no type.
            _ => None,
        }
    }

    /// The type of a list's elements, and how many it claims.
    fn list_header(&mut self) -> Option<(Written, u64)> {
        let header = self.byte()?;
        let claimed = match header >> 4 {
            15 => self.varint(LENGTH_BYTES_MAX)?,
            short => u64::from(short),
        };
        Some((Written::of(header), claimed))
    }

    fn list(&mut self, element: Option<Shape>, depth: u32) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        let (written, claimed) = self.list_header()?;
        let expected = element.is_none_or(|element| written.is(element));
        if claimed == 0 {
            return Some(());
        }
        if !expected || claimed > self.rest.len() as u64 {
            return None;
        }
        (0..claimed).try_for_each(|_| self.value(written, element, depth))
    }
}

#[cfg(test)]
mod tests {
    use super::{FILE, OFFSET_INDEX, is_sound, pages_are_sound};

    #[test]
    fn what_the_decoder_would_trust_is_refused() {
        // version 1, no row groups.
        assert!(is_sound(&[0x15, 2, 0x39, 0x0c, 0], FILE));
        // A field beyond those known: a number, a list of two numbers, a struct with a truth.
        for unknown in [&[0x05, 90, 4, 0][..], &[0x09, 90, 0x25, 2, 4, 0], &[0x0c, 90, 0x11, 0, 0]]
        {
            assert!(is_sound(unknown, FILE), "{unknown:?}");
        }
        // Two thousand million truths in a list, in one within a list, in a set; a map.
        let many = [0xff, 0xff, 0xff, 0xff, 0x07];
        for list in [&[0x09, 90, 0xf1][..], &[0x09, 90, 0x19, 0xf2], &[0x0a, 90, 0xf1], &[0x0b, 90]]
        {
            assert!(!is_sound(&[list, &many, &[0; 64]].concat(), FILE), "{list:?}");
        }
        // A known number that is a list, a known list of other things.
        assert!(!is_sound(&[0x19, 0x15, 2, 0], FILE));
        assert!(!is_sound(&[0x19, 0x15, 2, 0], OFFSET_INDEX));
        // More elements than bytes, more bytes than there are, no end, one in another for ever.
        assert!(!is_sound(&[0x09, 90, 0xf5, 9, 2, 2, 0], FILE));
        assert!(!is_sound(&[0x08, 90, 9, 0, 0], FILE));
        assert!(!is_sound(&[0x15, 2], FILE));
        assert!(!is_sound(&[0x0c, 90].repeat(1000), FILE));
    }

    #[test]
    fn pages_follow_each_other() {
        // A page of three bytes: type, both sizes.
        let page = [0x15, 0, 0x15, 6, 0x15, 6, 0, 7, 7, 7];
        assert!(pages_are_sound(&[]) && pages_are_sound(&page.repeat(3)));
        assert!(!pages_are_sound(&page.repeat(3)[..29]));
        // No size, a size below nothing.
        assert!(!pages_are_sound(&[0x15, 0, 0]));
        assert!(!pages_are_sound(&[0x15, 0, 0x15, 6, 0x15, 1, 0]));
    }
}
