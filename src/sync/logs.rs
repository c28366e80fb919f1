//! The logs: from the mirror that has most, onto the copy; the other mirrors must show the same ones.

use super::{
    Trusts,
    error::{Fault, SyncError},
    mirror::{Mirror, Mirrors},
};
use crate::{
    ledger::{Ledger, LedgerError},
    store::{
        log::{Copied, LogReader, mend_copy},
        place::Place,
    },
    types::progress::Progress,
};

/// Brings the copy's logs to the newest head that can be believed.
pub(super) fn follow(
    mirrors: &Mirrors,
    place: &Place,
    trusts: &Trusts<'_>,
    progress: &dyn Progress,
) -> Result<(), SyncError> {
    for dir in [place.submissions_log(), place.rounds_log()] {
        mend_copy(place.files.clone(), &dir).map_err(LedgerError::from)?;
    }
    let mut heads = Vec::new();
    for mirror in &mirrors.all {
        match LogReader::open(mirror.place.files.clone(), &mirror.place.rounds_log()) {
            Ok(log) => heads.push((log.size(), mirror)),
            Err(error) => leave(mirror, &error.into(), progress),
        }
    }
    heads.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    let taken = heads.iter().position(|(_, mirror)| match take(mirror, place, trusts, progress) {
        Ok(()) => true,
        Err((Fault::Untrusted, why)) => {
            mirror.leave(Fault::Untrusted, &why, progress);
            false
        }
        Err((fault, why)) => {
            mirror.leave(fault, &why, progress);
            false
        }
    });
    let Some(taken) = taken else { return Err(mirrors.none("a log to follow")) };
    let ours =
        LogReader::open(place.files.clone(), &place.rounds_log()).map_err(LedgerError::from)?;
    for (_, mirror) in &heads[taken + 1..] {
        compare(&ours, mirror, progress);
    }
    Ok(())
}

fn leave(mirror: &Mirror, error: &LedgerError, progress: &dyn Progress) {
    let fault = match error {
        LedgerError::Store(crate::store::StoreError::Log(
            crate::store::log::LogError::Absent { .. },
        )) => Fault::NoLedger,
        error => Fault::of_ledger(error),
    };
    mirror.leave(fault, error, progress);
}

/// Reads a mirror's logs, asks whether they are trusted, and only then copies what is new.
fn take(
    mirror: &Mirror,
    place: &Place,
    trusts: &Trusts<'_>,
    progress: &dyn Progress,
) -> Result<(), (Fault, String)> {
    let failed = |error: LedgerError| (Fault::of_ledger(&error), error.to_string());
    let ledger = Ledger::open_in(mirror.place.files.clone(), &mirror.place.root).map_err(failed)?;
    trusts(&ledger).map_err(|why| (Fault::Untrusted, why))?;
    progress.begin("logs", 0);
    // Submissions first: a record speaks of those before it.
    for (log, dir) in [
        (ledger.submissions_log(), place.submissions_log()),
        (ledger.rounds_log(), place.rounds_log()),
    ] {
        let copied = log.copy_to(place.files.clone(), &dir, &mut |bytes| progress.advance(bytes));
        let copied = copied.map_err(|error| failed(error.into()))?;
        if copied == Copied::Ahead {
            progress.note(&format!("{} is behind what this copy has seen", log.head().origin));
        }
    }
    progress.end();
    Ok(())
}

/// Leaves a mirror whose rounds log is not how ours starts.
fn compare(ours: &LogReader, mirror: &Mirror, progress: &dyn Progress) {
    let theirs = match LogReader::open(mirror.place.files.clone(), &mirror.place.rounds_log()) {
        Ok(log) => log,
        Err(error) => return leave(mirror, &error.into(), progress),
    };
    let (theirs, ours_head) = (theirs.head(), ours.head());
    let same = theirs.origin == ours_head.origin
        && (theirs.size > ours_head.size
            || ours.root_at(theirs.size).is_ok_and(|root| root == theirs.root));
    if !same {
        let why = format!(
            "it shows another log: {:?} with root {} at size {}",
            theirs.origin, theirs.root, theirs.size
        );
        mirror.leave(Fault::Lie, &why, progress);
    }
}
