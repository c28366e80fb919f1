//! Was this digest on the chain, under which key, and in which block? Answered offline.
//!
//! An anchor is `Commitments.set_commitment(netuid, [Sha256(d)])` on a Bittensor chain, d being the
//! SHA-256 of a tree head's text. What proves it is a [`receipt::Receipt`]: the head, a block's header,
//! the trie nodes that lead from its state root to the commitment, and, once the chain has one, a
//! GRANDPA justification. This package reads and judges receipts; it opens no file and no
//! connection, and an auditor can build it alone. The formats are in `schema/anchor.md`.
//!
//! - [`receipt`] the document, and the order in which it is checked.
//! - [`trie`] values, and proven absences, below a state root; [`header`] blocks; [`grandpa`] finality.
//! - [`commitment`] what the chain stores for a hotkey; [`extrinsic`] how it got there.
//! - [`exclusive`] whether a hotkey committed to anything else meanwhile.
//! - [`hash`] hashes and byte strings.
//!
//! Trust: nothing in a receipt is believed. Which chain, subnet, hotkey and authorities are meant
//! comes from the caller. Any bytes give an error at worst; memory is in proportion to them.

#![forbid(unsafe_code)]

pub mod commitment;
pub mod exclusive;
pub mod extrinsic;
pub mod grandpa;
pub mod hash;
pub mod header;
pub mod receipt;
pub mod trie;
