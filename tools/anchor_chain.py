"""Anchors on a local chain that runs a real subtensor runtime, and tries what goes wrong there.

    python3 tools/anchor_chain.py --chain DIR [--gradledger BIN]

DIR holds `start.sh` and `spec.json` of the local chain (chopsticks; blocks are made when this script
asks for one). BIN is a build with `--features chain`, by default target/release/gradledger. Needs the
Python packages `bittensor` and `bittensor-wallet`. What is missing is said, and the exit code is 77:
skipped.

Checked: three sealed rounds anchored, each read back from raw storage and by the Python SDK; the rate
limit hit, named, and passed; a foreign value not overwritten; the program killed between submission
and receipt, and taken up again without a second commitment; a server that anchors by itself, which is
held up by the rate limit, killed, and goes on. Said at the end: what this chain cannot show. It proves
no state and has no GRANDPA, so receipts are a node's word here; proofs are tested with
`tests/golden/chain/`.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
GOLDEN = HERE / "tests/golden/templar/real_hparams"
NETUID = 3
KEYS = {"anchor": "//Alice//anchor", "miner": "//Bob//miner0"}


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


class Chain:
    """The local chain: a process, its RPC, and blocks on demand."""

    def __init__(self, folder, port):
        self.url = f"127.0.0.1:{port}"
        self.log = tempfile.TemporaryFile()
        command = ["bash", str(folder / "start.sh"), str(port), "Manual"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(600):
            if self.process.poll() is not None:
                skip("the chain does not start")
            try:
                self.rpc("system_chain")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        skip("the chain does not answer")

    def rpc(self, method, *params):
        body = json.dumps({"id": 1, "jsonrpc": "2.0", "method": method, "params": params})
        request = urllib.request.Request(
            f"http://{self.url}", body.encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer = json.load(answer)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def pending(self):
        return self.rpc("author_pendingExtrinsics")

    def block(self, **how):
        return self.rpc("dev_newBlock", {"count": 1, **how})

    def height(self):
        return int(self.rpc("chain_getHeader")["number"], 16)

    def transactions(self, hotkey):
        """How many extrinsics of all blocks are signed by `hotkey`."""
        found, at = 0, self.rpc("chain_getBlockHash")
        while True:
            block = self.rpc("chain_getBlock", at)["block"]
            found += sum(hotkey in extrinsic for extrinsic in block["extrinsics"])
            if int(block["header"]["number"], 16) <= 1:
                return found
            at = block["header"]["parentHash"]

    def pass_rate_limit(self):
        self.block(unsafeBlockHeight=self.height() + 150)


class Ledger:
    """A ledger of golden Templar files, each round with one refused file."""

    def __init__(self, program, folder, name):
        self.program, self.path, self.folder = program, folder / name, folder
        checkpoint = GOLDEN / "params-initial.safetensors"
        self.run("init", self.path, "--run", name, "--checkpoint", checkpoint, "--rule", "templar")

    def run(self, *args, code=0):
        done = subprocess.run(
            [self.program, *map(str, args)], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, f"{args}: exit {done.returncode}, not {code}: {done.stderr}"
        return done

    def seal(self, number):
        files = self.folder / f"files-{number}"
        files.mkdir(exist_ok=True)
        shutil.copy(GOLDEN / "w62840/gradient-62840-1-v2.1.28.pt", files / f"gradient-{number}-1-v2.1.28.pt")
        self.run("import", "templar", self.path, "--round", number, "--gradients", files, "--peers", "1")
        self.run("seal", self.path, "--round", number)

    def digest(self):
        """SHA-256 of the newest head's text, from the published note alone."""
        note = (self.path / "log/rounds/checkpoint").read_text()
        return hashlib.sha256(note.split("\n\n")[0].encode() + b"\n").hexdigest()

    def anchor_command(self, chain, key):
        return [
            self.program, "anchor", str(self.path), "--endpoint", f"ws://{chain.url}",
            "--netuid", str(NETUID), "--hotkey", str(key), "--unproven", "--json",
        ]  # fmt: skip

    def anchor(self, chain, key):
        """Anchors, makes a block once a transaction waits, and gives code, document and talk."""
        process = subprocess.Popen(
            self.anchor_command(chain, key), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(600):
            if process.poll() is not None:
                break
            if chain.pending():
                chain.block()
            time.sleep(0.2)
        out, error = process.communicate(timeout=60)
        return process.returncode, json.loads(out) if out else None, error


def stored_digest(chain, public):
    """The digest in the hotkey's slot, from raw storage: the last 33 bytes are `83` and the digest."""
    prefix = "0xca407206ec1ab726b2636c4b145ac287419a60ae8b01e6dcaebd7317e43c69bf"
    prefix += NETUID.to_bytes(2, "little").hex()
    keys = chain.rpc("state_getKeysPaged", prefix, 100, None)
    (key,) = [key for key in keys if key.endswith(public)]
    value = chain.rpc("state_getStorage", key)
    assert value[-66:-64] == "83", value
    return value[-64:]


async def sdk_digest(bittensor, chain, address):
    async with bittensor.Client(f"ws://{chain.url}") as client:
        commitment = await client.read("commitment", netuid=NETUID, hotkey_ss58=address)
    (field,) = commitment.fields
    return field["Sha256"].removeprefix("0x")


def write_keys(folder):
    from bittensor_wallet import Keypair
    from bittensor_wallet.keyfile import serialized_keypair_to_keyfile_data

    pairs = {}
    for name, uri in KEYS.items():
        pairs[name] = Keypair.create_from_uri(uri)
        (folder / f"{name}.key").write_bytes(serialized_keypair_to_keyfile_data(pairs[name]))
    return pairs


def check(what):
    print(f"ok  {what}", flush=True)


def anchored(bittensor, chain, ledger, key, pair):
    """The newest head is anchored, and both readers agree."""
    wanted, public = ledger.digest(), bytes(pair.public_key).hex()
    code, document, error = ledger.anchor(chain, key)
    assert code == 0, error
    assert document["anchor"]["value"] == wanted
    assert stored_digest(chain, public) == wanted
    assert asyncio.run(sdk_digest(bittensor, chain, pair.ss58_address)) == wanted
    return document


def killed(chain, ledger, key):
    """Kills the program once its transaction waits in the pool; then a block takes it."""
    process = subprocess.Popen(
        ledger.anchor_command(chain, key), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        if chain.pending():
            break
        time.sleep(0.1)
    assert chain.pending(), "no transaction came"
    process.kill()
    process.wait()
    assert (ledger.path / "anchors/intent.json").exists()


class Server:
    """`serve --anchor`; it takes no uploads, so rounds are sealed beside it."""

    def __init__(self, chain, ledger, key):
        self.chain, self.ledger = chain, ledger
        self.log = ledger.folder / "serve.log"
        command = [
            ledger.program, "serve", str(ledger.path), "--anchor", "--endpoint", f"ws://{chain.url}",
            "--netuid", str(NETUID), "--hotkey", str(key), "--unproven", "--json",
            "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
        ]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        text = ""
        while not text.rstrip().endswith("}"):
            line = self.process.stdout.readline()
            assert line, self.log.read_text()
            text += line
        self.address = json.loads(text)

    def ledger_view(self):
        with urllib.request.urlopen(f"http://{self.address['listen']}/v1/ledger", timeout=60) as answer:
            return json.load(answer)

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.address['metrics']}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        return int(re.search(rf"^gradledger_{name} (\d+)", text, re.MULTILINE)[1])

    def wait(self, holds, blocks=True):
        """Makes blocks while something waits for one."""
        for _ in range(600):
            if holds():
                return
            if blocks and self.chain.pending():
                self.chain.block()
            time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def anchored(self):
        self.wait(lambda: self.ledger_view()["unanchored_rounds"] == 0)

    def end(self):
        self.process.terminate()
        assert self.process.wait(timeout=60) == 0, self.log.read_text()


def served(chain, ledger, key, public):
    """A server anchors, is held up by the rate limit, is killed with a transaction under way, and goes on."""
    server = Server(chain, ledger, key)
    ledger.seal(7)
    wanted = ledger.digest()
    server.anchored()
    assert stored_digest(chain, public) == wanted
    assert server.metric("anchor_lag_rounds") == 0
    check("a server anchors what is sealed beside it")

    ledger.seal(8)
    wanted = ledger.digest()
    server.wait(lambda: server.metric("anchor_failures_total") >= 1)
    assert server.metric("anchor_lag_rounds") == 1
    assert "one commitment per hotkey in some time" in server.log.read_text()
    chain.pass_rate_limit()
    server.anchored()
    assert stored_digest(chain, public) == wanted
    check("held up by the rate limit it goes on serving, and anchors later")

    chain.pass_rate_limit()
    count = chain.transactions(public)
    ledger.seal(9)
    wanted = ledger.digest()
    server.wait(lambda: chain.pending(), blocks=False)
    server.process.kill()
    server.process.wait()
    server = Server(chain, ledger, key)
    server.anchored()
    assert stored_digest(chain, public) == wanted
    assert chain.transactions(public) == count + 1
    server.end()
    check("killed with a transaction under way it takes that up: one commitment")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chain", type=Path, required=True)
    parser.add_argument("--gradledger", default=str(HERE / "target/release/gradledger"))
    parser.add_argument("--port", type=int, default=29945)
    args = parser.parse_args()
    if not (args.chain / "spec.json").exists():
        skip(f"{args.chain} has no spec.json: make it with make_spec.py")
    if not Path(args.gradledger).exists():
        skip(f"{args.gradledger} is not there: cargo build --release --features chain")
    try:
        import bittensor
    except ImportError:
        skip("the Python package bittensor is not there")
    chain = Chain(args.chain, args.port)
    try:
        with tempfile.TemporaryDirectory() as folder:
            scenario(bittensor, chain, args.gradledger, Path(folder))
    finally:
        chain.process.kill()


def why_not(chain, method):
    """What this chain says to a question that a real one answers."""
    try:
        chain.rpc(method, ["0x3a636f6465"])
    except RuntimeError as error:
        return f"{method}: {error.args[0]['message']}"
    return f"{method} answers, but nothing here asks for it"


def scenario(bittensor, chain, program, folder):
    pairs = write_keys(folder)
    key, pair = folder / "anchor.key", pairs["anchor"]
    public = bytes(pair.public_key).hex()
    ledger = Ledger(program, folder, "first")
    for number in range(1, 4):
        ledger.seal(number)
        anchored(bittensor, chain, ledger, key, pair)
        check(f"round {number} anchored in block {chain.height()}, read back by both")
        code, document, _ = ledger.anchor(chain, key)
        assert code == 0 and document["already"], document
        if number < 3:
            chain.pass_rate_limit()
    check("nothing new is not anchored again")

    ledger.seal(4)
    code, _, error = ledger.anchor(chain, key)
    assert code == 1 and re.search("one commitment per hotkey in some time", error), error
    check("the rate limit is hit and named")
    chain.pass_rate_limit()
    anchored(bittensor, chain, ledger, key, pair)
    check("and passed")

    chain.pass_rate_limit()
    other, before = Ledger(program, folder, "second"), stored_digest(chain, public)
    code, _, error = other.anchor(chain, key)
    assert code == 1 and "not a head of this log" in error, error
    assert stored_digest(chain, public) == before and not chain.pending()
    check("a foreign value is not overwritten")

    for taken in (True, False):
        ledger.seal(6 - taken)
        wanted, count = ledger.digest(), chain.transactions(public)
        killed(chain, ledger, key)
        if taken:
            chain.block()
            assert stored_digest(chain, public) == wanted
        document = anchored(bittensor, chain, ledger, key, pair)
        assert document["resumed"] and stored_digest(chain, public) == wanted
        assert chain.transactions(public) == count + 1
        assert not (ledger.path / "anchors/intent.json").exists()
        when = "with the transaction in a block" if taken else "with it in the pool"
        check(f"killed {when}: taken up, one commitment")
        chain.pass_rate_limit()

    served(chain, ledger, key, public)
    place = ["--genesis", chain.rpc("chain_getBlockHash", 0).removeprefix("0x"), "--netuid", NETUID]
    place += ["--hotkey", pair.ss58_address, "--included", "--endpoint", f"ws://{chain.url}", "--json"]
    done = ledger.run("anchor", "verify", ledger.path, *place, code=3)
    document = json.loads(done.stdout)
    undone = [line["check"] for line in document["checks"] if line["status"] == "not-done"]
    assert undone == ["state"], document["checks"]
    live, receipts = document["live"], document["receipts"]
    assert live["slot"]["kind"] == "own" and live["blocks"] == len(receipts) > 5, live
    check("beside the node every receipt's block is there; what proves nothing is not called a proof")
    ledger.run("anchor", "justify", ledger.path, "--endpoint", f"ws://{chain.url}")
    ledger.run("fsck", ledger.path)
    check("there is no justification to fetch; fsck is silent")
    for method, what in (
        ("state_getReadProof", "state proofs"),
        ("grandpa_proveFinality", "GRANDPA justifications"),
    ):
        print(f"skipped: {what}: {why_not(chain, method)}", flush=True)
    print("all passed", flush=True)
    os.sync()


main()
