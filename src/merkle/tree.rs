//! RFC 6962 trees over SHA-256: roots, proofs, and their verification.
//!
//! A tree is known by its size and the hashes of its *perfect subtrees*: node `index` of `level`
//! covers the `2^level` leaves from `index << level`. [`TreeBuilder`] grows a tree holding only its
//! right edge; [`Nodes`] is where proofs take their hashes from. See `schema/merkle.md`.
//!
//! Trust: indices, sizes and proofs come from strangers; any value gives an error at worst.

use std::convert::Infallible;

use crate::types::digest::Digest;

/// Most leaves of a tree that is built: a bound that no overflow comes near.
pub const LEAVES_MAX: u64 = 1 << 62;

/// `SHA-256(00 || entry)`.
pub fn leaf_hash(entry: &[u8]) -> Digest {
    let mut bytes = Vec::with_capacity(1 + entry.len());
    bytes.push(0);
    bytes.extend_from_slice(entry);
    Digest::of(&bytes)
}

/// `SHA-256(01 || left || right)`.
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    let mut bytes = [1; 1 + 2 * Digest::BYTES];
    bytes[1..=Digest::BYTES].copy_from_slice(left.as_bytes());
    bytes[1 + Digest::BYTES..].copy_from_slice(right.as_bytes());
    Digest::of(&bytes)
}

/// The root of the tree without leaves: `SHA-256("")`.
pub fn empty_root() -> Digest {
    Digest::of(b"")
}

/// The root of the tree with these leaf hashes.
pub fn root_of(leaves: &[Digest]) -> Digest {
    let mut tree = TreeBuilder::new();
    for leaf in leaves {
        tree.push(*leaf);
    }
    tree.root()
}

/// A tree of another size than its edge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum EdgeError {
    #[error("a tree of {size} leaves has {expected} hashes on its right edge, not {found}")]
    Count { size: u64, expected: u32, found: usize },
    #[error("a tree has at most {LEAVES_MAX} leaves, not {size}")]
    Size { size: u64 },
}

/// A tree that grows at its right end. Memory: a digest for each bit set in its size.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TreeBuilder {
    size: u64,
    /// Roots of the perfect subtrees that the tree is made of, the largest and leftmost first.
    edge: Vec<Digest>,
}

impl TreeBuilder {
    /// The tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tree of `size` leaves with this right edge, as [`Self::edge`] gave it.
    ///
    /// # Errors
    ///
    /// [`EdgeError`] if the edge has another length than the size asks for.
    pub fn restore(size: u64, edge: Vec<Digest>) -> Result<Self, EdgeError> {
        if size > LEAVES_MAX {
            return Err(EdgeError::Size { size });
        }
        let (expected, found) = (size.count_ones(), edge.len());
        if expected as usize != found {
            return Err(EdgeError::Count { size, expected, found });
        }
        Ok(Self { size, edge })
    }

    /// The tree of the first `size` leaves below `nodes`.
    ///
    /// # Errors
    ///
    /// [`ProveError`] if a node cannot be had.
    pub fn load<N: Nodes>(size: u64, nodes: &N) -> Result<Self, ProveError<N::Error>> {
        if size > LEAVES_MAX {
            return Err(ProveError::Size { size });
        }
        Ok(Self { size, edge: subtree_hashes(nodes, 0, size)? })
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Digest) {
        self.push_with(leaf, |_, _, _| {});
    }

