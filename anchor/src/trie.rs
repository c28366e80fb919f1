//! Reading a Substrate state proof: a value, or its proven absence, below a state root.
//!
//! The state is a Patricia trie of 4-bit nibbles whose nodes are hashed with BLAKE2b-256. A proof is
//! the set of nodes on the way, in any order. Both state versions are read: version 0 keeps values in
//! their nodes; version 1 keeps those above 32 bytes as nodes of their own, known by hash. The source
//! is the Polkadot specification (state trie) and `sp-trie`'s node codec; the bytes are in
//! `schema/anchor.md`.
//!
//! Trust: a node is believed because a hash leads to it, from the root on. Each lookup takes at most
//! a node for each nibble of its key.

use std::collections::BTreeMap;

use parity_scale_codec::{Compact, Decode};

use crate::hash::{Hash32, blake2b_256};

/// The longest child that stands in its parent: a longer one is known by hash.
const INLINE_BYTES_MAX: usize = 31;

/// Trie nodes that do not prove what is asked of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum TrieError {
    #[error("the proof has no node with hash {hash}")]
    Missing { hash: Hash32 },
    #[error("the proof has the node {hash} twice")]
    Twice { hash: Hash32 },
    #[error("the proof's node {hash} is on no way to a key that was asked for")]
    Unused { hash: Hash32 },
    #[error("a node ends early, or its lengths do not fit")]
    Short,
    #[error("a node goes on for {bytes} bytes after its end")]
    Long { bytes: usize },
    #[error("no node starts with the byte {byte:#04x}")]
    Kind { byte: u8 },
    #[error("a node's odd path starts with the padding nibble {found}, not 0")]
    Padding { found: u8 },
    #[error("a branch has no child")]
    Childless,
    #[error("a child of {bytes} bytes is neither a hash nor short enough to stand in its parent")]
    Child { bytes: usize },
}

/// The nodes of a proof, below one root.
pub struct Proof<'a> {
    root: Hash32,
    /// Bytes, and whether a lookup needed them.
    nodes: BTreeMap<Hash32, (&'a [u8], bool)>,
}

impl<'a> Proof<'a> {
    /// A proof below `root`.
    ///
    /// # Errors
    ///
    /// [`TrieError::Twice`] if a node is repeated.
    pub fn new<N: AsRef<[u8]>>(root: Hash32, nodes: &'a [N]) -> Result<Self, TrieError> {
        let mut known = BTreeMap::new();
        for bytes in nodes.iter().map(AsRef::as_ref) {
            let hash = blake2b_256(bytes);
            if known.insert(hash, (bytes, false)).is_some() {
                return Err(TrieError::Twice { hash });
            }
        }
        Ok(Self { root, nodes: known })
    }

    /// The value of `key`, or none where its absence is proven.
    ///
    /// # Errors
    ///
    /// [`TrieError`] if a node on the way is missing or malformed.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<&'a [u8]>, TrieError> {
        let (mut path, mut bytes) = (Nibbles::of(key), self.node(self.root)?);
        loop {
            let node = Node::decode(bytes)?;
            let Some(rest) = path.without(&node.path) else { return Ok(None) };
            let Some((nibble, rest)) = rest.split_first() else {
                return match node.value {
                    Some(Value::Inline(value)) => Ok(Some(value)),
                    Some(Value::Hashed(hash)) => self.node(hash).map(Some),
                    None => Ok(None),
                };
            };
            path = rest;
            bytes = match node.children[usize::from(nibble)] {
                None => return Ok(None),
                Some(child) => match <[u8; 32]>::try_from(child) {
                    Ok(hash) => self.node(Hash32(hash))?,
                    Err(_) => child,
                },
            };
        }
    }

    /// Checks that every node was needed, so that a proof has one form.
    ///
    /// # Errors
    ///
    /// [`TrieError::Unused`].
    pub fn finish(self) -> Result<(), TrieError> {
        let unused = self.nodes.into_iter().find(|(_, (_, used))| !used);
        unused.map_or(Ok(()), |(hash, _)| Err(TrieError::Unused { hash }))
    }

    fn node(&mut self, hash: Hash32) -> Result<&'a [u8], TrieError> {
        let (bytes, used) = self.nodes.get_mut(&hash).ok_or(TrieError::Missing { hash })?;
        *used = true;
        Ok(bytes)
    }
}

/// A run of nibbles within bytes, high nibble first.
#[derive(Clone, Copy)]
struct Nibbles<'a> {
    bytes: &'a [u8],
    /// The first nibble, counted from the bytes' start.
    start: usize,
}

impl<'a> Nibbles<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, start: 0 }
    }

    fn split_first(self) -> Option<(u8, Self)> {
        let byte = self.bytes.get(self.start / 2)?;
        let nibble = if self.start.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        Some((nibble, Self { start: self.start + 1, ..self }))
    }

    /// What follows `prefix`, if this starts so.
    fn without(mut self, prefix: &Self) -> Option<Self> {
        let mut prefix = *prefix;
        while let Some((expected, rest)) = prefix.split_first() {
            let (found, after) = self.split_first()?;
            if found != expected {
                return None;
            }
            (self, prefix) = (after, rest);
        }
        Some(self)
    }
}

