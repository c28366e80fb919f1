//! A ledger as two model repositories that Hub clients read: `OWNER/RUN` in bf16 and `OWNER/RUN-f32`.
//!
//! `worker` hashes what is new and publishes it here; `api` answers what clients ask of a repository,
//! `resolve` gives its files, none of which lies on the disk. What clients enforce is in
//! `schema/hub.md`.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hyper::{StatusCode, header::HeaderName};

use super::problem::Problem;
use crate::{
    export::{ExportDtype, VirtualFile},
    ledger::{
        At, Ledger, LedgerError,
        hub::{OpenRevision, Revision, given_files},
    },
    store::{StoreError, config::Config, hub::RepositoryName},
};

mod api;
mod resolve;
mod worker;

pub use api::endpoints;
pub use worker::Worker;

/// Who owns the repositories, if the configuration does not say.
const OWNER: &str = "gradledger";

/// What the repository with the state's own bits is called after the run's name.
const F32_SUFFIX: &str = "-f32";

/// States that are held open for the next request.
const OPEN_MAX: usize = 8;

const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");
const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");

/// The revisions of one repository with their names, oldest first.
type Named = Vec<(At, Arc<Revision>)>;

/// What is published.
#[derive(Clone, Debug, Default)]
struct Listed {
    bf16: Arc<Named>,
    f32: Arc<Named>,
}

/// The repositories of a ledger.
pub struct Hub {
    owner: RepositoryName,
    name: RepositoryName,
    listed: RwLock<Listed>,
    /// The files given at init, once they were read.
    given: Mutex<Option<Arc<[Arc<VirtualFile>]>>>,
    /// States that were asked for, the last one last.
    open: Mutex<Vec<(Arc<Revision>, Arc<OpenRevision>)>>,
}

impl Hub {
    /// The repositories of `ledger`, empty as yet, under the names that its configuration says.
    ///
    /// # Errors
    ///
    /// [`StoreError::Config`] if the configuration does not read.
    pub fn new(ledger: &Ledger) -> Result<Self, StoreError> {
        let chosen = Config::load(ledger.place())?.hub;
        let owner = chosen.owner.unwrap_or_else(|| RepositoryName::of_run(OWNER));
        let name = chosen.name.unwrap_or_else(|| RepositoryName::of_run(&ledger.genesis().run));
        Ok(Self {
            owner,
            name,
            listed: RwLock::default(),
            given: Mutex::default(),
            open: Mutex::default(),
        })
    }

    /// The ids of both repositories.
    pub fn ids(&self) -> [String; 2] {
        [ExportDtype::Bf16, ExportDtype::F32].map(|dtype| self.id(dtype))
    }

    fn id(&self, dtype: ExportDtype) -> String {
        let suffix = if dtype == ExportDtype::F32 { F32_SUFFIX } else { "" };
        format!("{}/{}{suffix}", self.owner.as_str(), self.name.as_str())
    }

    /// The repository `owner/name`.
    fn repository(&self, owner: &str, name: &str) -> Result<Repository, Problem> {
        let id = format!("{owner}/{name}");
        let dtypes = [ExportDtype::Bf16, ExportDtype::F32];
        let dtype = dtypes.into_iter().find(|dtype| self.id(*dtype) == id);
        let none = || {
            let [bf16, f32] = self.ids();
            missing("RepoNotFound", &format!("this server has the repositories {bf16} and {f32}"))
        };
        let dtype = dtype.ok_or_else(none)?;
        let listed = self.listed.read().unwrap_or_else(PoisonError::into_inner).clone();
        let named = if dtype == ExportDtype::F32 { listed.f32 } else { listed.bf16 };
        Ok(Repository { id, named })
    }

    fn publish(&self, listed: Listed) {
        *self.listed.write().unwrap_or_else(PoisonError::into_inner) = listed;
    }

    /// The files of `revision`, to read from. It may block.
    fn open(
        &self,
        ledger: &Ledger,
        revision: &Arc<Revision>,
    ) -> Result<Arc<OpenRevision>, LedgerError> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lock().iter().find(|(of, _)| of == revision).map(|(_, open)| open.clone());
        if let Some(open) = found {
            return Ok(open);
        }
        let opened = Arc::new(OpenRevision::open(ledger, revision, &self.given(ledger)?)?);
        let mut open = lock();
        if open.len() == OPEN_MAX {
            open.remove(0);
        }
        open.push((revision.clone(), opened.clone()));
        Ok(opened)
    }

    /// The files given at init: one copy for all revisions.
    fn given(&self, ledger: &Ledger) -> Result<Arc<[Arc<VirtualFile>]>, LedgerError> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(given) = &*given {
            return Ok(given.clone());
        }
        let read: Arc<[_]> = given_files(ledger)?.into();
        *given = Some(read.clone());
        Ok(read)
    }
}

/// One of the two repositories, as it is published now.
struct Repository {
    id: String,
    named: Arc<Named>,
}

impl Repository {
    /// The revision that a client calls `rev`.
    fn revision(&self, rev: &str) -> Result<Arc<Revision>, Problem> {
        let mut newest_first = self.named.iter().rev();
        let found = match rev {
            "main" | "HEAD" => newest_first.next(),
            rev => newest_first.find(|(at, revision)| tag(*at) == rev || revision.commit == rev),
        };
        let none = || {
            let message = match self.named.last() {
                None => "no state is hashed yet; ask again".to_owned(),
                Some(_) => format!("{} has no such revision, or it was dropped", self.id),
            };
            missing("RevisionNotFound", &message)
        };
        found.map(|(_, revision)| revision.clone()).ok_or_else(none)
    }
}

/// What a state is called as a revision.
fn tag(at: At) -> String {
    match at {
        At::Genesis => "genesis".to_owned(),
        At::Round(round) => format!("round-{round}"),
    }
}

/// A 404 that Hub clients tell apart by its code.
fn missing(code: &'static str, message: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not-found", message)
        .with(ERROR_CODE, code)
        .with(ERROR_MESSAGE, message)
}

/// A 404 about a file. Clients keep in mind that this revision lacks it.
fn no_entry(revision: &Revision, path: &str) -> Problem {
    let message = format!("{} is not in this revision", path.escape_default());
    missing("EntryNotFound", &message).with(REPO_COMMIT, &revision.commit)
}
