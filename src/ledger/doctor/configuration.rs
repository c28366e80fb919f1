//! A ledger's configuration: its file, its key, room for what it will keep.

use std::path::{Path, PathBuf};

use super::{
    super::{Ledger, LedgerError, gc::KEEP_EVERY, retention::Kept, writer},
    Examined, Status,
};
use crate::{
    store::{
        StoreError,
        config::{CONNECTIONS_MAX, Config, ServeChoice, UploadsChoice},
        index::{IndexDir, Standing},
        keys::{KeyError, heads::HeadGuard},
        log::LogError,
        machine,
        open_round::OpenRound,
        place::Place,
    },
    types::record::MinersPolicy,
};

/// With room for fewer rounds than this it is time to think of `gc`.
const ROUNDS_OF_ROOM_MIN: u64 = 10;

pub(super) fn config(place: &Place) -> Examined {
    match Config::load(place) {
        Ok(config) if config == Config::default() => Examined::ok("config", "all defaults"),
        Ok(config) => Examined::ok("config", said(&config)),
        Err(error) => {
            let mend = "correct the file; `schema/ledger.md` lists its keys";
            Examined::bad("config", Status::Failure, error, mend)
        }
    }
}

fn said(config: &Config) -> String {
    let keep = config.retention.keep_every.map(|n| format!("retention.keep_every = {n}"));
    let serve = (config.serve != ServeChoice::default()).then(|| "[serve] is set".to_owned());
    keep.into_iter().chain(serve).collect::<Vec<_>>().join(", ")
}

pub(super) fn opened(ledger: &Ledger) -> Examined {
    let (rounds, submissions) = (ledger.sealed().len(), ledger.submissions_log().size());
    let run = &ledger.genesis().run;
    Examined::ok(
        "ledger",
        format!("run {run:?}: {rounds} rounds sealed, {submissions} submissions"),
    )
}

pub(super) fn examine(ledger: &Ledger, key_file: Option<&Path>) -> Vec<Examined> {
    let mut found = key(ledger, key_file);
    found.extend([open_round(ledger), retention(ledger), room(ledger), index(ledger)]);
    if let Ok(Config { serve, .. }) = Config::load(ledger.place()) {
        found.push(connections(&serve, machine::open_files_max()));
        found.extend(serve.uploads.enabled.then(|| uploads(ledger, &serve.uploads)));
    }
    found
}

/// Whether `serve` may open the files that its connections take.
fn connections(serve: &ServeChoice, open_files: Option<u64>) -> Examined {
    let chosen = serve.connections_max.map(|most| most.get() as u64);
    let wanted = chosen.unwrap_or(CONNECTIONS_MAX as u64);
    let most = open_files.map_or(u64::MAX, machine::connections_within);
    let found = format!("`serve` takes {} connections at once", wanted.min(most));
    if wanted <= most {
        return Examined::ok("serve", found);
    }
    let files = open_files.unwrap_or(u64::MAX);
    let found = format!("{found}, not {wanted}: {files} files may be open here");
    let mend = format!(
        "`ulimit -n {}` in the shell or the unit that starts it, or connections_max = {most} in [serve]",
        machine::open_files_for(wanted)
    );
    // What nobody asked for is fitted to the machine by design.
    Examined::warn_if(chosen.is_some(), "serve", found, mend)
}

/// Whether `serve` would take uploads, as the configuration wants.
fn uploads(ledger: &Ledger, uploads: &UploadsChoice) -> Examined {
    if !matches!(ledger.genesis().miners, MinersPolicy::Hotkeys(_)) {
        let found = "the run takes no signed submissions, and `serve` would not start";
        let mend = "remove `enabled` from [serve.uploads]";
        return Examined::bad("uploads", Status::Failure, found, mend);
    }
    let reserve = uploads.disk_reserve_bytes;
    match ledger.place().files.free_bytes(&ledger.place().root) {
        Ok(free) => {
            let found =
                format!("{} MiB free, of which {} are left alone", free >> 20, reserve >> 20);
            let mend = "uploads are refused until space is freed, or disk_reserve_bytes is lowered";
            Examined::warn_if(free <= reserve, "uploads", found, mend)
        }
        Err(error) => Examined::bad("uploads", Status::Warning, error, "look with `df`"),
    }
}

