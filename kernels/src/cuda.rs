//! The fold and the hashing on a CUDA card: the bits of [`reference`](mod@crate::reference) and of sha2.
//!
//! A [`Gpu`] is an opened card with its compiled kernels; a [`Lane`] is a queue of work on it, with its
//! own buffers. What a lane is given is copied in, folded round after round while it lies there, hashed,
//! and copied out, without another lane's waiting: several lanes overlap copies and arithmetic. A
//! band's result depends on nothing but its bytes, so lanes and launches may be chosen freely.
//!
//! The libraries of NVIDIA are looked for when a card is asked for: the program runs without them. The
//! kernels are compiled by NVRTC on the machine, to machine code of its card, and kept in a file.
//!
//! Trust: rows are hostile. An index out of range touches nothing, and which fault is reported the
//! processor decides, as for every copy of the fold ([`check`](crate::check)).

mod build;
mod compile;
mod error;
mod lane;
pub mod launch;
pub mod rates;

use std::{ffi, fmt, path::Path, ptr, sync::Arc};

use cudarc::{
    driver::{CudaContext, CudaFunction, DriverError, result as driver, sys},
    nvrtc::Ptx,
};

use crate::{memory::Floats, sha256::Digest32};

pub use build::{Build, FLAGS};
pub use compile::build_for;
pub use error::CudaError;
pub use lane::{Held, Lane, Made, PIECE_BYTES, Round, Span, Threads, memory_bytes};

/// An opened card.
pub struct Gpu {
    context: Arc<CudaContext>,
    kernels: Kernels,
    description: Description,
}

struct Kernels {
    fold: CudaFunction,
    hash_pieces: CudaFunction,
    tree: CudaFunction,
    to_bf16: CudaFunction,
}

/// Which card, and what compiled what runs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// `cuda:` and this number.
    pub ordinal: usize,
    /// What the card calls itself.
    pub name: String,
    /// The newest CUDA that the driver knows, as `12.8`.
    pub driver: String,
    /// What compiled the kernels.
    pub nvrtc: String,
    /// The machine they were compiled for, as `sm_90`.
    pub architecture: String,
    /// SHA-256 of sources, flags and architecture.
    pub source: Digest32,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.description.fmt(f)
    }
}

impl Gpu {
    /// Opens card `ordinal`, counted from 0. Compiled kernels are looked for, and kept, in `cache`.
    ///
    /// # Errors
    ///
    /// [`CudaError`] says what is missing: driver, card, or compiler.
    pub fn open(ordinal: usize, cache: Option<&Path>) -> Result<Self, CudaError> {
        let refused = |error: DriverError| CudaError::Driver { text: text(error) };
        let count = devices()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(refused)?;
        // SAFETY: each buffer is used on its lane's stream alone, whose work is done in order.
        unsafe { context.disable_event_tracking() };
        let (major, minor) = context.compute_capability().map_err(refused)?;
        let build = build_for(&format!("sm_{major}{minor}"), cache)?;
        let module = context.load_module(Ptx::from_binary(build.cubin)).map_err(refused)?;
        let kernel = |name| module.load_function(name).map_err(refused);
        let kernels = Kernels {
            fold: kernel("fold")?,
            hash_pieces: kernel("hash_pieces")?,
            tree: kernel("tree")?,
            to_bf16: kernel("to_bf16")?,
        };
        let description = Description {
            ordinal,
            name: context.name().map_err(refused)?,
            driver: driver_version()?,
            nvrtc: build.nvrtc,
            architecture: build.architecture,
            source: build.source,
        };
        Ok(Self { context, kernels, description })
    }

    /// Which card it is, and what compiled the kernels.
    #[must_use]
    pub const fn description(&self) -> &Description {
        &self.description
    }

    /// Bytes of the card's memory that are free.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`].
    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        let (free, _) = self.context.mem_get_info().map_err(|error| self.failed(error))?;
        Ok(free as u64)
    }

    /// Room for `length` values on the host that the card reads and writes by itself, at the full rate of
    /// its bus and while other work goes on.
    ///
    /// # Errors
    ///
    /// [`CudaError::HostMemory`].
    pub fn floats(&self, length: usize) -> Result<Floats, CudaError> {
        let bytes = (length * size_of::<f32>()) as u64;
        let full = |text| CudaError::HostMemory { bytes, text };
        let mut floats = Floats::new(length).map_err(|error| full(error.to_string()))?;
        if length > 0 {
            let lock = self.lock(&mut floats).map_err(|error| full(text(error)))?;
            floats.keep(Box::new(lock));
        }
        Ok(floats)
    }

    fn lock(&self, floats: &mut Floats) -> Result<Locked, DriverError> {
        self.context.bind_to_thread()?;
        let (start, bytes) = (floats.as_mut_ptr().cast::<ffi::c_void>(), size_of_val(&floats[..]));
        // SAFETY: the memory is mapped; it stays so until `floats` has dropped the lock.
        unsafe { sys::cuMemHostRegister_v2(start, bytes, 0).result()? };
        Ok(Locked { context: self.context.clone(), start: start.addr() })
    }

    fn failed(&self, error: DriverError) -> CudaError {
        CudaError::Failed { ordinal: self.description.ordinal, text: text(error) }
    }
}

/// Memory that is page-locked for a card until this is dropped.
struct Locked {
    context: Arc<CudaContext>,
    start: usize,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Of a card that was lost the locks are, too.
        if self.context.bind_to_thread().is_ok() {
            let start = ptr::without_provenance_mut(self.start);
            // SAFETY: it was registered when this was made, and is once.
            let _ = unsafe { sys::cuMemHostUnregister(start) };
        }
    }
}

/// How many cards this machine has.
///
/// # Errors
///
/// [`CudaError::NoDriver`] or [`CudaError::Driver`].
pub fn devices() -> Result<usize, CudaError> {
    // SAFETY: it opens the driver's library, which runs what the system's linker runs for it.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let count = driver::init().and_then(|()| CudaContext::device_count());
    match count {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(error) => Err(CudaError::Driver { text: text(error) }),
    }
}

fn driver_version() -> Result<String, CudaError> {
    let mut version = 0;
    // SAFETY: it writes one number there.
    let read = unsafe { sys::cuDriverGetVersion(&mut version).result() };
    read.map_err(|error| CudaError::Driver { text: text(error) })?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

fn text(error: DriverError) -> String {
    let text = error.error_string().ok().and_then(|text| text.to_str().ok());
    text.map_or_else(|| format!("{:?}", error.0), |text| format!("{:?}: {text}", error.0))
}