    /// Adds a leaf and hands each perfect subtree that it completes, itself first, to `made` as
    /// level, index and hash.
    ///
    /// # Panics
    ///
    /// At [`LEAVES_MAX`] leaves.
    pub fn push_with(&mut self, leaf: Digest, mut made: impl FnMut(u8, u64, Digest)) {
        assert!(self.size < LEAVES_MAX, "a tree has at most {LEAVES_MAX} leaves");
        let (mut level, mut index, mut hash) = (0, self.size, leaf);
        made(level, index, hash);
        while index & 1 == 1 {
            let left = self.edge.pop().expect("a bit set in the size has its hash on the edge");
            hash = node_hash(&left, &hash);
            (level, index) = (level + 1, index >> 1);
            made(level, index, hash);
        }
        self.edge.push(hash);
        self.size += 1;
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes at [`edge_nodes`] of the size.
    pub fn edge(&self) -> &[Digest] {
        &self.edge
    }

    /// The root.
    pub fn root(&self) -> Digest {
        join(&self.edge)
    }
}

/// The root over neighbouring perfect subtrees of falling size.
fn join(subtrees: &[Digest]) -> Digest {
    let root = subtrees.iter().rev().copied().reduce(|right, left| node_hash(&left, &right));
    root.unwrap_or_else(empty_root)
}

/// Level and index of the perfect subtrees that a tree of `size` leaves is made of, leftmost first.
pub fn edge_nodes(size: u64) -> impl Iterator<Item = (u8, u64)> {
    let set = move |level: &u8| size >> level & 1 == 1;
    (0..64u8).rev().filter(set).map(move |level| (level, (size >> level) - 1))
}

/// Where the hashes of perfect subtrees come from: memory, tiles, a remote log.
pub trait Nodes {
    /// Why a hash cannot be had.
    type Error;

    /// The hash over the `2^level` leaves from `index << level`.
    ///
    /// # Errors
    ///
    /// If it cannot be had.
    fn node(&self, level: u8, index: u64) -> Result<Digest, Self::Error>;
}

/// The perfect subtrees of a small tree, all in memory: two digests a leaf.
#[derive(Clone, Debug, Default)]
pub struct MemoryNodes {
    levels: Vec<Vec<Digest>>,
}

/// A perfect subtree that a tree does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tree has no node {index} at level {level}")]
#[allow(missing_docs)] // Fields are named by their messages.
pub struct NoNode {
    pub level: u8,
    pub index: u64,
}

impl MemoryNodes {
    /// The nodes over these leaf hashes.
    pub fn of(leaves: &[Digest]) -> Self {
        let mut levels = Vec::<Vec<Digest>>::new();
        let mut tree = TreeBuilder::new();
        for leaf in leaves {
            tree.push_with(*leaf, |level, _, hash| {
                let level = usize::from(level);
                if level == levels.len() {
                    levels.push(Vec::new());
                }
                levels[level].push(hash);
            });
        }
        Self { levels }
    }
}

impl Nodes for MemoryNodes {
    type Error = NoNode;

