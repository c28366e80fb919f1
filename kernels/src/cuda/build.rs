//! The kernels' source, its flags, and the files in which what was compiled is kept.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::sha256::{Digest32, Sha256, sha256};

/// Names and texts of all sources; the first one includes the others.
pub(super) const SOURCES: [(&str, &str); 5] = [
    ("kernels.cu", "#include \"fold.cu\"\n#include \"sha256.cu\"\n#include \"bf16.cu\"\n"),
    ("common.cuh", include_str!("../../cuda/common.cuh")),
    ("fold.cu", include_str!("../../cuda/fold.cu")),
    ("sha256.cu", include_str!("../../cuda/sha256.cu")),
    ("bf16.cu", include_str!("../../cuda/bf16.cu")),
];

/// What NVRTC is told beside the architecture: f32 as IEEE 754 has it, nothing fused.
pub const FLAGS: [&str; 3] = ["--fmad=false", "--ftz=false", "--prec-div=true"];

/// Compiled kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// What compiled them, as `12.9`.
    pub nvrtc: String,
    /// What they run on, as `sm_90`.
    pub architecture: String,
    /// Identifies sources, flags and architecture.
    pub source: Digest32,
    /// Machine code.
    pub(super) cubin: Vec<u8>,
}

/// The digest of sources, flags and architecture: what is compiled of the same is exchangeable.
pub(super) fn source(architecture: &str) -> Digest32 {
    let mut hash = Sha256::new();
    let mut part = |bytes: &str| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes.as_bytes());
    };
    SOURCES.iter().for_each(|(name, text)| [name, text].into_iter().for_each(|of| part(of)));
    FLAGS.into_iter().chain([architecture]).for_each(part);
    hash.finish()
}

/// First line of a kept build; then its compiler's version, the SHA-256 of the code, the code.
const MAGIC: &str = "gradledger kernels 1";

fn path(dir: &Path, architecture: &str) -> PathBuf {
    let name: String =
        source(architecture)[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(format!("kernels-{architecture}-{name}.cubin"))
}

/// A build that was kept. Nothing if there is none or it is damaged: then it is made again.
pub(super) fn kept(dir: &Path, architecture: &str) -> Option<Build> {
    let bytes = fs::read(path(dir, architecture)).ok()?;
    let (magic, rest) = line(&bytes)?;
    let (nvrtc, rest) = line(rest)?;
    let (digest, cubin) = rest.split_at_checked(32)?;
    (magic == MAGIC && sha256(cubin) == digest).then(|| Build {
        nvrtc: nvrtc.to_owned(),
        architecture: architecture.to_owned(),
        source: source(architecture),
        cubin: cubin.to_vec(),
    })
}

fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// Keeps a build for the next time, whole or not at all.
pub(super) fn keep(dir: &Path, build: &Build) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let path = path(dir, &build.architecture);
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let head = format!("{MAGIC}\n{}\n", build.nvrtc);
    let written = fs::write(&part, [head.as_bytes(), &sha256(&build.cubin), &build.cubin].concat());
    written.and_then(|()| fs::rename(&part, path)).inspect_err(|_| drop(fs::remove_file(&part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_kept_whole_for_its_architecture_alone() {
        let dir = std::env::temp_dir().join(format!("gradledger-build-{}", std::process::id()));
        let build = Build {
            nvrtc: "12.9".to_owned(),
            architecture: "sm_90".to_owned(),
            source: source("sm_90"),
            cubin: b"\n\0code\n".to_vec(),
        };
        assert_eq!(kept(&dir, "sm_90"), None);
        keep(&dir, &build).expect("there is room");
        assert_eq!(kept(&dir, "sm_90").as_ref(), Some(&build));
        assert_eq!(kept(&dir, "sm_80"), None);
        let whole = fs::read(path(&dir, "sm_90")).expect("it is there");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(path(&dir, "sm_90"), &damaged).expect("there is room");
            let found = kept(&dir, "sm_90");
            // The version is only told; the code is what runs.
            assert!(found.is_none_or(|found| found.cubin == build.cubin), "byte {at}");
            fs::write(path(&dir, "sm_90"), &whole[..at]).expect("there is room");
            assert_eq!(kept(&dir, "sm_90"), None, "{at} bytes of it");
        }
        fs::remove_dir_all(dir).expect("it is ours");
    }

    #[test]
    fn every_source_and_architecture_has_its_own_digest() {
        assert_ne!(source("sm_80"), source("sm_90"));
    }
}
