-- DuckDB views of a ledger's tables (schema/tables.md). In the ledger's directory:
--
--     duckdb -init path/to/gradledger.sql

CREATE OR REPLACE VIEW rounds AS
    SELECT * EXCLUDE (hundred) FROM read_parquet('tables/rounds/*/*.parquet', hive_partitioning = true);

CREATE OR REPLACE VIEW contributions AS
    SELECT * EXCLUDE (hundred) FROM read_parquet('tables/contributions/*/*.parquet', hive_partitioning = true);

CREATE OR REPLACE VIEW contribution_tensors AS
    SELECT * EXCLUDE (hundred) FROM read_parquet('tables/contribution_tensors/*/*.parquet', hive_partitioning = true);

CREATE OR REPLACE VIEW checkpoints AS
    SELECT * EXCLUDE (hundred) FROM read_parquet('tables/checkpoints/*/*.parquet', hive_partitioning = true);

CREATE OR REPLACE VIEW overlap AS
    SELECT * EXCLUDE (hundred) FROM read_parquet('tables/overlap/*/*.parquet', hive_partitioning = true);

-- A row a miner over the whole run.
CREATE OR REPLACE VIEW miners AS
    SELECT
        miner,
        min(first_round) AS first_round,
        max(last_round) AS last_round,
        sum(accepted)::BIGINT AS accepted,
        sum(rejected)::BIGINT AS rejected,
        sum(absent)::BIGINT AS absent,
        sum(accepted_bytes)::BIGINT AS accepted_bytes
    FROM read_parquet('tables/miners/*/*.parquet', hive_partitioning = true)
    GROUP BY miner;

-- Who was refused, and why.
CREATE OR REPLACE VIEW refusals AS
    SELECT round, miner, reason, reason_tensor, expected, found, file
    FROM contributions
    WHERE disposition = 'rejected';

-- Who sent the same: one delta twice in a round, whatever came of it, or accepted deltas that agree
-- in nearly every position.
CREATE OR REPLACE VIEW copies AS
    SELECT a.round, a.miner AS miner_a, b.miner AS miner_b, 'same delta' AS evidence,
        1.0 AS share_common, 1.0 AS cosine
    FROM contributions a
    JOIN contributions b ON a.round = b.round AND a.delta_root = b.delta_root
        AND a.submission_index < b.submission_index AND a.miner <> b.miner
    UNION ALL
    SELECT round, miner_a, miner_b, 'overlap', share_common, cosine
    FROM overlap
    WHERE NOT same_delta AND share_common > 0.9;
