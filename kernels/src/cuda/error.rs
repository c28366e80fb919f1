//! Why a card cannot be used, or failed.

use std::path::PathBuf;

use crate::KernelError;

/// A fold on a card that did not begin, or did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library is not installed.
    #[error(
        "no CUDA driver on this machine (libcuda.so.1 is not to be found): install NVIDIA's driver, or \
         use the processor"
    )]
    NoDriver,
    /// The driver is there and refuses.
    #[error("the CUDA driver cannot be used: {text}")]
    Driver {
        /// What it says.
        text: String,
    },
    /// The machine has no such card.
    #[error("there is no cuda:{ordinal}: this machine has {count} CUDA devices, counted from 0")]
    NoDevice {
        /// Which was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The kernels are not compiled for the card yet, and NVRTC is not installed.
    #[error(
        "the kernels are not compiled for {architecture} yet, and NVRTC is not to be found \
         (libnvrtc.so.12, part of the CUDA toolkit): install it, or put its folder in LD_LIBRARY_PATH{}",
        searched(cache)
    )]
    NoCompiler {
        /// The card's architecture.
        architecture: String,
        /// Where compiled kernels were looked for.
        cache: Option<PathBuf>,
    },
    /// NVRTC is there and refuses.
    #[error("NVRTC {version} cannot compile the kernels for {architecture}: {log}")]
    Compile {
        /// Its version.
        version: String,
        /// The card's architecture.
        architecture: String,
        /// What it says.
        log: String,
    },
    /// The card's memory is full.
    #[error(
        "no room for {bytes} bytes on cuda:{ordinal}, of whose memory {free} bytes are free: is it used by others?"
    )]
    Memory {
        /// Which card.
        ordinal: usize,
        /// How much was asked for.
        bytes: u64,
        /// How much it has left.
        free: u64,
    },
    /// Host memory cannot be made, or not be locked for the card.
    #[error("no room for {bytes} bytes of page-locked memory: {text}")]
    HostMemory {
        /// How much was asked for.
        bytes: u64,
        /// What the system or the driver says.
        text: String,
    },
    /// The card, or the driver, failed in the middle of the work.
    #[error("cuda:{ordinal} failed ({text}): what it was doing is lost, nothing of it was kept")]
    Failed {
        /// Which card.
        ordinal: usize,
        /// What the driver says.
        text: String,
    },
    /// The rows break the codec's rules, or lengths do not fit.
    #[error("round {round}: {source}")]
    Kernel {
        /// Which of the rounds given.
        round: usize,
        /// What is wrong.
        source: KernelError,
    },
    /// The card reported a fault of the rows where the processor sees none.
    #[error(
        "cuda:{ordinal} found a fault in block {block} where there is none: its memory or its work is not to be trusted"
    )]
    Mistaken {
        /// Which card.
        ordinal: usize,
        /// A block of the band.
        block: u64,
    },
}

fn searched(cache: &Option<PathBuf>) -> String {
    cache
        .as_ref()
        .map_or_else(String::new, |dir| format!(" (looked for compiled ones in {})", dir.display()))
}
