#!/usr/bin/env python3
"""Reads a ledger with DuckDB, Polars and pyarrow, and compares what each finds with the ledger's own words.

    python tools/read_tables.py LEDGER GRADLEDGER_BINARY

Every table is read by all three and must give the same rows; rounds and contributions must be those of
`show --json`; every f32 segment must give the same sum in all three. In the demo's ledger the README's
questions must have the answers that the demo tells. Needs duckdb, polars, pyarrow.
"""

import glob
import json
import os
import re
import subprocess
import sys

import duckdb
import polars
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

TABLES = ["rounds", "contributions", "contribution_tensors", "checkpoints", "overlap", "miners"]


def rows_of_duckdb(table):
    query = f"SELECT * FROM read_parquet('tables/{table}/*/*.parquet', hive_partitioning = true)"
    found = duckdb.sql(query)
    return [dict(zip(found.columns, row)) for row in found.fetchall()]


def rows_of_polars(table):
    # hive_partitioning takes the directory's name for a column, as the others do.
    frame = polars.read_parquet(f"tables/{table}/**/*.parquet", hive_partitioning=True)
    return frame.to_dicts()


def rows_of_pyarrow(table):
    dataset = pyarrow.dataset.dataset(f"tables/{table}", format="parquet", partitioning="hive")
    return dataset.to_table().to_pylist()


def ordered(rows):
    """Rows in one order; floats by their exact hex."""
    plain = lambda value: value.hex() if isinstance(value, float) else value
    texts = [json.dumps({key: plain(value) for key, value in row.items()}, sort_keys=True) for row in rows]
    return sorted(texts)


def same(what, expected, found):
    # As text: a NaN is not equal to itself.
    if repr(expected) != repr(found):
        sys.exit(f"{what}: expected {expected!r}, found {found!r}")


def tables_agree():
    rows = {}
    for table in TABLES:
        rows[table] = rows_of_duckdb(table)
        if not rows[table] and table != "overlap":
            sys.exit(f"{table} has no rows")
        expected = ordered(rows[table])
        same(f"{table} by Polars", expected, ordered(rows_of_polars(table)))
        same(f"{table} by pyarrow", expected, ordered(rows_of_pyarrow(table)))
        print(f"{table}: {len(expected)} rows, the same in DuckDB, Polars and pyarrow")
    return rows


def as_shown(rows, ledger, binary):
    """Rounds and contributions are those that the ledger shows."""
    show = lambda *more: json.loads(subprocess.check_output([binary, "show", ledger, "--json", *more]))
    same("number of rounds", show()["rounds"], len(rows["rounds"]))
    for row in rows["rounds"]:
        shown = show("--round", str(row["round"]))
        same("record", shown["leaf"], row["record"])
        same("next", shown["record"]["next"]["root"], row["next_root"])
        expected = []
        for line in shown["dispositions"]:
            refusal = line["refusal"] or {}
            expected.append((str(line["miner"]), line["index"], line["order"], refusal.get("code")))
        columns = ["miner", "submission_index", "fold_order", "reason"]
        found = [tuple(c[k] for k in columns) for c in rows["contributions"] if c["round"] == row["round"]]
        key = lambda line: [str(value) for value in line]
        same(f"dispositions of round {row['round']}", sorted(expected, key=key), sorted(found, key=key))
    print("rounds and contributions are those of `show`")


def views_answer(sql):
    connection = duckdb.connect()
    connection.execute(open(sql).read())
    for view in TABLES + ["refusals", "copies"]:
        count = connection.sql(f"SELECT count(*) FROM {view}").fetchall()[0][0]
        print(f"view {view}: {count} rows")


# What the demo tells: who was refused in the log and why, and whose deltas are the same.
REFUSED = [
    (2, "mallory", "non-finite"),
    (3, "mallory", "duplicate-index"),
    (4, "mallory", "code-out-of-range"),
    (7, "mallory", "duplicate-delta"),
    (8, "dia", "duplicate-submission"),
    (9, "mallory", "wrong-base"),
]
SAME = [(7, "cho", "mallory", "same delta"), (10, "cho", "mallory", "overlap")]
FOLDED = [("ana", 12), ("ben", 12), ("cho", 12), ("dia", 12), ("eli", 12), ("mallory", 1)]


def readme_answers(sql, readme):
    """The README's questions, asked of the demo's ledger."""
    connection = duckdb.connect()
    connection.execute(open(sql).read())
    block = re.search(r"## Tables to query.*?```sql\n(.*?)```", open(readme).read(), re.S).group(1)
    statements = [text.strip() for text in re.sub(r"--.*", "", block).split(";")]
    answers = {text: connection.execute(text).fetchall() for text in statements if text}
    asked = [rows for text, rows in answers.items() if text.startswith("SELECT")]
    contributed, refused, copies, alike, weights = asked
    same("who contributed", FOLDED, [row[:2] for row in contributed])
    same("who was refused", REFUSED, [row[:3] for row in refused])
    # A pair has no order: the fold's is by hotkey.
    pairs = [(row[0], *sorted(row[1:3]), row[3]) for row in copies]
    same("who sent the same", SAME, pairs)
    same("rounds compared", list(range(1, 13)), [row[0] for row in alike])
    same("rows of weights", 1, len(weights))
    print("the README's questions have the demo's answers")


def segments_agree():
    paths = glob.glob("segments/tensors/*/*.f32.parquet")
    for path in paths:
        values = pyarrow.parquet.read_table(path)["value"]
        expected = (len(values), pyarrow.compute.sum(values).as_py(), pyarrow.compute.max(values).as_py())
        frame = polars.read_parquet(path)["value"]
        count, largest = duckdb.sql(f"SELECT count(value), max(value) FROM '{path}'").fetchall()[0]
        same(path, (expected[0], expected[2]), (count, largest))
        same(path, (expected[0], expected[2]), (len(frame), frame.max()))
        difference = abs(float(frame.cast(polars.Float64).sum()) - expected[1])
        if difference > 1e-6 * max(1.0, abs(expected[1])):
            sys.exit(f"{path}: sums differ by {difference}")
    deltas = glob.glob("segments/deltas/*/*/*.parquet")
    others = deltas + glob.glob("segments/plans/*/*.parquet") + glob.glob("segments/dispositions/*/*.parquet")
    for path in others:
        expected = pyarrow.parquet.read_table(path).to_pylist()
        same(path, expected, polars.read_parquet(path).to_dicts())
        columns = list(expected[0]) if expected else []
        found = duckdb.sql(f"SELECT * FROM '{path}'").fetchall() if expected else []
        same(path, expected, [dict(zip(columns, row)) for row in found])
    print(f"{len(paths)} tensors and {len(others)} other segments are the same in all three")


def main():
    ledger, binary = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    sql, readme = os.path.join(here, "gradledger.sql"), os.path.join(here, "README.md")
    os.chdir(ledger)
    as_shown(tables_agree(), ledger, binary)
    views_answer(sql)
    if os.path.exists("../miners.csv"):
        readme_answers(sql, readme)
    segments_agree()


if __name__ == "__main__":
    main()
