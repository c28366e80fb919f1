//! An emulated card: NVIDIA's libraries replaced by ones that run the kernels' text on the processor.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The folder for LD_LIBRARY_PATH, made once a process below `tmp`. Nothing if there is no C++ compiler,
/// which is said.
///
/// # Panics
///
/// If there is one and it fails.
pub fn libraries(tmp: &str) -> Option<&'static Path> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    MADE.get_or_init(|| make(&Path::new(tmp).join(format!("emulator-{}", std::process::id()))))
        .as_deref()
}

fn make(folder: &Path) -> Option<PathBuf> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if !cfg!(target_os = "linux") || Command::new(&compiler).arg("--version").output().is_err() {
        println!(
            "SKIPPED: the kernels are not run on the processor, there is no C++ compiler ({compiler})"
        );
        return None;
    }
    fs::create_dir_all(folder).expect("the target directory can be written");
    let source =
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/tests/emulator/libcuda.cpp"));
    let beside = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/emulator/libcuda.cpp"));
    let library = folder.join("libcuda.so");
    let compiled = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-shared", "-fPIC"])
        .args(["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"])
        .arg(if source.exists() { source } else { beside })
        .arg("-o")
        .arg(&library)
        .output()
        .expect("it runs");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    fs::copy(&library, folder.join("libnvrtc.so")).expect("there is room");
    Some(folder.to_owned())
}
