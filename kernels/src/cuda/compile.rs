//! NVRTC: from the kernels' source to a card's machine code. Needs no card.

use std::{ffi, path::Path, ptr};

use cudarc::nvrtc::sys as nvrtc;

use super::{
    build::{self, Build, FLAGS},
    error::CudaError,
};

/// The kernels for an architecture such as `sm_90`: kept ones, else compiled now and kept in `cache`.
///
/// Needs no card.
///
/// # Errors
///
/// [`CudaError::NoCompiler`] or [`CudaError::Compile`].
pub fn build_for(architecture: &str, cache: Option<&Path>) -> Result<Build, CudaError> {
    if let Some(build) = cache.and_then(|dir| build::kept(dir, architecture)) {
        return Ok(build);
    }
    // SAFETY: it opens NVRTC's library, which runs what the system's linker runs for it.
    if !unsafe { nvrtc::is_culib_present() } {
        let cache = cache.map(Path::to_owned);
        return Err(CudaError::NoCompiler { architecture: architecture.to_owned(), cache });
    }
    let build = compile(architecture)?;
    if let Some(dir) = cache {
        // A place that cannot be written costs a second the next time, no more.
        let _ = build::keep(dir, &build);
    }
    Ok(build)
}

fn compile(architecture: &str) -> Result<Build, CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: it writes two numbers there.
    unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) };
    let version = format!("{major}.{minor}");
    let program = Program::new();
    let refused = |log| {
        let (version, architecture) = (version.clone(), architecture.to_owned());
        CudaError::Compile { version, architecture, log }
    };
    let program = program.map_err(|error| refused(format!("{error:?}")))?;
    let target = format!("--gpu-architecture={architecture}");
    let cubin = program.cubin(&[&[target.as_str()], &FLAGS[..]].concat());
    let cubin = cubin.map_err(|error| refused(format!("{error:?}: {}", program.log())))?;
    let source = build::source(architecture);
    Ok(Build { nvrtc: version, architecture: architecture.to_owned(), source, cubin })
}

/// A program of NVRTC.
struct Program(nvrtc::nvrtcProgram);

impl Program {
    fn new() -> Result<Self, nvrtc::nvrtcResult> {
        let text = |text: &str| ffi::CString::new(text).expect("sources have no zero byte");
        let names = build::SOURCES.map(|(name, _)| text(name));
        let texts = build::SOURCES.map(|(_, source)| text(source));
        let (names, texts) =
            (names.each_ref().map(|n| n.as_ptr()), texts.each_ref().map(|t| t.as_ptr()));
        let mut program = ptr::null_mut();
        let headers = (names.len() - 1) as ffi::c_int;
        // SAFETY: all pointers are to strings that end with a zero and live until it returns; NVRTC
        // copies them.
        let made = unsafe {
            let (texts_of, names_of) = (texts[1..].as_ptr(), names[1..].as_ptr());
            nvrtc::nvrtcCreateProgram(&mut program, texts[0], names[0], headers, texts_of, names_of)
        };
        done(made).map(|()| Self(program))
    }

    fn cubin(&self, options: &[&str]) -> Result<Vec<u8>, nvrtc::nvrtcResult> {
        let options: Vec<_> =
            options.iter().map(|of| ffi::CString::new(*of).expect("a flag")).collect();
        let options: Vec<_> = options.iter().map(|of| of.as_ptr()).collect();
        let count = options.len() as ffi::c_int;
        let mut bytes = 0;
        // SAFETY: the program is one; the options are strings that outlive the call.
        done(unsafe { nvrtc::nvrtcCompileProgram(self.0, count, options.as_ptr()) })?;
        // SAFETY: as above.
        done(unsafe { nvrtc::nvrtcGetCUBINSize(self.0, &mut bytes) })?;
        let mut cubin = vec![0u8; bytes];
        // SAFETY: there is room for as many bytes as it said.
        done(unsafe { nvrtc::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) })?;
        Ok(cubin)
    }

    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: the program is one.
        if done(unsafe { nvrtc::nvrtcGetProgramLogSize(self.0, &mut bytes) }).is_err() {
            return String::new();
        }
        let mut log = vec![0u8; bytes];
        // SAFETY: there is room for as many bytes as it said.
        let read = done(unsafe { nvrtc::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) });
        read.map_or_else(
            |_| String::new(),
            |()| String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned(),
        )
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was made and is destroyed once.
        let _ = unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn done(result: nvrtc::nvrtcResult) -> Result<(), nvrtc::nvrtcResult> {
    match result {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        error => Err(error),
    }
}
