//! `verify`: a bundle judged with keys from outside; and how lists of checks are shown.

use std::{fmt::Write as _, fs::File, io::BufReader, path::PathBuf};

use clap::Args;
use serde::Serialize;

use crate::{
    audit::{
        checks::{Check, Line, Status, Verdict, verdict},
        trust::Trust,
        verify::verify as verify_bundle,
    },
    merkle::{
        note::VerifierKey,
        policy::{POLICY_BYTES_MAX, Policy},
    },
    store::files::{Disk, read_whole},
};

use super::{exit::CliError, output::print};

/// Whom to trust, from outside the ledger.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// A C2SP tlog-policy: keys of logs and witnesses, and how many of these must have signed.
    #[arg(long, value_name = "FILE", env = "GRADLEDGER_POLICY")]
    policy: Option<PathBuf>,
    /// A log's verifier key in place of a policy; twice for the keys of both logs.
    #[arg(long, value_name = "KEY", conflicts_with = "policy")]
    log_key: Vec<VerifierKey>,
    /// A check that is not required; it fails all the same if it can be done and does not hold.
    #[arg(long, value_name = "CHECK")]
    without: Vec<Check>,
}

impl TrustArgs {
    /// Reads the policy.
    pub fn read(&self) -> Result<Trust, CliError> {
        let policy = match &self.policy {
            Some(path) => {
                let io = |source| CliError::Io { path: path.clone(), source };
                let text = read_whole(&Disk, path, POLICY_BYTES_MAX as u64).map_err(io)?;
                let wrong = |source| CliError::Policy { path: path.clone(), source };
                Some(Policy::parse(&text).map_err(wrong)?)
            }
            None if self.log_key.is_empty() => None,
            None => Some(Policy::of_logs(self.log_key.clone())),
        };
        Ok(Trust { policy, waived: self.without.iter().copied().collect() })
    }
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The bundle.
    bundle: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct VerifyDocument<'a> {
    kind: Option<&'static str>,
    subject: &'a str,
    verdict: Verdict,
    /// What those who signed are shown to have contradicted.
    evidence: Option<&'a str>,
    checks: &'a [Line],
}

pub fn verify(args: &VerifyArgs) -> Result<(), CliError> {
    let trust = args.trust.read()?;
    let io = |source| CliError::Io { path: args.bundle.clone(), source };
    let file = BufReader::new(File::open(&args.bundle).map_err(io)?);
    let verified = verify_bundle(file, &trust);
    let verdict = verdict(&verified.lines);
    let (kind, subject) = (verified.kind, verified.subject.as_str());
    let evidence = verified.evidence.as_deref();
    let document = VerifyDocument { kind, subject, verdict, evidence, checks: &verified.lines };
    print(args.json, &document, || {
        let claim = kind.map_or_else(String::new, |kind| format!("{kind}: {subject}\n"));
        let evidence = evidence.map_or_else(String::new, |text| {
            format!("EVIDENCE: the log's key signed what contradicts itself: {text}\n")
        });
        claim + &lines_text(&verified.lines) + &evidence
    })?;
    ended(verdict)
}

/// An error unless everything that is required passed.
pub fn ended(verdict: Verdict) -> Result<(), CliError> {
    if verdict == Verdict::Passed { Ok(()) } else { Err(CliError::Verdict(verdict)) }
}

/// One line a check, its findings below it.
pub fn lines_text(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        let status = match line.status {
            Status::Passed => "passed",
            Status::Failed => "FAILED",
            Status::NotDone => "not done",
            Status::NotRequired => "not required",
        };
        let _ = writeln!(text, "{:22} {status:12} {:>8}", line.check.as_str(), line.checked);
        for why in &line.not_done {
            let _ = writeln!(text, "    {}", why.escape_debug());
        }
        for finding in &line.findings {
            let _ = writeln!(text, "    {}", finding.text.escape_debug());
        }
        if line.found > line.findings.len() as u64 {
            let more = line.found - line.findings.len() as u64;
            let _ = writeln!(text, "    and {more} more");
        }
    }
    text
}
