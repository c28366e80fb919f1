//! The tables' columns. See `schema/tables.md`.

use crate::store::segment::query::{ColumnSchema, Kind, TableSchema};

const fn column(name: &'static str, kind: Kind) -> ColumnSchema {
    ColumnSchema { name, kind, nullable: false }
}

const fn nullable(name: &'static str, kind: Kind) -> ColumnSchema {
    ColumnSchema { name, kind, nullable: true }
}

/// The tables that get rows with every round.
pub(super) const ROUND_TABLES: [TableSchema; 5] =
    [ROUNDS, CONTRIBUTIONS, CONTRIBUTION_TENSORS, CHECKPOINTS, OVERLAP];

/// A row a sealed round.
pub(super) const ROUNDS: TableSchema = TableSchema {
    name: "rounds",
    columns: &[
        column("round", Kind::Int),
        column("log_index", Kind::Int),
        column("record", Kind::Text),
        column("base_root", Kind::Text),
        column("next_root", Kind::Text),
        column("next_bytes", Kind::Int),
        column("submissions_start", Kind::Int),
        column("submissions_end", Kind::Int),
        column("listed", Kind::Int),
        column("reserve", Kind::Int),
        column("accepted", Kind::Int),
        column("rejected", Kind::Int),
        column("absent", Kind::Int),
        column("accepted_bytes", Kind::Int),
        column("skipped_tensors", Kind::Int),
    ],
};

/// A row a submission or absent miner, and round.
pub(super) const CONTRIBUTIONS: TableSchema = TableSchema {
    name: "contributions",
    columns: &[
        column("round", Kind::Int),
        column("miner", Kind::Text),
        nullable("submission_index", Kind::Int),
        column("disposition", Kind::Text),
        nullable("fold_order", Kind::Int),
        nullable("reason", Kind::Text),
        nullable("reason_tensor", Kind::Text),
        nullable("expected", Kind::Text),
        nullable("found", Kind::Text),
        nullable("file", Kind::Text),
        nullable("delta_root", Kind::Text),
        nullable("delta_bytes", Kind::Int),
        nullable("norm", Kind::Float64),
        nullable("norm_folded", Kind::Float64),
        nullable("share", Kind::Float64),
    ],
};

/// A row an accepted miner, tensor and round.
pub(super) const CONTRIBUTION_TENSORS: TableSchema = TableSchema {
    name: "contribution_tensors",
    columns: &[
        column("round", Kind::Int),
        column("tensor", Kind::Text),
        column("miner", Kind::Text),
        column("fold_order", Kind::Int),
        column("norm", Kind::Float64),
        column("factor", Kind::Float32),
        column("skipped", Kind::Bool),
        column("code_counts", Kind::Ints),
    ],
};

/// A row a state: the genesis with the first round.
pub(super) const CHECKPOINTS: TableSchema = TableSchema {
    name: "checkpoints",
    columns: &[
        nullable("round", Kind::Int),
        column("root", Kind::Text),
        column("tensors", Kind::Int),
        column("bytes", Kind::Int),
        nullable("base_root", Kind::Text),
    ],
};

/// A row a round and pair of accepted miners.
pub(super) const OVERLAP: TableSchema = TableSchema {
    name: "overlap",
    columns: &[
        column("round", Kind::Int),
        column("miner_a", Kind::Text),
        column("miner_b", Kind::Text),
        column("same_delta", Kind::Bool),
        column("positions", Kind::Int),
        column("positions_common", Kind::Int),
        column("share_common", Kind::Float64),
        nullable("cosine", Kind::Float64),
        column("blocks_sampled", Kind::Int),
        column("blocks", Kind::Int),
    ],
};

/// A row a miner and partition.
pub(super) const MINERS: TableSchema = TableSchema {
    name: "miners",
    columns: &[
        column("miner", Kind::Text),
        column("first_round", Kind::Int),
        column("last_round", Kind::Int),
        column("accepted", Kind::Int),
        column("rejected", Kind::Int),
        column("absent", Kind::Int),
        column("accepted_bytes", Kind::Int),
    ],
};
