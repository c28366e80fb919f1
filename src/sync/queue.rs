//! What is to be fetched: tasks nobody has begun with, items under way, and who may take what.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
};

use super::{
    error::SyncError,
    item::{Item, Source, What},
};

/// Something to fetch that nobody has begun with.
pub(super) struct Task {
    pub(super) what: What,
    /// Mirrors that do not have it.
    pub(super) lacking: BTreeSet<usize>,
}

/// An item under way.
pub(super) struct Active {
    pub(super) item: Arc<Item>,
    pub(super) todo: VecDeque<Range<u64>>,
    /// Pieces that are not here, queued or being fetched.
    pub(super) left: u64,
    pub(super) lacking: BTreeSet<usize>,
    /// Where each mirror has it.
    pub(super) sources: BTreeMap<usize, Arc<Source>>,
}

/// What is to be fetched, what is under way, and who is at it.
pub(super) struct Queue {
    pub(super) tasks: VecDeque<Task>,
    pub(super) active: Vec<Active>,
    /// Workers that are at something.
    pub(super) working: usize,
    pub(super) failed: Option<SyncError>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.active.is_empty()
    }

    pub(super) fn find(&mut self, item: &Arc<Item>) -> &mut Active {
        let found = self.active.iter_mut().find(|active| Arc::ptr_eq(&active.item, item));
        found.expect("an item stays while a run of it is fetched")
    }

    /// Something that mirror `number` may have, of at most `active_max` items under way.
    pub(super) fn take(&mut self, number: usize, active_max: usize) -> Option<Step> {
        let mut active = self.active.iter_mut().filter(|a| !a.lacking.contains(&number));
        if let Some((item, run)) = active.find_map(|a| Some((a.item.clone(), a.todo.pop_front()?)))
        {
            return Some(Step::Fetch(item, run));
        }
        if self.active.len() >= active_max {
            return None;
        }
        let at = self.tasks.iter().position(|task| !task.lacking.contains(&number))?;
        self.tasks.remove(at).map(Step::Prepare)
    }

    /// What every mirror in `alive` lacks.
    pub(super) fn lacking_everywhere(&self, alive: &[usize]) -> Option<String> {
        let everywhere = |lacking: &BTreeSet<usize>| alive.iter().all(|m| lacking.contains(m));
        let task = self.tasks.iter().find(|task| everywhere(&task.lacking));
        let active = self.active.iter().find(|active| everywhere(&active.lacking));
        task.map(|task| task.what.name()).or(active.map(|active| active.item.what.name()))
    }
}

/// What a worker does next.
pub(super) enum Step {
    Prepare(Task),
    Fetch(Arc<Item>, Range<u64>),
}
