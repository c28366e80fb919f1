//! Feeds one reader of outside bytes, the one that `GRADLEDGER_READER` names.
//!
//! One program for all of them: they are one library, and linking it 33 times takes longer than a
//! short run. See `../README.md`.

#![no_main]

use std::{
    panic::{self, AssertUnwindSafe},
    process,
    sync::{LazyLock, Mutex, PoisonError},
};

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/common/archives.rs"]
mod archives;
#[allow(dead_code)]
#[path = "../../tests/common/memory.rs"]
mod memory;
#[allow(dead_code)]
#[path = "../../tests/common/readers.rs"]
mod readers;

static READ: LazyLock<fn(&[u8]) -> readers::Outcome> = LazyLock::new(|| {
    let wanted = std::env::var("GRADLEDGER_READER").unwrap_or_default();
    let found = readers::READERS.iter().find(|(name, _)| *name == wanted);
    let Some((_, read)) = found else {
        let names = readers::READERS.map(|(name, _)| name).join(" ");
        eprintln!("GRADLEDGER_READER is {wanted:?}, not one of: {names}");
        process::exit(2);
    };
    *read
});

static PANIC: Mutex<String> = Mutex::new(String::new());

/// libFuzzer's own hook aborts at any panic, also at those of the Parquet decoder, which the reader of
/// segments turns into errors. Only one that comes out of a reader counts.
fn hook() {
    panic::set_hook(Box::new(|info| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
    }));
    LazyLock::force(&READ);
}

fuzz_target!(init: hook(), |bytes: &[u8]| {
    if panic::catch_unwind(AssertUnwindSafe(|| drop(READ(bytes)))).is_err() {
        eprintln!("{}", PANIC.lock().unwrap_or_else(PoisonError::into_inner));
        process::abort();
    }
});