enum Value<'a> {
    Inline(&'a [u8]),
    Hashed(Hash32),
}

/// A node: the empty trie has nothing, a leaf a value and no children.
struct Node<'a> {
    path: Nibbles<'a>,
    value: Option<Value<'a>>,
    /// Of each child 32 bytes of hash or, shorter, the node itself.
    children: [Option<&'a [u8]>; 16],
}

impl<'a> Node<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, TrieError> {
        let mut input = bytes;
        let node = Self::read(&mut input)?;
        if input.is_empty() { Ok(node) } else { Err(TrieError::Long { bytes: input.len() }) }
    }

    fn read(input: &mut &'a [u8]) -> Result<Self, TrieError> {
        let first = read_byte(input)?;
        // The kind stands in the top bits, the rest of the byte starts the path's length.
        let (kind_bits, branch, value) = match first {
            0 => {
                return Ok(Self { path: Nibbles::of(&[]), value: None, children: [None; 16] });
            }
            0x40..=0x7f => (2, false, Some(false)),
            0x80..=0xbf => (2, true, None),
            0xc0..=0xff => (2, true, Some(false)),
            0x20..=0x3f => (3, false, Some(true)),
            0x10..=0x1f => (4, true, Some(true)),
            byte => return Err(TrieError::Kind { byte }),
        };
        let path = read_path(first & (0xff >> kind_bits), 0xff >> kind_bits, input)?;
        let present = if branch { read_bitmap(input)? } else { 0 };
        let value = match value {
            None => None,
            Some(false) => Some(Value::Inline(read_bytes(input)?)),
            Some(true) => Some(Value::Hashed(read_hash(input)?)),
        };
        let mut children = [None; 16];
        for (at, child) in children.iter_mut().enumerate() {
            if present >> at & 1 == 1 {
                *child = Some(read_child(input)?);
            }
        }
        Ok(Self { path, value, children })
    }
}

/// A path of `length` nibbles, or of more where the first byte's share of the length is all ones.
fn read_path<'a>(length: u8, all_ones: u8, input: &mut &'a [u8]) -> Result<Nibbles<'a>, TrieError> {
    let mut nibbles = usize::from(length);
    let mut more = length == all_ones;
    while more {
        let byte = read_byte(input)?;
        nibbles += usize::from(byte);
        more = byte == 0xff;
    }
    let bytes = take(input, nibbles.div_ceil(2))?;
    let start = nibbles % 2;
    match bytes.first() {
        Some(first) if start == 1 && first >> 4 != 0 => {
            Err(TrieError::Padding { found: first >> 4 })
        }
        _ => Ok(Nibbles { bytes, start }),
    }
}

fn read_byte(input: &mut &[u8]) -> Result<u8, TrieError> {
    u8::decode(input).map_err(|_| TrieError::Short)
}

fn read_bitmap(input: &mut &[u8]) -> Result<u16, TrieError> {
    match u16::decode(input) {
        Ok(0) => Err(TrieError::Childless),
        Ok(bitmap) => Ok(bitmap),
        Err(_) => Err(TrieError::Short),
    }
}

fn read_child<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], TrieError> {
    let child = read_bytes(input)?;
    match child.len() {
        1..=INLINE_BYTES_MAX | 32 => Ok(child),
        bytes => Err(TrieError::Child { bytes }),
    }
}

fn read_hash(input: &mut &[u8]) -> Result<Hash32, TrieError> {
    <[u8; 32]>::decode(input).map(Hash32).map_err(|_| TrieError::Short)
}

/// A SCALE byte string.
fn read_bytes<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], TrieError> {
    let Compact(length) = Compact::<u32>::decode(input).map_err(|_| TrieError::Short)?;
    take(input, length as usize)
}