    fn node(&self, level: u8, index: u64) -> Result<Digest, NoNode> {
        let hash = usize::try_from(index)
            .ok()
            .and_then(|at| self.levels.get(usize::from(level))?.get(at))
            .copied();
        hash.ok_or(NoNode { level, index })
    }
}

/// A proof that cannot be made. `E` is what the nodes' source says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ProveError<E = Infallible> {
    #[error("leaf {index} is not in a tree of {size} leaves")]
    Index { index: u64, size: u64 },
    #[error("no tree of {size1} leaves grows to one of {size2}")]
    Sizes { size1: u64, size2: u64 },
    #[error("a tree has at most {LEAVES_MAX} leaves, not {size}")]
    Size { size: u64 },
    #[error(transparent)]
    Node(#[from] E),
}

/// The root of the first `size` leaves below `nodes`.
///
/// # Errors
///
/// What the nodes' source says.
pub fn root_at<N: Nodes>(size: u64, nodes: &N) -> Result<Digest, N::Error> {
    range_root(nodes, 0, size)
}

/// The proof that leaf `index` is in the tree of `size` leaves, the leaf's sibling first.
///
/// # Errors
///
/// [`ProveError::Index`] if it is not; otherwise what the nodes' source says.
///
/// # Source
///
/// RFC 6962, section 2.1.1.
pub fn inclusion_proof<N: Nodes>(
    index: u64,
    size: u64,
    nodes: &N,
) -> Result<Vec<Digest>, ProveError<N::Error>> {
    if index >= size {
        return Err(ProveError::Index { index, size });
    }
    let (mut start, mut end) = (0, size);
    let mut proof = Vec::new();
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            proof.push(range_root(nodes, middle, end)?);
            end = middle;
        } else {
            proof.push(range_root(nodes, start, middle)?);
            start = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The proof that the tree of `size2` leaves starts with the tree of `size1` leaves.
///
/// # Errors
///
/// [`ProveError::Sizes`] if `size1` is 0 or above `size2`; otherwise what the nodes' source says.
///
/// # Source
///
/// RFC 6962, section 2.1.2.
pub fn consistency_proof<N: Nodes>(
    size1: u64,
    size2: u64,
    nodes: &N,
) -> Result<Vec<Digest>, ProveError<N::Error>> {
    if size1 == 0 || size1 > size2 {
        return Err(ProveError::Sizes { size1, size2 });
    }
    let (mut start, mut end) = (0, size2);
    let mut proof = Vec::new();
    while end != size1 {
        let middle = start + split(end - start);
        if size1 <= middle {
            proof.push(range_root(nodes, middle, end)?);
            end = middle;
        } else {
            proof.push(range_root(nodes, start, middle)?);
            start = middle;
        }
    }
    // Where the walk ends at the whole old tree, its root is known to the verifier.
    if start > 0 {
        proof.push(range_root(nodes, start, end)?);
    }
    proof.reverse();
    Ok(proof)
}

/// The largest power of two below `leaves`, which is at least 2.
fn split(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
}

/// The root over leaves `start..end`, a range that [`split`] made: `start` is a multiple of the
/// smallest power of two that holds the range.
fn range_root<N: Nodes>(nodes: &N, start: u64, end: u64) -> Result<Digest, N::Error> {
    Ok(join(&subtree_hashes(nodes, start, end - start)?))
}

fn subtree_hashes<N: Nodes>(nodes: &N, start: u64, leaves: u64) -> Result<Vec<Digest>, N::Error> {
    let hash = |(level, index)| nodes.node(level, (start >> level) + index);
    edge_nodes(leaves).map(hash).collect()
}

/// A proof that does not prove.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ProofError {
    #[error("leaf {index} is not in a tree of {size} leaves")]
    Index { index: u64, size: u64 },
    #[error("no tree of {size1} leaves grows to one of {size2}")]
    Sizes { size1: u64, size2: u64 },
    #[error("the proof has {found} hashes; these sizes take {expected}")]
    Length { expected: usize, found: usize },
    #[error("the proof leads to the root {found}, not {expected}")]
    Root { expected: Digest, found: Digest },
}

/// Checks that `leaf` is leaf `index` of the tree of `size` leaves that has this root.
///
/// # Errors
///
/// [`ProofError`] if the proof does not show it.
pub fn verify_inclusion(
    index: u64,
    size: u64,
    leaf: &Digest,
    proof: &[Digest],
    root: &Digest,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Index { index, size });
    }
    let path = Path::of(index, size);
    check_length(path.inner + path.border, proof.len())?;
    let (inner, border) = proof.split_at(path.inner);
    check_root(root, join_lefts(join_inner(*leaf, inner, index), border))
}

/// Checks that the tree of `size2` leaves and `root2` starts with that of `size1` and `root1`.
///
/// A tree without leaves proves nothing, so `size1` 0 is an error.
///
/// # Errors
///
/// [`ProofError`] if the proof does not show it.
pub fn verify_consistency(
    size1: u64,
    size2: u64,
    root1: &Digest,
    root2: &Digest,
    proof: &[Digest],
) -> Result<(), ProofError> {
    if size1 == 0 || size1 > size2 {
        return Err(ProofError::Sizes { size1, size2 });
    }
    if size1 == size2 {
        check_length(0, proof.len())?;
        return check_root(root2, *root1);
    }
    // The walk starts at the last perfect subtree of the old tree, `skipped` levels up.
    let skipped = size1.trailing_zeros();
    let last = size1 - 1;
    let path = Path::of(last, size2);
    let inner = path.inner - skipped as usize;
    let (seed, rest) = if size1.is_power_of_two() {
        check_length(inner + path.border, proof.len())?;
        (*root1, proof)
    } else {
        check_length(1 + inner + path.border, proof.len())?;
        (proof[0], &proof[1..])
    };
    let (inner, border) = rest.split_at(inner);
    let turns = last >> skipped;
    let lefts: Vec<Digest> = (0..inner.len())
        .filter(|level| turns >> level & 1 == 1)
        .map(|level| inner[level])
        .collect();
    check_root(root1, join_lefts(join_lefts(seed, &lefts), border))?;
    check_root(root2, join_lefts(join_inner(seed, inner, turns), border))
}

