#!/usr/bin/env python3
"""Makes schema/vectors/ from what the pages in schema/ say, with no code of this crate.

Numbers are exact rationals, rounded once an operation; hashes are hashlib's; Ed25519 is that of the
package `cryptography`. Writes the files that are missing and no others: a changed vector means a
new format version. Not made here: the statement's (tests/golden/wallet/statements.py), and the Parquet
files, which the code writes (tests/vectors.rs).
"""

import base64
import hashlib
import json
import pathlib
import struct
from fractions import Fraction
from math import isqrt

OUT = pathlib.Path(__file__).parent.parent / "schema" / "vectors"

# Floats: "nan", ("inf", sign) or (sign, exact magnitude); sign is 1 where negative.
NAN = {32: "7fc00000", 64: "7ff8000000000000"}
SHAPE = {32: (24, -126, 127), 64: (53, -1022, 1023)}  # precision, least and greatest exponent


def decode(hex_bits):
    width = 4 * len(hex_bits)
    precision, low, high = SHAPE[width]
    bits = int(hex_bits, 16)
    sign, rest = bits >> (width - 1), bits & ((1 << (width - 1)) - 1)
    exponent, mantissa = rest >> (precision - 1), rest & ((1 << (precision - 1)) - 1)
    if exponent == 2 * high + 1:
        return "nan" if mantissa else ("inf", sign)
    if exponent:
        mantissa |= 1 << (precision - 1)
    return (sign, Fraction(mantissa) * Fraction(2) ** (max(exponent, 1) - 1 + low - precision + 1))


def encode(value, width):
    precision, low, high = SHAPE[width]
    if value == "nan":
        return NAN[width]
    sign = value[1] if value[0] == "inf" else value[0]
    if value[0] == "inf":
        rest = (2 * high + 1) << (precision - 1)
    else:
        magnitude = value[1]
        exponent = max(floor_log2(magnitude), low) if magnitude else low
        mantissa = magnitude / Fraction(2) ** (exponent - precision + 1)
        assert mantissa.denominator == 1, "encode takes what is rounded"
        # A mantissa without its leading bit is denormal; with it, it carries into the exponent.
        rest = ((exponent - low) << (precision - 1)) + int(mantissa)
    return f"{sign << (width - 1) | rest:0{width // 4}x}"


def floor_log2(x):
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1


