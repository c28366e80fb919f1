"""Makes schema/vectors/statement.jsonl: `pip install bittensor-wallet==4.1.1`, then run this.

Written from schema/statement.md alone, so that it checks the Rust code and is not its echo. The
signatures are randomised: a new run gives other ones, everything else stays the same.
"""

import hashlib
import json
import pathlib
import struct

from bittensor_wallet import Keyfile

HERE = pathlib.Path(__file__).parent
OUT = HERE.parents[2] / "schema/vectors/statement.jsonl"
MOST = 2**53 - 1

sha = lambda text: hashlib.sha256(text.encode()).hexdigest()
key = Keyfile(str(HERE / "hk_uri")).keypair
hotkey = bytes(key.public_key).hex()


def statement(name, run, round, base, delta, delta_bytes, hotkey, tag=b"gradledger/delta/1"):
    data = tag + bytes.fromhex(run) + struct.pack("<Q", round) + bytes.fromhex(base)
    data += bytes.fromhex(delta) + struct.pack("<Q", delta_bytes) + bytes.fromhex(hotkey)
    return {
        "name": name,
        "run": run,
        "round": round,
        "base": base,
        "delta": delta,
        "delta_bytes": delta_bytes,
        "hotkey": hotkey,
        "bytes": data.hex(),
        "id": hashlib.sha256(data).hexdigest(),
    }


def signed(case):
    data = bytes.fromhex(case["bytes"])
    case["signature"] = key.sign(data).hex()
    case["signature_wrapped"] = key.sign(b"<Bytes>" + data + b"</Bytes>").hex()
    return case


def refused(name, data, by):
    return {"name": name, "bytes": data.hex(), "refused": by}


parts = (sha("run"), 812, sha("base"), sha("delta"), 2_147_483_648, hotkey)
plain = statement("plain", *parts)
data = bytes.fromhex(plain["bytes"])
number = lambda at: data[:at] + struct.pack("<Q", MOST + 1) + data[at + 8 :]
zero, ones = "00" * 32, "ff" * 32
cases = [
    signed(plain),
    signed(statement("round 0, nothing sent", parts[0], 0, parts[2], parts[3], 0, hotkey)),
    signed(statement("largest numbers", parts[0], MOST, parts[2], parts[3], MOST, hotkey)),
    statement("all zero", zero, 0, zero, zero, 0, zero),
    statement("all ones where digests are", ones, 0x0102030405060708 >> 11, ones, ones, 1, ones),
    refused("empty", b"", "length"),
    refused("one byte short", data[:-1], "length"),
    refused("one byte long", data + b"\0", "length"),
    refused("wrapped", b"<Bytes>" + data + b"</Bytes>", "length"),
    refused("another version", data[:17] + b"2" + data[18:], "tag"),
    refused("another kind", b"gradledger/proof/1" + data[18:], "tag"),
    refused("round 2^53", number(50), "integer"),
    refused("delta_bytes 2^53", number(122), "integer"),
]
OUT.parent.mkdir(exist_ok=True)
OUT.write_text("".join(json.dumps(case) + "\n" for case in cases))