/// How many hashes the way from a leaf to the root takes.
struct Path {
    /// Up to the subtree that also holds the last leaf: siblings on either side.
    inner: usize,
    /// From there on along the right border: siblings on the left only.
    border: usize,
}

impl Path {
    /// `index` is below `size`.
    fn of(index: u64, size: u64) -> Self {
        let inner = u64::BITS - (index ^ (size - 1)).leading_zeros();
        let border = index.checked_shr(inner).unwrap_or(0).count_ones();
        Self { inner: inner as usize, border: border as usize }
    }
}

/// Up one level for each sibling: on the left where the index' bit is set. At most 64 siblings.
fn join_inner(seed: Digest, siblings: &[Digest], index: u64) -> Digest {
    siblings.iter().enumerate().fold(seed, |hash, (level, sibling)| {
        if index >> level & 1 == 1 { node_hash(sibling, &hash) } else { node_hash(&hash, sibling) }
    })
}

fn join_lefts(seed: Digest, siblings: &[Digest]) -> Digest {
    siblings.iter().fold(seed, |hash, sibling| node_hash(sibling, &hash))
}

fn check_length(expected: usize, found: usize) -> Result<(), ProofError> {
    if expected == found { Ok(()) } else { Err(ProofError::Length { expected, found }) }
}

