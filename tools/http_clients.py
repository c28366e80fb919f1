"""curl, Prometheus' parser and DuckDB against a served ledger: URL, the metrics' URL, the ledger's directory."""

import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request


def largest(ledger: pathlib.Path) -> pathlib.Path:
    """The largest file of a state: what a joiner fetches."""
    return max((ledger / "segments/tensors").rglob("*.parquet"), key=lambda path: path.stat().st_size)


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def curl_resumes(url: str, ledger: pathlib.Path) -> None:
    """A download that was cut at each of four places goes on there and gives the same bytes."""
    if not shutil.which("curl"):
        print("curl: SKIPPED, it is not here")
        return
    source = largest(ledger)
    size = source.stat().st_size
    path = source.relative_to(ledger)
    with tempfile.TemporaryDirectory() as temporary:
        for cut in (0, 1, size // 2, size - 1):
            target = pathlib.Path(temporary) / "part"
            target.write_bytes(source.read_bytes()[:cut])
            subprocess.run(["curl", "-fsS", "-C", "-", "-o", target, f"{url}/v1/files/{path}"], check=True)
            assert sha256(target) == sha256(source), f"resumed at {cut}"
    print(f"curl: {size} bytes, resumed at four places, the same SHA-256")


def prometheus_parses(metrics: str) -> None:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"{metrics}/metrics") as answer:
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert families["gradledger_http_requests"].type == "counter", families
    assert families["gradledger_rounds"].samples[0].value >= 1
    print(f"prometheus_client: {len(families)} families")


def duckdb_queries(url: str, ledger: pathlib.Path) -> None:
    """The same rows over HTTP as from the disk. httpfs is an extension that DuckDB downloads."""
    import duckdb

    table = next((ledger / "tables/contributions").rglob("*.parquet"))
    query = "SELECT round, miner, disposition FROM '{}' ORDER BY ALL"
    connection = duckdb.connect()
    try:
        connection.execute("INSTALL httpfs")
        connection.execute("LOAD httpfs")
    except duckdb.Error as error:
        print(f"DuckDB: SKIPPED, its extension httpfs is not to be had here ({str(error).splitlines()[0][:80]})")
        return
    served = connection.execute(query.format(f"{url}/v1/files/{table.relative_to(ledger)}")).fetchall()
    assert served == connection.execute(query.format(table)).fetchall() and served
    print(f"DuckDB: {len(served)} rows over HTTP, the same as from the disk")


def main() -> None:
    url, metrics, ledger = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    curl_resumes(url, ledger)
    prometheus_parses(metrics)
    duckdb_queries(url, ledger)


main()
