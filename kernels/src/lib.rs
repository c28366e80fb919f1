//! The arithmetic and the hashing of gradledger: slices and numbers only.
//!
//! The steps above (`intake`, `plan`, `fold`, `audit`) hand in slices; nothing here opens a file (but
//! that of the card's compiled kernels), knows a name or keeps state between calls. Two machines must get the same bits from the same
//! slices, so each thing has one plain definition and, where speed matters, fast copies that equal
//! it bit for bit:
//!
//! - [`band`] what a fold works on: a run of blocks, what miners sent for it, how to step.
//! - [`reference`](mod@reference) the meaning of a fold, element by element; [`cpu`] the same bits,
//!   fast; [`cuda`] the same on a card.
//! - [`check`] the one place that decides which fault of an input is reported, for every copy.
//! - [`norm`], [`clip`], [`levels`] from a miner's codes to the numbers its codes stand for.
//! - [`codes`] packed codes and 12-bit indices; [`widen`] bf16 and f16; [`bytes`] f32 as logical
//!   bytes.
//! - [`feedback`], [`topk`], [`quantise`] the other way: from what a miner trained to what it sends.
//! - [`memory`] room for a state; [`floor`] and [`made_up`] what a fold is measured against and with,
//!   [`rates`] how.
//! - [`fma`] one rounding without libm; [`sha256`] digests of pieces.
//!
//! Exactness: f32 as IEEE 754 has it, round to nearest even, denormals kept. No implicit
//! contraction, no libm, no order that depends on threads. A NaN that is stored has the bits
//! [`CANONICAL_NAN`], because the payload that hardware picks differs between devices.
//!
//! Trust: index, code and level bytes are hostile. They can cost an `Err`, never a panic or an
//! access out of bounds. Lengths that the caller derives from its own shapes are asserted or
//! answered with an `Err`, as each function says. `unsafe` is used for vector instructions,
//! prefetching, viewing bytes as f32 and the other way, and calling NVIDIA's libraries.
//!
//! Threads: what is parallel uses the current rayon pool (`pool.install(|| ...)` chooses it).

pub mod band;
pub mod bytes;
pub mod check;
pub mod clip;
pub mod codes;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod feedback;
pub mod floor;
pub mod fma;
pub mod levels;
pub mod made_up;
pub mod memory;
pub mod norm;
pub mod quantise;
pub mod rates;
pub mod reference;
pub mod sha256;
pub mod topk;
pub mod widen;

pub use band::{Band, Contribution, Divisor, Findings, Step};
pub use error::{KernelError, Stream};

/// The bits of every NaN this crate stores in an f32.
pub const CANONICAL_NAN: u32 = 0x7fc0_0000;

/// `value`, with any NaN replaced by the one whose bits are [`CANONICAL_NAN`].
#[inline]
#[must_use]
pub fn canonical(value: f32) -> f32 {
    if value.is_nan() { f32::from_bits(CANONICAL_NAN) } else { value }
}