fn check_root(expected: &Digest, found: Digest) -> Result<(), ProofError> {
    if *expected == found { Ok(()) } else { Err(ProofError::Root { expected: *expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(count: u64) -> Vec<Digest> {
        (0..count).map(|i| leaf_hash(&i.to_le_bytes())).collect()
    }

    /// RFC 6962's own words: split at the largest power of two below n.
    fn reference_root(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => empty_root(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
                node_hash(&reference_root(left), &reference_root(right))
            }
        }
    }

    #[test]
    fn every_proof_of_small_trees_verifies_and_roots_are_those_of_the_definition() {
        let leaves = leaves(40);
        let nodes = MemoryNodes::of(&leaves);
        for size in 0..=leaves.len() as u64 {
            let root = reference_root(&leaves[..size as usize]);
            assert_eq!(root_of(&leaves[..size as usize]), root);
            assert_eq!(root_at(size, &nodes), Ok(root));
            for index in 0..size {
                let proof = inclusion_proof(index, size, &nodes).unwrap();
                let leaf = &leaves[index as usize];
                assert_eq!(verify_inclusion(index, size, leaf, &proof, &root), Ok(()));
            }
            for size1 in 1..=size {
                let root1 = reference_root(&leaves[..size1 as usize]);
                let proof = consistency_proof(size1, size, &nodes).unwrap();
                assert_eq!(verify_consistency(size1, size, &root1, &root, &proof), Ok(()));
            }
        }
    }

    #[test]
    fn a_tree_grows_on_from_its_right_edge() {
        let leaves = leaves(33);
        let nodes = MemoryNodes::of(&leaves);
        for size in 0..leaves.len() {
            let mut whole = TreeBuilder::new();
            leaves[..size].iter().for_each(|leaf| whole.push(*leaf));
            let mut loaded = TreeBuilder::load(size as u64, &nodes).unwrap();
            assert_eq!(loaded, whole);
            assert_eq!(TreeBuilder::restore(size as u64, whole.edge().to_vec()), Ok(whole));
            leaves[size..].iter().for_each(|leaf| loaded.push(*leaf));
            assert_eq!((loaded.root(), loaded.size()), (root_of(&leaves), 33));
        }
    }

    #[test]
    fn an_edge_of_another_size_is_refused() {
        let count = TreeBuilder::restore(3, vec![empty_root()]);
        assert_eq!(count, Err(EdgeError::Count { size: 3, expected: 2, found: 1 }));
        assert!(TreeBuilder::restore(u64::MAX, vec![empty_root(); 64]).is_err());
    }

    #[test]
    fn what_no_tree_has_is_refused_when_proving() {
        let nodes = MemoryNodes::of(&leaves(3));
        let sizes = |size1, size2| Err(ProveError::Sizes { size1, size2 });
        assert_eq!(inclusion_proof(3, 3, &nodes), Err(ProveError::Index { index: 3, size: 3 }));
        assert_eq!(inclusion_proof(0, 0, &nodes), Err(ProveError::Index { index: 0, size: 0 }));
        assert_eq!(consistency_proof(0, 3, &nodes), sizes(0, 3));
        assert_eq!(consistency_proof(4, 3, &nodes), sizes(4, 3));
        let beyond = Err(ProveError::Node(NoNode { level: 2, index: 0 }));
        assert!(inclusion_proof(0, u64::MAX, &nodes).is_err());
        assert_eq!(inclusion_proof(4, 5, &nodes).map(|_| ()), beyond);
    }

    proptest! {
        #[test]
        fn no_index_size_or_proof_panics(
            index: u64, size: u64, size2: u64,
            proof in proptest::collection::vec(any::<[u8; 32]>().prop_map(Digest), 0..70),
        ) {
            let root = empty_root();
            for (a, b) in [(index, size), (size, size2), (index, u64::MAX), (size >> 50, size2)] {
                prop_assert!(verify_inclusion(a, b, &root, &proof, &root).is_err());
                if a != b {
                    prop_assert!(verify_consistency(a, b, &root, &root, &proof).is_err());
                }
            }
            // Proofs of the right length, so that the walk itself is taken.
            if index < size {
                let path = Path::of(index, size);
                let proof = vec![root; path.inner + path.border];
                prop_assert!(verify_inclusion(index, size, &root, &proof, &root).is_err());
            }
        }

        #[test]
        fn a_changed_inclusion_proof_is_refused(
            size in 1..300u64, seed: u64, at: usize, bit in 0..8u8, byte in 0..32usize,
        ) {
            let leaves = leaves(size);
            let root = root_of(&leaves);
            let index = seed % size;
            let proof = inclusion_proof(index, size, &MemoryNodes::of(&leaves)).unwrap();
            let leaf = leaves[index as usize];
            let verify = |index, size, proof: &[Digest]| {
                verify_inclusion(index, size, &leaf, proof, &root)
            };
            prop_assert!(verify(index ^ 1 << (seed % 64), size, &proof).is_err());
            if !proof.is_empty() {
                let mut flipped = proof.clone();
                flipped[at % proof.len()].0[byte] ^= 1 << bit;
                prop_assert!(verify(index, size, &flipped).is_err());
                prop_assert!(verify(index, size, &proof[1..]).is_err());
                prop_assert!(verify(index, size, &proof[..proof.len() - 1]).is_err());
            }
            let longer: Vec<_> = proof.iter().copied().chain([root]).collect();
            prop_assert!(verify(index, size, &longer).is_err());
        }

        #[test]
        fn a_changed_consistency_proof_is_refused(
            size2 in 2..300u64, seed: u64, at: usize, bit in 0..8u8, byte in 0..32usize,
        ) {
            let leaves = leaves(size2);
            let size1 = 1 + seed % (size2 - 1);
            let (root1, root2) = (root_of(&leaves[..size1 as usize]), root_of(&leaves));
            let proof = consistency_proof(size1, size2, &MemoryNodes::of(&leaves)).unwrap();
            prop_assert_eq!(verify_consistency(size1, size2, &root1, &root2, &proof), Ok(()));
            let mut flipped = proof.clone();
            flipped[at % proof.len()].0[byte] ^= 1 << bit;
            let shorter = &proof[..proof.len() - 1];
            let longer: Vec<_> = proof.iter().copied().chain([root1]).collect();
            for bad in [&flipped, shorter, &proof[1..], &longer] {
                prop_assert!(verify_consistency(size1, size2, &root1, &root2, bad).is_err());
            }
            prop_assert!(verify_consistency(size1, size2, &root2, &root1, &proof).is_err());
        }
    }
}