def rounded(sign, magnitude, width, root=False):
    """Nearest even of `magnitude`, or of its square root."""
    if magnitude == 0:
        return (sign, Fraction(0))
    precision, low, high = SHAPE[width]
    exponent = max(floor_log2(magnitude) // (2 if root else 1), low)
    unit = Fraction(2) ** (exponent - precision + 1)
    scaled = magnitude / (unit * unit if root else unit)
    whole = isqrt(int(scaled)) if root else int(scaled)
    half = Fraction(2 * whole + 1, 2)
    half = half * half if root else half
    if scaled > half or (scaled == half and whole % 2):
        whole += 1
    value = whole * unit
    return ("inf", sign) if value >= Fraction(2) ** (high + 1) else (sign, value)


def exact(value):
    return -value[1] if value[0] else value[1]


def fma(a, b, c, width):
    """a * b + c, rounded once."""
    if "nan" in (a, b, c):
        return "nan"
    signs = [v[1] if v[0] == "inf" else v[0] for v in (a, b, c)]
    product = signs[0] ^ signs[1]
    if a[0] == "inf" or b[0] == "inf":
        other = b if a[0] == "inf" else a
        if other[0] != "inf" and other[1] == 0:
            return "nan"
        return "nan" if c[0] == "inf" and signs[2] != product else ("inf", product)
    if c[0] == "inf":
        return c
    total = exact(a) * exact(b) + exact(c)
    if total == 0:
        both = product if product == signs[2] else 0
        return (both, Fraction(0))
    return rounded(int(total < 0), abs(total), width)


ONE = (0, Fraction(1))


def add(a, b, width):
    return fma(a, ONE, b, width)


def mul(a, b, width):
    # A product that is zero keeps its own sign: add a zero of that sign.
    if "nan" in (a, b):
        return "nan"
    sign = (a[1] if a[0] == "inf" else a[0]) ^ (b[1] if b[0] == "inf" else b[0])
    return fma(a, b, (sign, Fraction(0)), width)


def div(a, b, width):
    if "nan" in (a, b):
        return "nan"
    sign = (a[1] if a[0] == "inf" else a[0]) ^ (b[1] if b[0] == "inf" else b[0])
    if a[0] == "inf":
        return "nan" if b[0] == "inf" else ("inf", sign)
    if b[0] == "inf":
        return (sign, Fraction(0))
    if b[1] == 0:
        return "nan" if a[1] == 0 else ("inf", sign)
    return rounded(sign, a[1] / b[1], width)


def sqrt(a, width):
    if a == "nan" or a[0] == "inf":
        return a
    return rounded(0, a[1], width, root=True)


def bits32(number):
    return f"{struct.unpack('<I', struct.pack('<f', number))[0]:08x}"


def little(hex_bits):
    return bytes.fromhex(hex_bits)[::-1]


# Hashes.


def sha256(data):
    return hashlib.sha256(data).digest()


def tree(leaves):
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return sha256(b"\x01" + tree(leaves[:split]) + tree(leaves[split:]))


def leaf(entry):
    return sha256(b"\x00" + entry)


def piece_digests(data):
    return [sha256(data[at : at + 65536]) for at in range(0, len(data), 65536)]


def artifact(data):
    return {"bytes": len(data), "root": tree([leaf(p) for p in piece_digests(data)]).hex()}


def canonical(value):
    # Names here are ASCII, so code points sort as UTF-16 does.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def manifest_id(entries):
    total = sum(json.loads(entry)["bytes"] for entry in entries)
    root = tree([leaf(entry) for entry in entries]).hex()
    return {"bytes": total, "count": len(entries), "root": root}


# Files.


def write(name, data):
    path = OUT / name
    if path.exists():
        print("kept", name)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print("wrote", name)


def lines(name, cases):
    write(name, "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases).encode())


def xorshift(seed):
    x = seed
    while True:
        x ^= x << 13 & (1 << 64) - 1
        x ^= x >> 7
        x ^= x << 17 & (1 << 64) - 1
        yield x


# The vectors.

HASH = {c: c * 64 for c in "0123456789abcdef"}
MODEL = {"bytes": 24, "count": 1, "root": HASH["a"]}
NEXT = {"bytes": 24, "count": 1, "root": HASH["b"]}
DELTA = {"bytes": 68, "count": 3, "root": HASH["d"]}
RULE = {
    "id": "sparse-mean-sgd/1", "dialect": "templar", "chunk": 64, "top_k": 64, "bins": 4,
    "lr_f32": "3ecccccd", "mean": "contributors", "norm": "torch-cpu-f32",
}
SEED = bytes(range(32))
ORIGIN = "ledger.example/run"


def public_key(seed=SEED):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key, key.public_key().public_bytes_raw()


def key_id(name, public):
    return sha256(name.encode() + b"\n\x01" + public)[:4]


def vkey(name, seed=SEED):
    _, public = public_key(seed)
    key = base64.b64encode(b"\x01" + public).decode()
    return f"{name}+{key_id(name, public).hex()}+{key}"


def refusal(code, expected, found, tensor=None):
    return {"code": code, "expected": expected, "found": found, "tensor": tensor}


def log_keys(seed=SEED):
    return {log: vkey(f"{ORIGIN}/{log}", seed) for log in ("rounds", "submissions")}


def rotations():
    """One entry each, after a genesis with the key of SEED, at entry 1 of the rounds log."""
    run, next_seed, third = leaf(b"vectors"), bytes(range(32, 64)), bytes(range(64, 96))

    def signed(index=1, run=run, old=SEED, new=next_seed, size=2, by=None):
        body = (
            b"gradledger/key-rotation/1\0" + run + struct.pack("<QQ", index, size)
            + bytes.fromhex(HASH["2"]) + public_key(old)[1] + public_key(new)[1]
        )
        return body, [public_key(seed)[0].sign(body).hex() for seed in by or (old, new)]

    def case(what, keys=None, size=2, refused=None, **changes):
        body, (by_old, by_new) = signed(**({"size": size} | changes))
        entry = {
            "kind": "key-rotation", "log_keys": keys or log_keys(next_seed),
            "submissions": {"size": size, "root": HASH["2"]}, "by_old": by_old, "by_new": by_new,
        }
        text = canonical(entry)
        base = {"what": what, "run": run.hex(), "log_keys": log_keys(), "index": 1, "entry": text.decode()}
        if refused:
            return base | {"refused": refused}
        return base | {"leaf": leaf(text).hex(), "signed": body.hex()}

    yield case("a hand-over")
    yield case("with fewer submissions", size=0)
    yield case("signed for another entry", index=2, refused="Signature")
    yield case("signed for another run", run=leaf(b"other"), refused="Signature")
    yield case("from another key", old=third, refused="Signature")
    yield case("signed twice by the new key", by=(next_seed, next_seed), refused="Signature")
    yield case("signed twice by the old key", by=(SEED, SEED), refused="Signature")
    yield case("to the key that signs already", keys=log_keys(), new=SEED, refused="Reused")
    mixed = log_keys(next_seed) | {"submissions": vkey(ORIGIN + "/submissions", third)}
    yield case("two keys", keys=mixed, refused="TwoKeys")
    other = log_keys(next_seed) | {"rounds": vkey("ledger.example/other/rounds", next_seed)}
    yield case("the keys of another log", keys=other, refused="Name")


def records():
    genesis = {
        "kind": "genesis", "version": 1, "run": "vectors", "origin": ORIGIN, "model": MODEL,
        "rule": RULE, "miners": "listed", "netuid": None, "chain_genesis": None,
        "log_keys": {"rounds": vkey(ORIGIN + "/rounds"), "submissions": vkey(ORIGIN + "/submissions")},
        "anchor_hotkey": None,
    }
    anchored = genesis | {
        "netuid": 3, "chain_genesis": HASH["c"], "anchor_hotkey": HASH["e"],
        "miners": {"hotkeys": [HASH["e"], HASH["2"]]},
        "rule": RULE | {"dialect": "native", "mean": "all", "norm": "histogram-f64", "bins": 256},
    }
    round_record = {
        "kind": "round", "round": 7, "previous": leaf(canonical(genesis)).hex(), "base": MODEL,
        "next": NEXT, "rule": RULE, "plan": {"bytes": 48, "root": HASH["1"]},
        "submissions": {"start": 0, "end": 2, "root_at_end": HASH["2"]},
        "dispositions": {"count": 3, "root": HASH["3"]}, "listed": [7, HASH["4"]], "reserve": [200],
        "skipped": [{"tensor": 0, "element": 5}], "block": None,
    }
    on_chain = round_record | {
        "round": 8, "skipped": [], "reserve": [], "block": {"number": 9007199254740991, "hash": HASH["5"]},
    }
    fetched = {
        "kind": "fetched", "round": 7, "base": MODEL, "uid": 7, "file": "gradient-7-7-v2.1.28.pt",
        "source_bytes": 4096, "source_sha256": HASH["6"], "outcome": {"delta": DELTA},
    }
    refused = refusal("crc-mismatch", "crc 00000001", "crc 00000002", "wq")
    signed = {
        "kind": "signed", "round": 7, "base": HASH["a"], "delta": DELTA, "hotkey": HASH["4"],
        "signature": HASH["7"] + HASH["8"], "refused": None,
    }
    taken = [
        ("rounds", "a genesis of the Templar dialect", genesis),
        ("rounds", "a genesis with every optional field and the other choices", anchored),
        ("rounds", "a round", round_record),
        ("rounds", "a round that names a block", on_chain),
        ("rounds", "a genesis with files", genesis | {"files": [
            {"bytes": 2, "name": "config.json", "sha256": sha256(b"{}").hex()},
            {"bytes": 0, "name": "vocab_1-a.txt", "sha256": sha256(b"").hex()},
        ]}),
        ("submissions", "a fetched file that holds a delta", fetched),
        ("submissions", "a fetched file that was refused", fetched | {"outcome": {"refused": refused}}),
        ("submissions", "a reserve's file that was left unread", fetched | {"outcome": "unread"}),
        ("submissions", "a signed delta", signed),
        ("submissions", "a signed delta that was refused", signed | {"refused": refused}),
    ]
    for log, what, entry in taken:
        text = canonical(entry)
        yield {"log": log, "what": what, "entry": text.decode(), "leaf": leaf(text).hex()}

    def without(entry, name):
        return {k: v for k, v in entry.items() if k != name}

    bad = [
        ("rounds", "a field nobody knows", canonical(genesis | {"extra": 1})),
        ("rounds", "a missing field, even one that may be null", canonical(without(genesis, "netuid"))),
        ("rounds", "a list of no files", canonical(genesis | {"files": []})),
        ("rounds", "a file with a field nobody knows", canonical(genesis | {"files": [
            {"bytes": 2, "name": "a", "sha256": HASH["a"], "mode": 1}]})),
        ("rounds", "another rule", canonical(genesis | {"rule": RULE | {"id": "sparse-mean-sgd/2"}})),
        ("rounds", "a digest in upper case", canonical(round_record | {"previous": HASH["a"].upper()})),
        ("rounds", "a short digest", canonical(round_record | {"previous": "aa"})),
        ("rounds", "an f32 as a number", canonical(genesis | {"rule": RULE | {"lr_f32": 0.4}})),
        ("rounds", "an f32 in upper case", canonical(genesis | {"rule": RULE | {"lr_f32": "3ECCCCCD"}})),
        ("rounds", "a uid beyond 65535", canonical(round_record | {"listed": [65536]})),
        ("rounds", "an integer beyond 2^53 - 1", canonical(round_record | {"round": 1 << 53})),
        ("rounds", "a negative round", canonical(round_record | {"round": -1})),
        ("rounds", "a reserved kind", canonical({"kind": "anchor", "block": 1})),
        ("rounds", "a submission", canonical(fetched)),
        ("rounds", "white space", json.dumps(genesis, sort_keys=True).encode()),
        ("rounds", "another order of fields", json.dumps(round_record, separators=(",", ":")).encode()),
        ("submissions", "a code nobody knows",
         canonical(fetched | {"outcome": {"refused": refused | {"code": "ugly"}}})),
        ("submissions", "two outcomes",
         canonical(fetched | {"outcome": {"delta": DELTA, "refused": refused}})),
        ("submissions", "a name that is not NFC", canonical(fetched | {"file": "e\u0301.pt"})),
        ("submissions", "a control character", canonical(fetched | {"file": "a\u0007.pt"})),
        ("submissions", "a round", canonical(round_record)),
        ("submissions", "a short signature", canonical(signed | {"signature": HASH["7"]})),
        ("submissions", "a signature in upper case", canonical(signed | {"signature": HASH["a"].upper() * 2})),
        ("submissions", "a signed delta that does not say whether it was refused", canonical(without(signed, "refused"))),
    ]
    for log, what, text in bad:
        yield {"log": log, "what": what, "entry": text.decode(), "refused": True}


def descriptor(kind, group, name, dtype, shape, size, root):
    return {
        "type": kind, "group": group, "name": name, "dtype": dtype, "shape": shape, "bytes": size,
        "piece_log2": 16, "root": root,
    }


def manifests():
    def weight(name, **change):
        return canonical(descriptor("tensor", "weights", name, "F32", [2, 3], 24, HASH["a"]) | change)

    delta = [
        canonical(descriptor("delta", "book", "wq", "F32", [5], 20, HASH["1"])),
        canonical(descriptor("delta", "code", "wq", "U8", [3, 1], 3, HASH["2"])),
        canonical(descriptor("delta", "index", "wq", "U8", [3, 6], 18, HASH["3"])),
    ]
    for what, entries in [
        ("nothing", []),
        ("one tensor", [weight("wq")]),
        ("a tensor without dimensions and one without elements", [
            weight("a", shape=[], bytes=4), weight("b", shape=[0, 5], bytes=0, root=sha256(b"").hex())]),
        ("names in bytewise order, one of them not ASCII", [weight("B"), weight("a"), weight("\u00e9")]),
        ("a delta of one tensor", delta),
    ]:
        yield {"what": what, "entries": [e.decode() for e in entries], "id": manifest_id(entries)}
    for name, entries in [
        ("Twice", [weight("a"), weight("a")]),
        ("Order", [weight("b"), weight("a")]),
        ("Order", [delta[1], delta[0]]),
        ("Bytes", [weight("a", bytes=20)]),
        ("Piece", [weight("a", piece_log2=15)]),
        ("Group", [weight("a", group="Weights")]),
        ("Group", [weight("a", group="")]),
        ("Group", [weight("a", group="x" * 65)]),
        ("Tensor", [weight("")]),
        ("Tensor", [weight("x" * 513)]),
        ("Tensor", [weight("a", shape=[1] * 9, bytes=4)]),
        ("Tensor", [weight("a", shape=[0, 1 << 51], bytes=0)]),
        ("Total", [weight(n, shape=[1 << 50], bytes=1 << 52) for n in "ab"]),
        ("Json", [weight("e\u0301")]),
        ("Json", [weight("a", dtype="F128")]),
        ("Json", [weight("a") + b" "]),
    ]:
        yield {"entries": [e.decode() for e in entries], "refused": name}


def pack_index(blocks):
    out = bytearray()
    for block in blocks:
        for a, b in zip(block[::2], block[1::2]):
            out += bytes([a & 255, a >> 8 | (b & 15) << 4, b >> 4])
    return bytes(out)


def pack_codes(blocks, width):
    out = bytearray()
    for block in blocks:
        number = sum(code << width * at for at, code in enumerate(block))
        out += number.to_bytes(-(-len(block) * width // 8), "little")
    return bytes(out)


def deltas():
    for blocks in [[[0, 1]], [[2748, 291]], [[4095, 0, 7, 4094], [1, 2, 3, 4]], [[63, 17, 0, 62, 8, 9]]]:
        yield {"part": "index", "k": len(blocks[0]), "blocks": blocks, "hex": pack_index(blocks).hex()}
    for width, blocks in [
        (2, [[0, 1, 2, 3]]),
        (2, [[1, 2, 3, 0, 1, 1], [3, 3, 3, 3, 3, 3]]),
        (2, [[3, 1], [0, 2]]),
        (4, [[15, 0, 1, 14]]),
        (4, [[1, 2], [15, 4], [5, 6]]),
        (8, [[0, 255], [128, 1]]),
    ]:
        packed = pack_codes(blocks, width)
        yield {"part": "code", "k": len(blocks[0]), "bits": width, "blocks": blocks, "hex": packed.hex()}
    for what, lookup, shift in [
        ("a book as it comes", ["bf800000", "bf000000", "3f000000", "3f800000"], "3c23d70a"),
        ("a shift that rounds away, a zero that changes sign", ["4b800000", "80000000", "3f800001", "ff7fffff"],
         "00000000"),
        ("denormals", ["00000001", "80000001", "007fffff", "00800000"], "80000001"),
        ("half of a last place: ties to even", ["3f800000", "3f800001", "3f800002", "3f800003"], "33800000"),
    ]:
        data = b"".join(little(b) for b in [*lookup, shift])
        values = [encode(add(decode(b), decode(shift), 32), 32) for b in lookup]
        yield {"part": "book", "what": what, "lookup": lookup, "shift": shift, "hex": data.hex(), "values": values}
    yield {"part": "index", "block": 64, "k": 2, "hex": pack_index([[1, 2], [63, 64]]).hex(),
           "refused": "IndexOutOfRange"}
    yield {"part": "index", "block": 64, "k": 4, "hex": pack_index([[5, 7, 9, 5]]).hex(), "refused": "Repeated"}
    yield {"part": "code", "k": 2, "bits": 2, "hex": "0f1f", "refused": "Padding"}
    yield {"part": "code", "k": 6, "bits": 2, "hex": "ff1f", "refused": "Padding"}
    good = ["00000000", "3f800000", "40000000", "40400000"]
    for dialect, lookup, shift, name in [
        ("templar", good[:3] + ["7fc00000"], "00000000", "Lookup"),
        ("templar", good[:3] + ["ff800000"], "00000000", "Lookup"),
        ("native", good, "7f800000", "Shift"),
        ("native", good[:3] + ["5d800000"], "00000000", "Magnitude"),
        ("native", good[:3] + ["7f7fffff"], "7f7fffff", "Magnitude"),
        ("templar", good[:3] + ["5d800000"], "00000000", None),
        ("native", good[:3] + ["5d7fffff"], "00000000", None),
    ]:
        data = b"".join(little(b) for b in [*lookup, shift])
        yield {"part": "book", "dialect": dialect, "hex": data.hex(), "refused": name}


def plan_bytes(rows):
    return b"".join(
        little(row["norm"]) + little(row["factor"]) + bytes(4) + b"".join(c.to_bytes(8, "little") for c in row["counts"])
        for row in rows
    )


def plans():
    def row(norm, factor, *counts):
        return {"norm": norm, "factor": factor, "counts": list(counts)}

    rows = [row("3ff8000000000000", "3f800000", 1, 2, 3, 4), row("7ff8000000000000", "7fc00000", 0, 0, 0, 10)]
    more = [
        row("7ff0000000000000", "00000000", 9007199254740993, 0, 0, 0), row("0000000000000000", "3f7fffff", 0, 1, 0, 0),
        row("0000000000000001", "00000001", 0, 0, 1, 0), row("7fefffffffffffff", "3f000000", 0, 0, 0, 1),
    ]
    wide = [row("3ff0000000000000", "3f800000", *range(16))]
    for what, tensors, miners, bins, rows_ in [
        ("no miners", 2, 0, 4, []), ("a NaN", 1, 2, 4, rows), ("the ends of the ranges", 2, 2, 4, more),
        ("16 bins", 1, 1, 16, wide),
    ]:
        data = plan_bytes(rows_)
        yield {"what": what, "tensors": tensors, "miners": miners, "bins": bins, "rows": rows_,
               "hex": data.hex(), "artifact": artifact(data)}
    good = plan_bytes(rows)

    def with_at(at, part):
        return (good[:at] + part + good[at + len(part):]).hex()

    for what, data, name in [
        ("a byte less", good[:-1].hex(), "Length"),
        ("a row less", good[:48].hex(), "Length"),
        ("flags", with_at(12, b"\x01"), "Flags"),
        ("a factor of -0", with_at(8, little("80000000")), "Factor"),
        ("a factor above 1", with_at(8, little("3f800001")), "Factor"),
        ("an infinite factor", with_at(8, little("7f800000")), "Factor"),
        ("another NaN", with_at(8, little("7fc00001")), "Factor"),
        ("a norm of -0", with_at(0, little("8000000000000000")), "Norm"),
        ("a norm of another NaN", with_at(0, little("7ff0000000000001")), "Norm"),
        ("a norm below 0", with_at(0, little("bff0000000000000")), "Norm"),
    ]:
        yield {"what": what, "tensors": 1, "miners": 2, "bins": 4, "hex": data, "refused": name}


def norm_torch(values):
    lanes = [(0, Fraction(0))] * 8
    groups = len(values) // 8
    for at, v in enumerate(values[: 8 * groups]):
        lanes[at % 8] = add(lanes[at % 8], mul(v, v, 32), 32)
    total = (0, Fraction(0))
    for lane in lanes:
        total = add(total, lane, 32)
    tail = values[8 * groups :]
    plain = 4 if len(tail) >= 4 else 0
    for v in tail[:plain]:
        total = add(total, mul(v, v, 32), 32)
    for v in tail[plain:]:
        total = fma(v, v, total, 32)
    return sqrt(total, 32)


def norm_histogram(counts, values):
    total = (0, Fraction(0))
    for count, v in zip(counts, values):
        times = rounded(0, Fraction(count), 64)
        total = add(total, mul(times, mul(v, v, 64), 64), 64)
    return sqrt(total, 64)


def norms():
    random = xorshift(88172645463325252)

    def some(count):
        # Exponents from 2^-7 to 2^8, any sign and mantissa.
        return [f"{next(random) % (1 << 31) & 0x807fffff | (120 + next(random) % 16) << 23 | (next(random) & 1) << 31:08x}"
                for _ in range(count)]

    cases = [(f"{count} values: {count // 8} groups and a tail of {count % 8}", some(count))
             for count in [*range(17), 61, 62, 63]]
    cases += [
        ("an infinity", ["3f800000"] * 9 + ["ff800000"]),
        ("a NaN in a lane", ["3f800000", "7fc00000"] + ["3f800000"] * 7),
        ("a square that overflows", ["7f000000", "3f800000"]),
        ("squares that vanish", ["00000001", "80000001", "1a000000"]),
        ("squares that are denormal", ["1c800001"] * 9),
    ]
    for what, values in cases:
        norm = encode(norm_torch([decode(b) for b in values]), 32)
        yield {"norm": "torch-cpu-f32", "what": what, "values": values, "is": norm}
    for what, counts, values in [
        ("four codes", [4, 0, 9, 1], ["3f800000", "40a00000", "c0000000", "3dcccccd"]),
        ("counts beyond 2^53", [9007199254740993, 1, 0, 3], ["3f800001", "3f7fffff", "3f800000", "00000001"]),
        ("a code that does not occur and is infinite", [1, 0, 0, 0], ["3f800000", "7f800000", "00000000", "00000000"]),
        ("denormal values", [3, 5, 0, 7], ["00000001", "80000003", "00000000", "007fffff"]),
    ]:
        norm = encode(norm_histogram(counts, [decode(b) for b in values]), 64)
        yield {"norm": "histogram-f64", "what": what, "counts": counts, "values": values, "is": norm}
    one, eight = {32: "3f800000", 64: "3ff0000000000000"}, {32: "322bcc77", 64: "3e45798ee2308c3a"}
    infinite = {32: "7f800000", 64: "7ff0000000000000"}
    for width, name in [(32, "torch-cpu-f32"), (64, "histogram-f64")]:
        def of(x, width=width):
            return encode(rounded(0, Fraction(x), width), width)

        for what, given in [
            ("one miner", [of(5)]),
            ("an even count: the lower median", [of(3), of(1), of(8), of(2)]),
            ("an odd count", [of("0.1"), of("0.3"), of("0.7")]),
            ("all zero", [of(0), of(0)]),
            ("a NaN makes all NaN", [of(1), NAN[width], of(2)]),
            ("an infinite norm under a finite median", [of(1), infinite[width], of(2)]),
            ("an infinite median", [infinite[width], of(1), infinite[width]]),
            ("as small as 1e-8", [eight[width], of("0.000000005"), of(1)]),
        ]:
            values = [decode(b) for b in given]
            if "nan" in values:
                median = "nan"
            else:
                order = sorted(values, key=lambda v: (1, 0) if v[0] == "inf" else (0, v[1]))
                median = order[(len(order) - 1) // 2]
            factors = []
            for v in values:
                ratio = div(median, add(v, decode(eight[width]), width), width)
                if ratio != "nan" and (ratio[0] == "inf" or ratio[1] > 1):
                    ratio = decode(one[width])
                factors.append(encode(ratio if ratio == "nan" else rounded(0, ratio[1], 32), 32))
            yield {"norm": name, "what": what, "norms": given, "factors": factors}


def fold_case(what, shape, k, width, mean, lr, base, miners):
    """One band; `shape` is rows, columns, block rows, block columns."""
    rows, columns, height, breadth = shape
    total, count = [(0, Fraction(0))] * len(base), [0] * len(base)
    across = columns // breadth
    for m in miners:
        level = [
            mul(add(decode(v), decode(m["shift"]), 32), decode(m["factor"]), 32) for v in m["lookup"]
        ]
        for block, (index, code) in enumerate(zip(m["index"], m["code"])):
            assert len(index) == len(code) == k
            for i, c in zip(index, code):
                row = block // across * height + i // breadth
                element = row * columns + block % across * breadth + i % breadth
                total[element] = add(total[element], level[c], 32)
                count[element] += 1
    minus_lr = decode(lr)
    minus_lr = (1 - minus_lr[0], minus_lr[1])
    following, bad_delta, bad_next = list(base), None, None
    for at in range(len(base)):
        if count[at] == 0:
            continue
        divisor = count[at] if mean == "contributors" else len(miners)
        delta = div(total[at], (0, Fraction(divisor)), 32)
        value = fma(minus_lr, delta, decode(base[at]), 32)
        following[at] = encode(value, 32)
        if bad_delta is None and (delta == "nan" or delta[0] == "inf"):
            bad_delta = at
        if bad_next is None and (value == "nan" or value[0] == "inf"):
            bad_next = at
    return {
        "what": what, "rows": rows, "columns": columns, "block_rows": height, "block_columns": breadth, "k": k,
        "bits": width, "mean": mean, "lr_f32": lr, "miners": miners, "base": base, "next": following,
        "delta_non_finite": bad_delta, "next_non_finite": bad_next,
    }


def folds():
    lookup = [bits32(v) for v in (-0.75, -0.1, 0.1, 0.75)]

    def miner(index, code, lookup=lookup, shift="00000000", factor="3f800000"):
        return {"index": index, "code": code, "lookup": lookup, "shift": shift, "factor": factor}

    lr = "3ecccccd"
    ones = ["3f800000"] * 4
    yield fold_case("one miner; elements nobody sent keep their bits", (1, 4, 1, 4), 2, 2, "contributors", lr,
                    ["3f800000", "80000000", "7fc12345", "3dcccccd"], [miner([[0, 3]], [[0, 3]])])
    three = [
        miner([[0, 1]], [[3, 2]], shift="3c23d70a"), miner([[1, 2]], [[0, 1]], factor="3eaaaaab"),
        miner([[1, 0]], [[3, 3]], factor="3f19999a"),
    ]
    yield fold_case("three miners, divided by contributors", (1, 4, 1, 4), 2, 2, "contributors", lr, ones, three)
    yield fold_case("three miners, divided by all", (1, 4, 1, 4), 2, 2, "all", lr, ones, three)
    big = [bits32(16777216.0), bits32(1.0), bits32(-16777216.0), bits32(3.0)]
    yield fold_case("the order of the miners decides: 2^24 + 1 - 2^24", (1, 2, 1, 2), 2, 2, "contributors", "3f800000",
                    ["00000000", "00000000"],
                    [miner([[0, 1]], [[0, 1]], big), miner([[0, 1]], [[1, 0]], big), miner([[0, 1]], [[2, 2]], big)])
    yield fold_case("one rounding: fma and not a product and a sum", (1, 2, 1, 2), 2, 2, "contributors", lr,
                    ["3f800001", "3eaaaaab"], [miner([[0, 1]], [[0, 3]], ["3f7fffff", *lookup[1:3], "3f2aaaab"])])
    zero = ["80000000", "00000000", "80000000", "00000000"]
    yield fold_case("zeros: -0 is summed from +0; a delta of +0 keeps the sign of the base", (1, 4, 1, 4), 4, 2,
                    "contributors", lr, ["80000000", "00000000", "80000000", "00000000"],
                    [miner([[0, 1, 2, 3]], [[0, 0, 1, 1]], zero)])
    yield fold_case("contributions that cancel are sent all the same", (1, 2, 1, 2), 2, 2, "contributors", lr,
                    ["80000000", "3f800000"], [miner([[0, 1]], [[3, 3]]), miner([[0, 1]], [[0, 0]])])
    tiny = ["00000001", "80000001", "007fffff", "00800000"]
    yield fold_case("denormals are kept", (1, 4, 1, 4), 4, 2, "contributors", "3f000000",
                    ["00000000", "00000001", "00800000", "80000003"], [miner([[0, 1, 2, 3]], [[0, 1, 2, 3]], tiny)])
    yield fold_case("a NaN factor: the lowest element whose delta is not finite is named", (2, 4, 1, 4), 2, 2,
                    "contributors", lr, ones + ["40000000", "80000000", "7fc12345", "40000000"],
                    [miner([[3, 2], [1, 0]], [[1, 2], [0, 3]], factor="7fc00000"), miner([[3, 0], [1, 3]], [[1, 2], [0, 3]])])
    huge = ["7f7fffff", "ff7fffff", "7f000000", "3f800000"]
    yield fold_case("a sum that overflows, and infinities that meet", (1, 4, 1, 4), 4, 2, "contributors", "3f800000", ones,
                    [miner([[0, 1, 2, 3]], [[3, 0, 0, 3]], huge), miner([[1, 2, 0, 3]], [[0, 0, 3, 3]], huge),
                     miner([[2, 1, 3, 0]], [[1, 1, 3, 3]], huge)])
    yield fold_case("a finite delta, a next value that overflows", (1, 2, 1, 2), 2, 2, "contributors", "40000000",
                    ["3f800000", "ff7fffff"], [miner([[1, 0]], [[2, 3]], huge)])
    random = xorshift(7)

    def block_index(size, k):
        left = list(range(size))
        return [left.pop(next(random) % len(left)) for _ in range(k)]

    def random_miner(blocks, size, k, bins, look):
        return miner([block_index(size, k) for _ in range(blocks)],
                     [[next(random) % bins for _ in range(k)] for _ in range(blocks)], look,
                     bits32((next(random) % 1000 - 500) / 1e5), bits32((next(random) % 1000 + 1) / 1000))

    base = [bits32((next(random) % 20001 - 10000) / 7e3) for _ in range(24)]
    yield fold_case("blocks of 2 x 3 over 4 x 6", (4, 6, 2, 3), 4, 2, "contributors", lr, base,
                    [random_miner(4, 6, 4, 4, lookup) for _ in range(5)])
    book = [bits32((at - 8) / 9) for at in range(16)]
    yield fold_case("16 bins, codes padded to a byte a block", (2, 10, 1, 5), 2, 4, "contributors", "3f333333", base[:20],
                    [random_miner(4, 5, 2, 16, book) for _ in range(3)])
    book = [bits32((at - 128) / 77) for at in range(256)]
    yield fold_case("256 bins, all", (1, 8, 1, 4), 2, 8, "all", lr, base[:8],
                    [random_miner(2, 4, 2, 256, book) for _ in range(2)])


def dispositions():
    def sent(uid, outcome, **change):
        return {
            "kind": "fetched", "round": 5, "base": MODEL, "uid": uid, "file": f"gradient-5-{uid}-v2.pt", "source_bytes": 1,
            "source_sha256": HASH["0"], "outcome": outcome,
        } | change

    def signed(digit, delta_digit, **change):
        return {
            "kind": "signed", "round": 5, "base": MODEL["root"], "delta": delta(delta_digit)["delta"],
            "hotkey": HASH[digit], "signature": HASH["7"] + HASH["8"], "refused": None,
        } | change

    def miner(submission):
        return submission.get("uid", submission.get("hotkey"))

    def delta(digit):
        return {"delta": {"bytes": 68, "count": 3, "root": HASH[digit]}}

    def rejected(*args):
        return {"rejected": refusal(*args)}

    def unused(missing):
        return rejected("reserve-unused", f"one of the {missing} reserves whose places were needed", "a reserve after them")

    def yes(order):
        return {"accepted": {"order": order}}

    unread = rejected("reserve-unused", "a file that was read", "one left unread as an unused reserve's")
    bad = refusal("non-finite", "finite lookup and shift", "the shift is NaN", "wq")
    wrong = {"refused": bad}
    cases = [
        ("listed by uid, then reserves: 9 is absent and 4 takes the place", "templar", [30, 9, 5], [4, 2],
         [sent(30, delta("1")), sent(5, delta("2")), sent(4, delta("3")), sent(2, delta("4"))],
         [yes(1), yes(0), yes(2), unused(1), "absent"]),
        ("native: all by uid", "native", [30, 9, 5], [4, 2],
         [sent(30, delta("1")), sent(5, delta("2")), sent(4, delta("3")), sent(2, "unread")],
         [yes(2), yes(1), yes(0), unused(1), "absent"]),
        ("a reserve that fails is not replaced", "templar", [5, 9], [4, 2],
         [sent(5, delta("1")), sent(4, wrong), sent(2, delta("2"))], [yes(0), {"rejected": bad}, unused(1), "absent"]),
        ("the lowest good index of a miner counts", "templar", [5], [],
         [sent(5, wrong), sent(5, delta("1")), sent(5, delta("2"))],
         [{"rejected": bad}, yes(0), rejected("duplicate-submission", "one submission, the one at index 11", "a later one")]),
        ("native: a copy of another's delta", "native", [5, 3], [], [sent(5, delta("1")), sent(3, delta("1"))],
         [yes(0), rejected("duplicate-delta", "a delta of the miner's own", "the delta of uid 5 at index 10")]),
        ("templar: a copy of another's delta is folded", "templar", [5, 3], [], [sent(5, delta("1")), sent(3, delta("1"))],
         [yes(1), yes(0)]),
        ("another round, another base, a stranger", "templar", [5], [],
         [sent(5, delta("1"), round=4), sent(5, delta("1"), base=NEXT), sent(6, delta("2"))],
         [rejected("wrong-round", "5", "4"), rejected("wrong-base", HASH["a"], HASH["b"]),
          rejected("not-listed", "a listed or reserve miner", "uid 6")]),
        ("a reserve whose place is needed but whose file was left unread", "templar", [5], [4],
         [sent(4, "unread")], [unread, "absent"]),
        ("native: signed, by hotkey; a copy by its name", "native", [HASH["e"], HASH["2"], HASH["b"]], [],
         [signed("e", "1"), signed("2", "2"), signed("b", "1"), signed("2", "3")],
         [yes(1), yes(0), rejected("duplicate-delta", "a delta of the miner's own", f"the delta of {HASH['e']} at index 10"),
          rejected("duplicate-submission", "one submission, the one at index 11", "a later one")]),
        ("native: uids before hotkeys; a signed delta that was refused, one from another base, a stranger's", "native",
         [HASH["2"], 9, HASH["3"]], [],
         [signed("2", "1"), sent(9, delta("2")), signed("3", "3", refused=bad), signed("3", "3", base=HASH["f"]), signed("0", "4")],
         [yes(1), yes(0), {"rejected": bad}, rejected("wrong-base", HASH["a"], HASH["f"]),
          rejected("not-listed", "a listed or reserve miner", HASH["0"])]),
        ("nobody is expected", "templar", [], [], [], []),
    ]
    for what, dialect, listed, reserve, submissions, verdicts in cases:
        found = []
        absent = [who for who in listed if who not in [miner(s) for s in submissions]]
        for at, verdict in enumerate(verdicts):
            index = 10 + at if at < len(submissions) else None
            who = miner(submissions[at]) if at < len(submissions) else absent[at - len(submissions)]
            found.append({"index": index, "miner": who, "verdict": verdict})
        assert len(found) == len(submissions) + len(absent), what
        root = tree([leaf(canonical(d)) for d in found]).hex()
        yield {"what": what, "round": 5, "base": MODEL, "dialect": dialect, "listed": listed, "reserve": reserve,
               "first_index": 10, "submissions": submissions, "dispositions": found,
               "id": {"count": len(found), "root": root}}


def receipt():
    """Of the first statement in statement.jsonl, at index 1 of 3."""
    signed = json.loads((OUT / "statement.jsonl").read_text().splitlines()[0])
    entry = canonical({
        "kind": "signed", "round": signed["round"], "base": signed["base"], "hotkey": signed["hotkey"], "refused": None,
        "delta": {"bytes": signed["delta_bytes"], "count": 3, "root": signed["delta"]}, "signature": signed["signature"],
    })
    leaves = [leaf(b"first"), leaf(entry), leaf(b"third")]
    return {
        "version": 1, "run_id": signed["run"], "statement": signed["id"], "index": 1, "entry": entry.decode(),
        "proof": [leaves[0].hex(), leaves[2].hex()], "head": head_note(ORIGIN + "/submissions", 3, tree(leaves)),
    }


def head_note(origin, size, root):
    key, public = public_key()
    body = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    signature = base64.b64encode(key_id(origin, public) + key.sign(body.encode())).decode()
    return f"{body}\n\u2014 {origin} {signature}\n"


def hashes():
    long, short = bytes(65536) + b"\x01", b"\x02"
    parts = []
    for name, data, dtype in [("a", long, "U8"), ("b", short, "U8"), ("c", b"", "U8")]:
        parts.append((name, data, canonical(descriptor("tensor", "weights", name, dtype, [len(data)], len(data),
                                                       artifact(data)["root"]))))
    entries = [entry for _, _, entry in parts]
    # The pieces of `b` come first in the file: digests stand in the order in which they were hashed.
    written, starts, digests = [parts[1], parts[0], parts[2]], {}, b""
    for name, data, _ in written:
        starts[name] = len(digests) // 32
        digests += b"".join(piece_digests(data))
    body = b"".join(
        starts[name].to_bytes(8, "little") + len(entry).to_bytes(4, "little") + entry for name, _, entry in parts)
    tail = b"".join(n.to_bytes(8, "little") for n in [len(digests) // 32, len(parts), len(body)]) + b"gradledger-hash1"
    yield {
        "what": "three artifacts of two, one and no pieces", "id": manifest_id(entries),
        "order": [name for name, _, _ in written],
        "digests": {name: [d.hex() for d in piece_digests(data)] for name, data, _ in parts},
        "entries": [entry.decode() for entry in entries], "hex": (digests + body + tail).hex(),
    }
    yield {"what": "nothing", "id": manifest_id([]), "order": [], "digests": {}, "entries": [],
           "hex": (bytes(24) + b"gradledger-hash1").hex()}


def places():
    root = HASH["a"][:1] + HASH["b"][1:]
    shelf = root[:2]
    for kind, fields, path in [
        ("tensor", {"bytes": 24, "dtype": "F32"}, f"segments/tensors/{shelf}/{root}-24.f32.parquet"),
        ("tensor", {"bytes": 3, "dtype": "F8_E4M3"}, f"segments/tensors/{shelf}/{root}-3.f8_e4m3.parquet"),
        ("delta", {}, f"segments/deltas/{shelf}/{root}"),
        ("plan", {"bytes": 48}, f"segments/plans/{shelf}/{root}-48.parquet"),
        ("dispositions", {"count": 3}, f"segments/dispositions/{shelf}/{root}-3.parquet"),
        ("hashes", {}, f"hashes/{shelf}/{root}"),
        ("quarantine", {"round": 62840}, f"quarantine/62840/{root}"),
    ]:
        yield {"kind": kind, "root": root} | fields | {"path": path}


def main():
    lines("records.jsonl", records())
    lines("manifests.jsonl", manifests())
    lines("delta.jsonl", deltas())
    lines("plan.jsonl", plans())
    lines("norms.jsonl", norms())
    lines("fold.jsonl", folds())
    lines("dispositions.jsonl", dispositions())
    lines("hashes.jsonl", hashes())
    lines("places.jsonl", places())
    lines("rotations.jsonl", rotations())
    rounds, root = ORIGIN + "/rounds", sha256(b"vectors")
    write("keys/log.key", b"gradledger-log-key/1 " + base64.b64encode(SEED) + b"\n")
    write("keys/log.key.heads", canonical({
        rounds: {"root": root.hex(), "size": 3}, ORIGIN + "/submissions": {"root": sha256(b"").hex(), "size": 0}}))
    write("tree-head.note", head_note(rounds, 3, root).encode())
    write("receipt.json", json.dumps(receipt(), indent=2, ensure_ascii=False).encode())
    write("open-round.json", canonical({"round": 62840, "listed": [7, 3, 41], "reserve": [200, HASH["4"]]}))
    write("retention.json", canonical({"dropped": [[1, 49], [51, 51]], "version": 1}))
    write("retention-of-copy.json", canonical({"held": [HASH["1"], HASH["4"]], "version": 2}))


if __name__ == "__main__":
    main()