/// The log key, where it lies, and the record of what it signed.
fn key(ledger: &Ledger, key_file: Option<&Path>) -> Vec<Examined> {
    let place = ledger.place();
    let own = place.log_key(ledger.keys().rotations());
    let path = key_file.map_or(own, Path::to_owned);
    if let Err(error) = writer::signers(ledger, key_file) {
        return vec![refused_key(error)];
    }
    let beside = is_within(&path, &place.root);
    let mend = "whoever copies the ledger copies its key: move it and its .heads file elsewhere, name \
                it with --log-key-file or GRADLEDGER_LOG_KEY_FILE, and keep a copy of both";
    let where_it_lies = if beside { "in the ledger" } else { "outside the ledger" };
    let found = format!("{} signs; it lies {where_it_lies}", path.display());
    vec![Examined::warn_if(beside, "log-key", found, mend), heads(ledger, &path)]
}

fn refused_key(error: LedgerError) -> Examined {
    let absent = matches!(&error, LedgerError::Store(StoreError::Key(KeyError::Absent { .. })));
    let (status, mend) = if absent {
        (Status::Warning, "only reading goes without: name the key's place with --log-key-file")
    } else {
        (Status::Failure, "nothing can be signed until this is mended, as said")
    };
    Examined::bad("log-key", status, error, mend)
}

fn heads(ledger: &Ledger, key: &Path) -> Examined {
    let read = || {
        let guard = HeadGuard::open(ledger.place().files.clone(), key)?;
        [ledger.rounds_log(), ledger.submissions_log()]
            .map(|log| {
                guard.signed(&log.head().origin)?;
                guard.check(log.head())
            })
            .into_iter()
            .collect::<Result<(), _>>()
            .map(|()| guard.path().display().to_string())
    };
    match read() {
        Ok(path) => Examined::ok("heads", format!("{path} agrees with both logs")),
        Err(error) => {
            let mend = "bring back the newest copy of ledger, key and .heads file together";
            Examined::bad("heads", Status::Failure, LogError::from(error), mend)
        }
    }
}

/// Whether `path` lies below `root`, links followed.
fn is_within(path: &Path, root: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| PathBuf::from(path));
    real(path).starts_with(real(root))
}

fn open_round(ledger: &Ledger) -> Examined {
    match OpenRound::load(ledger.place()) {
        Ok(Some(open)) => Examined::ok("open-round", format!("round {} is open", open.round)),
        Ok(None) => Examined::ok("open-round", "no round was opened by hand"),
        Err(error) => {
            let mend = "remove the file, and name the peers of the round again";
            Examined::bad("open-round", Status::Failure, error, mend)
        }
    }
}

fn retention(ledger: &Ledger) -> Examined {
    let chosen = Config::load(ledger.place()).ok().and_then(|config| config.retention.keep_every);
    let keep_every = chosen.unwrap_or(KEEP_EVERY);
    match Kept::load(ledger) {
        Ok(kept) if kept.is_of_copy() => {
            Examined::ok("retention", format!("a copy with {} states", kept.count()))
        }
        Ok(kept) => {
            let (now, then) = (kept.count(), kept.thinned(ledger, keep_every).count());
            let found = format!("{now} states are kept; every {keep_every}th would be {then}");
            let mend = format!("`gradledger gc` would drop {}", now - then);
            Examined::warn_if(now > then, "retention", found, mend)
        }
        Err(error) => {
            let mend = "remove retention.json and run `gradledger gc`, which writes it anew";
            Examined::bad("retention", Status::Failure, error, mend)
        }
    }
}

/// Until `gc` runs every round leaves a state, and its hashes.
fn room(ledger: &Ledger) -> Examined {
    let free = match ledger.place().files.free_bytes(&ledger.place().root) {
        Ok(free) => free,
        Err(error) => return Examined::bad("room", Status::Warning, error, "look with `df`"),
    };
    let state = ledger.newest().bytes;
    let rounds = free / state.saturating_add(state / 2048).max(1);
    let found =
        format!("{} MiB free; a state has {}: room for {rounds} rounds", free >> 20, state >> 20);
    let mend = "free space, run `gradledger gc`, or let it keep fewer states";
    let status = match rounds {
        0 => Status::Failure,
        1..ROUNDS_OF_ROOM_MIN => Status::Warning,
        _ => return Examined::ok("room", found),
    };
    Examined::bad("room", status, found, mend)
}

fn index(ledger: &Ledger) -> Examined {
    Examined::ok(
        "index",
        match IndexDir::standing(&ledger.place().index()) {
            Standing::Absent => "there is none yet; who needs it makes it",
            Standing::Closed => "as it was closed",
            Standing::Open => {
                "in use, or left by a killed process: then it is made anew when it is needed"
            }
        },
    )
}
