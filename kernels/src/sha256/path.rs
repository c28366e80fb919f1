//! The ways to hash several pieces at once, and which of them this processor has.

use std::fmt;
use std::str::FromStr;

use crate::cpu::UnknownPath;

/// How pieces are hashed. All paths give the same digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// One after the other with sha2, which uses SHA instructions where there are any: every
    /// processor.
    Scalar,
    /// x86-64 with AVX2, eight at once.
    Avx2,
    /// x86-64 with SHA instructions, two at once.
    ShaNi,
    /// x86-64 with AVX-512 F and BW, sixteen at once.
    Avx512,
}

impl Path {
    /// Every path, the fastest last.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::ShaNi, Self::Avx512];

    /// The paths this processor can run, the fastest last.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|path| path.is_available()).collect()
    }

    /// The fastest path this processor can run.
    #[must_use]
    pub fn best() -> Self {
        Self::ALL.into_iter().rfind(|path| path.is_available()).unwrap_or(Self::Scalar)
    }

    /// Whether this processor can run it. Asked of the processor once, then remembered.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::ShaNi => {
                is_x86_feature_detected!("sha")
                    && is_x86_feature_detected!("ssse3")
                    && is_x86_feature_detected!("sse4.1")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::ShaNi | Self::Avx512 => false,
        }
    }

    /// `scalar`, `avx2`, `sha-ni` or `avx512`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::ShaNi => "sha-ni",
            Self::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Path {
    type Err = UnknownPath;

    fn from_str(name: &str) -> Result<Self, UnknownPath> {
        Self::ALL.into_iter().find(|path| path.name() == name).ok_or(UnknownPath)
    }
}
