//! Where the arithmetic runs: the processor, or a card that is opened when it is asked for.

use std::{env, fmt, path::PathBuf, str::FromStr};

use gradledger_kernels::cuda::Gpu;

use super::{FoldArgs, exit::CliError};
use crate::ledger::seal::FoldOptions;

/// A device by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// `cpu`.
    Cpu,
    /// `cuda:N`.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let ordinal = name.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        match (name, ordinal.map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda(ordinal)),
            _ => Err("a device is cpu, or a card such as cuda:0"),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Device {
    /// Opens it: how to fold there.
    ///
    /// # Errors
    ///
    /// [`CliError::Cuda`] says what is missing.
    pub(super) fn options(self, fold: &FoldArgs) -> Result<FoldOptions, CliError> {
        let gpu = match self {
            Self::Cpu => None,
            Self::Cuda(ordinal) => Some(open(ordinal)?),
        };
        Ok(FoldOptions { gpu, ..fold.into() })
    }
}

/// A card, for as long as the process lives.
pub(super) fn open(ordinal: usize) -> Result<&'static Gpu, CliError> {
    Ok(Box::leak(Box::new(Gpu::open(ordinal, cache().as_deref())?)))
}

/// Where compiled kernels are kept, as the XDG base directories have it.
fn cache() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("gradledger"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_name() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(7)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for name in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:99999999999999999999"]
        {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
    }
}
