//! The command `doctor`: what it looks at, and how it says what it found.

use std::{fmt::Write as _, path::Path, sync::Arc};

use serde::Serialize;

use crate::{
    ledger::doctor::{Examined, Status, examine_ledger, examine_machine},
    store::files::{Disk, Files},
};

use super::{DoctorArgs, exit::CliError, output::print};

#[derive(Serialize)]
struct Document {
    status: Status,
    machine: Vec<Examined>,
    /// None without a ledger.
    ledger: Option<Vec<Examined>>,
}

pub fn doctor(args: &DoctorArgs) -> Result<(), CliError> {
    let files: Arc<dyn Files> = Arc::new(Disk);
    let dir = args.ledger.as_deref().unwrap_or(Path::new("."));
    let machine = examine_machine(&*files, dir);
    let ledger = args.ledger.as_deref();
    let ledger = ledger.map(|root| examine_ledger(&files, root, args.key.log_key_file.as_deref()));
    let all = machine.iter().chain(ledger.iter().flatten());
    let failures = all.clone().filter(|one| one.status == Status::Failure).count();
    let status = all.map(|one| one.status).max().unwrap_or(Status::Ok);
    let document = Document { status, machine, ledger };
    print(args.json, &document, || text(&document))?;
    if failures == 0 { Ok(()) } else { Err(CliError::Unfit(failures)) }
}

fn text(document: &Document) -> String {
    let mut text = String::new();
    for one in document.machine.iter().chain(document.ledger.iter().flatten()) {
        let _ = writeln!(text, "{:<8} {:<11} {}", one.status, one.name, one.found);
        if let Some(mend) = &one.mend {
            let _ = writeln!(text, "{:<20} -> {mend}", "");
        }
    }
    text
}
