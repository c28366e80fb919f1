#!/usr/bin/env python3
"""Real clients download from `gradledger serve`, and what they get is compared with `gradledger export`.

    python tools/hub_clients.py GRADLEDGER_BINARY CLIENT...

Makes a small run (gradient files of real miners, two states) and one of 24 MB, serves both on loopback, and
lets each CLIENT below download from them. A client that is not installed is named as SKIPPED. Python
clients are those of the Python that runs this. Exit code 1 if a client got something else.
"""

import array
import contextlib
import datetime
import hashlib
import importlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "templar" / "real_hparams"
RUN = "gradledger/hub-run"
LARGE = "gradledger/large"
DTYPES = {"": "bf16", "-f32": "f32"}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 256, "torch_dtype": "bfloat16",
}


class Skipped(Exception):
    """This client is not here."""


def need(holds, what):
    if not holds:
        raise AssertionError(what)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def module(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skipped(f"the Python package {name} is not installed") from error


def tool(name):
    return shutil.which(name) or skip(f"{name} is not installed")


def skip(why):
    raise Skipped(why)


class World:
    """Two ledgers, a server for each, and what they export."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        self.servers = []
        self.small, self.large = folder / "small", folder / "large-run"

    def gradledger(self, *args):
        done = subprocess.run([self.program, *map(str, args)], capture_output=True, text=True)
        need(done.returncode == 0, f"gradledger {args[0]}: {done.stderr}")

    def make(self):
        config, tokenizer = self.folder / "config.json", self.folder / "tokenizer.json"
        config.write_text(json.dumps(CONFIG))
        tokenizer.write_text(json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}))
        files = ["--hub-file", config, "--hub-file", tokenizer]
        rule = ["--rule", "templar", "--lr", "0.4", "--chunk", "64", "--top-k", "64", "--bins", "4"]
        self.gradledger("init", self.small, "--run", "hub-run", "--checkpoint",
                        GOLDEN / "params-initial.safetensors", *rule, *files)
        self.gradledger("import", "templar", self.small, "--round", 62840, "--gradients", GOLDEN / "w62840",
                        "--peers", "1,19,77,130,244")
        self.gradledger("seal", self.small, "--round", 62840)
        checkpoint = self.folder / "large.safetensors"
        write_checkpoint(checkpoint)
        self.gradledger("init", self.large, "--run", "large", "--checkpoint", checkpoint, *rule, *files)
        self.address = self.serve(self.small, RUN, ["genesis", "round-62840"])
        self.large_address = self.serve(self.large, LARGE, ["genesis"])

    def serve(self, ledger, repository, revisions):
        server = subprocess.Popen(
            [self.program, "serve", ledger, "--listen", "127.0.0.1:0", "--metrics", "off", "--json", "--log", "warn"],
            stdout=subprocess.PIPE, text=True,
        )
        self.servers.append(server)
        document = ""
        while not document.endswith("}\n"):
            line = server.stdout.readline()
            need(line, "the server did not start")
            document += line
        address = "http://" + json.loads(document)["listen"]
        for suffix in DTYPES:
            for revision in revisions:
                wait_for(f"{address}/api/models/{repository}{suffix}/revision/{revision}")
        return address

    def exported(self, ledger, dtype, state):
        """Digests of what `export` writes, by name."""
        out = self.folder / f"export-{ledger.name}-{dtype}-{state}"
        if not out.exists():
            self.gradledger("export", ledger, "--round", state, "--dtype", dtype, "--out", out)
        return {path.name: sha256(path) for path in out.iterdir()}

    def export_of(self, ledger, dtype, state, name):
        self.exported(ledger, dtype, state)
        return self.folder / f"export-{ledger.name}-{dtype}-{state}" / name

    def scratch(self, name):
        path = self.folder / "scratch" / name
        path.mkdir(parents=True)
        return path

    def weights(self, suffix=""):
        """Address and digest of the large run's file."""
        expected = self.exported(self.large, DTYPES[suffix], "genesis")["model.safetensors"]
        return f"{self.large_address}/{LARGE}{suffix}/resolve/main/model.safetensors", expected

    def close(self):
        for server in self.servers:
            server.kill()
            server.wait()


def write_checkpoint(path):
    """24 MB of f32 in three tensors, always the same."""
    numbers = random.Random(6)
    shapes = {"embed.weight": [1024, 2048], "head.weight": [1024, 3072], "norm.weight": [777]}
    header, at, data = {}, 0, b""
    block = array.array("f", (numbers.gauss(0, 1) for _ in range(65537)))
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = (block * (count // len(block) + 1))[:count].tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(values)]}
        at, data = at + len(values), data + values
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def wait_for(address):
    end = time.monotonic() + 300
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except urllib.error.HTTPError as error:
            need(error.code == 404, f"{address}: {error}")
        need(time.monotonic() < end, f"{address} is not listed after five minutes")
        time.sleep(0.1)


def run(*args, env=None, cwd=None, codes=(0,)):
    environment = os.environ | (env or {})
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, env=environment, cwd=cwd, timeout=300)
    need(done.returncode in codes, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


# ---- the clients ----

def hf(world):
    """`hf download` and `hf cache verify` of every revision, and what else its library asks."""
    hub = module("huggingface_hub")
    program = pathlib.Path(sys.executable).parent / "hf"
    home = world.scratch("hf")
    env = {"HF_ENDPOINT": world.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    for suffix, dtype in DTYPES.items():
        repository = RUN + suffix
        for revision, state in [("main", 62840), ("round-62840", 62840), ("genesis", "genesis")]:
            local = world.scratch(f"hf-{dtype}-{revision}")
            run(program, "download", repository, "--revision", revision, "--local-dir", local, env=env)
            found = {path.name: sha256(path) for path in local.iterdir() if path.is_file()}
            expected = world.exported(world.small, dtype, state)
            need(found == expected, f"{repository} {revision}: {found}, exported were {expected}")
            run(program, "download", repository, "--revision", revision, env=env)
            if has_verify(hub):
                run(program, "cache", "verify", repository, "--revision", revision, env=env)
    if has_verify(hub):
        # It does notice: a byte more in one file is an exit code.
        damaged = next((home / "hub").glob("models--*/snapshots/*/config.json")).resolve()
        damaged.chmod(0o644)
        damaged.write_bytes(damaged.read_bytes() + b" ")
        revision = "round-62840"
        codes = [subprocess.run(
            [program, "cache", "verify", RUN + suffix, "--revision", name],
            env=os.environ | env, capture_output=True).returncode
            for suffix in DTYPES for name in (revision, "genesis")]
        need(any(codes), "hf cache verify passed a damaged file")
    library(world, hub)


def has_verify(hub):
    return int(hub.__version__.split(".")[0]) >= 1


def library(world, hub):
    """The parts of the library that other programs call."""
    api = hub.HfApi(endpoint=world.address)
    info = api.model_info(RUN, files_metadata=True)
    expected = world.exported(world.small, "bf16", 62840)
    need({s.rfilename: s.lfs.sha256 for s in info.siblings} == expected, info)
    need(api.repo_exists(RUN) and not api.repo_exists("gradledger/none"), "repo_exists")
    need(api.revision_exists(RUN, "genesis") and not api.revision_exists(RUN, "round-1"), "revision_exists")
    need(api.file_exists(RUN, "config.json") and not api.file_exists(RUN, "none.json"), "file_exists")
    refs = api.list_repo_refs(RUN)
    need([r.name for r in refs.branches] == ["main"], refs)
    need({t.name: t.target_commit for t in refs.tags}["round-62840"] == info.sha, refs)
    commits = api.list_repo_commits(RUN, formatted=True)
    need(commits[0].commit_id == info.sha and len(commits) == 2, commits)
    paths = api.get_paths_info(RUN, ["config.json", "none.json"])
    need([p.path for p in paths] == ["config.json"] and paths[0].lfs.sha256 == expected["config.json"], paths)
    entries = list(api.list_repo_tree(RUN, recursive=True, revision=info.sha))
    need({e.path: e.lfs.sha256 for e in entries} == expected, entries)
    metadata = api.get_safetensors_metadata(RUN)
    need(set(metadata.parameter_count) == {"BF16"}, metadata)
    for wrong, error in [(("gradledger/none", "a"), "RepositoryNotFoundError"), ((RUN, "none.json"), "EntryNotFoundError")]:
        try:
            hub.hf_hub_download(*wrong, endpoint=world.address, cache_dir=world.folder / "errors")
            raise AssertionError(f"{wrong} was downloaded")
        except getattr(hub.errors, error):
            pass
    # That a file is missing is kept in mind for the revision.
    need(list((world.folder / "errors").glob("models--*/.no_exist/*/none.json")), "nothing kept in mind")
    files = hub.HfFileSystem(endpoint=world.address)
    with files.open(f"{RUN}@genesis/model.safetensors", "rb", block_size=4096) as file:
        bytes_ = world.export_of(world.small, "bf16", "genesis", "model.safetensors").read_bytes()
        for at, length in [(0, 8), (len(bytes_) // 2 + 1, 4099), (len(bytes_) - 5, 5)]:
            file.seek(at)
            need(file.read(length) == bytes_[at:at + length], f"{length} bytes at {at}")


def transformers(world):
    """Configuration and weights are found as `from_pretrained` looks for them."""
    os.environ["HF_ENDPOINT"] = world.address
    module("transformers")
    # A process of its own: the endpoint is read at import.
    script = """
import json, sys
from transformers import AutoConfig
from transformers.utils import cached_file
repository, revision, cache = sys.argv[1:]
config = AutoConfig.from_pretrained(repository, revision=revision, cache_dir=cache)
find = lambda name: cached_file(repository, name, revision=revision, cache_dir=cache,
    _raise_exceptions_for_missing_entries=False)
print(json.dumps({"hidden": config.hidden_size, "weights": find("model.safetensors"),
    "index": find("model.safetensors.index.json"), "adapter": find("adapter_config.json")}))
"""
    for suffix, dtype in DTYPES.items():
        cache = world.scratch(f"transformers-{dtype}")
        env = {"HF_ENDPOINT": world.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
        out = run(sys.executable, "-c", script, RUN + suffix, "round-62840", cache, env=env)
        found = json.loads(out.strip().splitlines()[-1])
        need(found["hidden"] == 64 and found["index"] is None and found["adapter"] is None, found)
        expected = world.exported(world.small, dtype, 62840)["model.safetensors"]
        need(sha256(found["weights"]) == expected, found)


def safetensors(world):
    """The format's library opens what was downloaded."""
    library, numpy = module("safetensors"), module("numpy")
    for suffix, dtype in DTYPES.items():
        address, expected = world.weights(suffix)
        path = world.scratch(f"safetensors-{dtype}") / "model.safetensors"
        urllib.request.urlretrieve(address, path)
        need(sha256(path) == expected, "another file")
        if dtype == "f32":
            source = world.folder / "large.safetensors"
            with library.safe_open(path, "numpy") as found, library.safe_open(source, "numpy") as wanted:
                need(sorted(found.keys()) == sorted(wanted.keys()), "other tensors")
                for name in wanted.keys():
                    same = numpy.array_equal(found.get_tensor(name), wanted.get_tensor(name))
                    need(same, f"{name} has other values")


def curl(world):
    """A part, the rest from there on, and the ranges and conditions of HTTP."""
    program = tool("curl")
    for suffix, dtype in DTYPES.items():
        address, expected = world.weights(suffix)
        path = world.scratch(f"curl-{dtype}") / "model.safetensors"
        run(program, "-sfS", "-r", "0-1234566", "-o", path, address)
        need(path.stat().st_size == 1234567, "a part of another length")
        run(program, "-sfS", "-C", "-", "-o", path, address)
        need(sha256(path) == expected, "another file")
        status = lambda *args: run(program, "-s", "-o", "/dev/null", "-w", "%{http_code}", *args, address)
        size = path.stat().st_size
        need(status("-r", f"{size}-") == "416", "a range from the end on")
        need(status("-r", f"-{size + 1}") == "206", "a suffix longer than the file")
        need(status("-H", f'If-None-Match: "{expected}"') == "304", "If-None-Match")
        need(status("-H", 'If-Match: "other"') == "412", "If-Match")


def wget(world):
    """`wget -c` goes on where a download broke off."""
    program = tool("wget")
    for suffix, dtype in DTYPES.items():
        address, expected = world.weights(suffix)
        path = world.scratch(f"wget-{dtype}") / "model.safetensors"
        whole = world.export_of(world.large, dtype, "genesis", "model.safetensors").read_bytes()
        path.write_bytes(whole[:len(whole) // 3 + 1])
        run(program, "-q", "-c", "-O", path, address)
        need(sha256(path) == expected, "another file")


def aria2c(world):
    """Eight connections to one file."""
    program = tool("aria2c")
    for suffix, dtype in DTYPES.items():
        address, expected = world.weights(suffix)
        path = world.scratch(f"aria2c-{dtype}")
        run(program, "-q", "-x", "8", "-s", "8", "-k", "1M", f"--checksum=sha-256={expected}", "-d", path,
            "-o", "model.safetensors", address)
        need(sha256(path / "model.safetensors") == expected, "another file")


def rclone(world):
    """The http remote."""
    program = tool("rclone")
    address, expected = world.weights()
    base, name = address.rsplit("/", 1)
    path = world.scratch("rclone") / name
    config = {"RCLONE_CONFIG": "/dev/null"}
    run(program, "copyto", "--http-url", base + "/", f":http:{name}", path, env=config)
    need(sha256(path) == expected, "another file")


def parquet_addresses(world):
    """A round's table and an f32 segment, where they lie and over HTTP."""
    files = sorted(world.small.glob("tables/contributions/*/*.parquet")) + sorted(
        world.small.glob("segments/tensors/*/*.f32.parquet"))[:2]
    need(len(files) == 3, files)
    return [(path, f"{world.address}/v1/files/{path.relative_to(world.small)}") for path in files]


def duckdb(world):
    """Parquet over HTTP, by httpfs where that is installed, else by fsspec."""
    library = module("duckdb")
    connection = library.connect()
    try:
        connection.load_extension("httpfs")
    except library.Error:
        module("aiohttp")

        class Http(module("fsspec.implementations.http").HTTPFileSystem):
            def modified(self, path):  # DuckDB asks, and there is no date.
                return datetime.datetime.fromtimestamp(0, datetime.timezone.utc)

        connection.register_filesystem(Http())
    for path, address in parquet_addresses(world):
        query = "SELECT * FROM read_parquet('{}', hive_partitioning = false)"
        expected, found = (connection.sql(query.format(where)).fetchall() for where in (path, address))
        need(repr(found) == repr(expected), address)


def polars(world):
    library = module("polars")
    for path, address in parquet_addresses(world):
        expected = library.read_parquet(path, hive_partitioning=False)
        for found in (library.read_parquet(address, hive_partitioning=False),
                      library.scan_parquet(address, hive_partitioning=False).collect()):
            need(repr(found.rows()) == repr(expected.rows()), address)


def pyarrow(world):
    fs, parquet = module("pyarrow.fs"), module("pyarrow.parquet")
    module("aiohttp")
    http = fs.PyFileSystem(fs.FSSpecHandler(module("fsspec").filesystem("http")))
    for path, address in parquet_addresses(world):
        need(parquet.read_table(address, filesystem=http, partitioning=None)
             .equals(parquet.read_table(path, partitioning=None)), address)


def pandas(world):
    library = module("pandas")
    module("pyarrow")
    for path, address in parquet_addresses(world):
        found, expected = library.read_parquet(address), library.read_parquet(path)
        shared = [column for column in found.columns if column in expected.columns]
        need(found[shared].equals(expected[shared]), address)


CLIENTS = [hf, transformers, safetensors, curl, wget, aria2c, rclone, duckdb, polars, pyarrow, pandas]


def main():
    names = {client.__name__: client for client in CLIENTS}
    if len(sys.argv) < 3 or not set(sys.argv[2:]) <= set(names):
        sys.exit(f"{__doc__}\nCLIENT: {' '.join(names)}")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(os.path.abspath(sys.argv[1]), pathlib.Path(folder))
        with contextlib.closing(world):
            world.make()
            for name in sys.argv[2:]:
                try:
                    names[name](world)
                    print(f"{name}: ok", flush=True)
                except Skipped as why:
                    print(f"{name}: SKIPPED, {why}", flush=True)
                except Exception as error:
                    print(f"{name}: FAILED, {type(error).__name__}: {error}", flush=True)
                    failed.append(name)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