fn take<'a>(input: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], TrieError> {
    let (taken, rest) = input.split_at_checked(bytes).ok_or(TrieError::Short)?;
    *input = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The value of `key` below the first node, all nodes needed.
    fn get(nodes: &[Vec<u8>], key: &[u8]) -> Result<Option<Vec<u8>>, TrieError> {
        let mut proof = Proof::new(blake2b_256(&nodes[0]), nodes)?;
        let value = proof.get(key)?.map(<[u8]>::to_vec);
        proof.finish()?;
        Ok(value)
    }

    /// A leaf of state version 0: path of at most 62 nibbles, value in it.
    fn leaf(nibbles: u8, path: &[u8], value: &[u8]) -> Vec<u8> {
        [&[0x40 | nibbles], path, &[(value.len() as u8) << 2], value].concat()
    }

    #[test]
    fn a_lone_leaf_has_its_value_and_nothing_else() {
        let node = [leaf(4, &[0xab, 0xcd], b"v")];
        assert_eq!(get(&node, &[0xab, 0xcd]), Ok(Some(b"v".to_vec())));
        for absent in [&[0xab][..], &[0xab, 0xce], &[0xab, 0xcd, 0], &[]] {
            assert_eq!(get(&node, absent), Ok(None), "{absent:x?}");
        }
    }

    #[test]
    fn the_empty_trie_proves_every_absence() {
        assert_eq!(get(&[vec![0]], &[1, 2]), Ok(None));
        assert_eq!(get(&[vec![0]], &[]), Ok(None));
    }

    /// A branch with a value of its own, a child inside it and one known by hash.
    #[test]
    fn children_are_found_inside_their_parent_and_by_hash() {
        let inner = leaf(1, &[0x02], b"in");
        let outer = leaf(3, &[0x03, 0x45], &[7; 40]);
        let mut branch = vec![0xc2, 0xaa, 0b10_0010, 0, 4, b'b'];
        branch.extend([inner.len() as u8 * 4]);
        branch.extend(&inner);
        branch.push(128);
        branch.extend(blake2b_256(&outer).0);
        let nodes = [branch.clone(), outer];
        assert_eq!(get(&nodes[..1], &[0xaa]), Ok(Some(b"b".to_vec())));
        assert_eq!(get(&nodes[..1], &[0xaa, 0x12]), Ok(Some(b"in".to_vec())));
        assert_eq!(get(&nodes[..1], &[0xaa, 0x13]), Ok(None));
        assert_eq!(get(&nodes[..1], &[0xaa, 0x22]), Ok(None));
        assert_eq!(get(&nodes, &[0xaa, 0x53, 0x45]), Ok(Some(vec![7; 40])));
        let missing = TrieError::Missing { hash: blake2b_256(&nodes[1]) };
        assert_eq!(get(&nodes[..1], &[0xaa, 0x53, 0x45]), Err(missing));
        let unused = TrieError::Unused { hash: blake2b_256(&nodes[1]) };
        assert_eq!(get(&nodes, &[0xaa]), Err(unused));
    }

    #[test]
    fn a_hashed_value_is_a_node_of_the_proof() {
        let value = vec![9; 33];
        let leaf = [&[0x22, 0xab][..], &blake2b_256(&value).0].concat();
        assert_eq!(get(&[leaf.clone(), value.clone()], &[0xab]), Ok(Some(value.clone())));
        let missing = TrieError::Missing { hash: blake2b_256(&value) };
        assert_eq!(get(&[leaf], &[0xab]), Err(missing));
    }

    #[test]
    fn long_paths_spill_into_further_bytes() {
        for nibbles in [62usize, 63, 64, 63 + 254, 63 + 255, 63 + 256, 1000] {
            let key = vec![0x5a; nibbles.div_ceil(2)];
            let (length, mut path) = (nibbles, key.clone());
            if nibbles % 2 == 1 {
                path[0] &= 15;
            }
            let mut node = vec![0x40 | length.min(63) as u8];
            if length >= 63 {
                node.extend(vec![255; (length - 63) / 255]);
                node.push(((length - 63) % 255) as u8);
            }
            node.extend(&path);
            node.extend([4, 1]);
            let decoded = Node::decode(&node).unwrap();
            let mut count = 0;
            let mut rest = decoded.path;
            while let Some((_, after)) = rest.split_first() {
                (count, rest) = (count + 1, after);
            }
            assert_eq!(count, nibbles);
        }
    }

    #[test]
    fn malformed_nodes_are_named() {
        let one = |bytes: &[u8]| Node::decode(bytes).map(|_| ()).unwrap_err();
        assert_eq!(one(&[]), TrieError::Short);
        assert_eq!(one(&[0, 0]), TrieError::Long { bytes: 1 });
        for byte in 1..0x10 {
            assert_eq!(one(&[byte]), TrieError::Kind { byte });
        }
        assert_eq!(one(&[0x41, 0xa1, 0]), TrieError::Padding { found: 10 });
        assert_eq!(one(&[0x80, 0, 0]), TrieError::Childless);
        assert_eq!(one(&[0x80, 1, 0, 0]), TrieError::Child { bytes: 0 });
        let child = [&[0x80, 1, 0, 33 << 2][..], &[0; 33]].concat();
        assert_eq!(one(&child), TrieError::Child { bytes: 33 });
        assert_eq!(one(&[0x40, 0xfe, 0xff, 0xff, 0xff]), TrieError::Short);
        let twice = [vec![0], vec![0]];
        assert!(matches!(Proof::new(blake2b_256(&[0]), &twice), Err(TrieError::Twice { .. })));
    }

    proptest! {
        #[test]
        fn no_node_panics(nodes: Vec<Vec<u8>>, first: Vec<u8>, key: Vec<u8>) {
            let nodes: Vec<_> = std::iter::once(first).chain(nodes).collect();
            let _ = get(&nodes, &key);
        }
    }
}
