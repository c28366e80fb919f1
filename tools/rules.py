"""What a run's records say and what its rules give, for tools/verify.py: written from schema/json.md, records.md, manifest.md,
fold.md, delta.md and plan.md. Exact without help: every f32 operation is rounded once, see `f32` and `fused`."""
import ctypes, json, math, re, struct, unicodedata
from fractions import Fraction
PIECE = 65536
def need(condition, text):
    if not condition: raise ValueError(text)
    return condition
# ---- canonical JSON and shapes: schema/json.md, records.md, manifest.md, bundle.md ----
def spelled(value):
    if isinstance(value, dict):
        order = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{%s}" % ",".join(spelled(name) + ":" + spelled(value[name]) for name in order)
    if isinstance(value, list): return "[%s]" % ",".join(map(spelled, value))
    if isinstance(value, str):
        need("Cc" not in map(unicodedata.category, value) and unicodedata.is_normalized("NFC", value), "a text")
    need(type(value) is not float and (type(value) is not int or abs(value) < 2**53), "a number")
    return json.dumps(value, ensure_ascii=False)
def fits(value, shape):
    if isinstance(shape, tuple): return any(fits(value, choice) for choice in shape)
    if callable(shape) or type(value) is not type(shape): return callable(shape) and bool(shape(value))
    if isinstance(shape, dict): return value.keys() == shape.keys() and all(fits(value[key], shape[key]) for key in shape)
    return all(fits(item, shape[0]) for item in value) if isinstance(shape, list) else value == shape
def read(data, shape):
    value = json.loads(data.decode())
    need(spelled(value).encode() == data and fits(value, shape), "JSON of another spelling or shape")
    return value
def below(end): return lambda value: type(value) is int and 0 <= value < end
def text(form): return lambda value: isinstance(value, str) and re.fullmatch(form, value, re.A)
N, U16, H, T = below(2**53), below(2**16), text("[0-9a-f]{64}"), text("(?s:.*)")
ID, MINER, BOOL, PROOF = {"bytes": N, "count": N, "root": H}, (U16, H), (True, False), {"index": N, "hashes": [H]}
RULE = {"id": "sparse-mean-sgd/1", "dialect": ("templar", "native"), "chunk": N, "top_k": N, "bins": N,
        "lr_f32": text("[0-9a-f]{8}"), "mean": ("contributors", "all"), "norm": ("histogram-f64", "torch-cpu-f32")}
BEGINNING = {"kind": "genesis", "version": N, "run": T, "origin": T, "model": ID, "rule": RULE, "netuid": (None, U16),
           "log_keys": {"rounds": T, "submissions": T}, "miners": ("listed", {"hotkeys": [H]}), "chain_genesis": (None, H),
           "anchor_hotkey": (None, H)}
FILES = {"files": lambda v: v != [] and fits(v, [{"bytes": N, "name": T, "sha256": H}])}
GENESIS = BEGINNING, BEGINNING | FILES  # With or without files beside the model.
RECORD = {"kind": "round", "round": N, "previous": H, "base": ID, "next": ID, "rule": RULE, "plan": {"bytes": N, "root": H},
          "submissions": {"start": N, "end": N, "root_at_end": H}, "dispositions": {"root": H, "count": N}, "listed": [MINER],
          "reserve": [MINER], "skipped": [{"tensor": N, "element": N}], "block": (None, {"number": N, "hash": H})}
REFUSAL = {"tensor": (None, T), "expected": T, "found": T, "code": tuple("""truncated crc-mismatch unsafe-pickle missing-tensor
    unknown-tensor wrong-shape wrong-top-k index-out-of-range duplicate-index code-out-of-range non-finite magnitude wrong-scale
    wrong-round wrong-base bad-signature duplicate-submission duplicate-delta reserve-unused late not-listed absent""".split())}
SUBMISSION = ({"kind": "fetched", "round": N, "base": ID, "uid": U16, "file": T, "source_bytes": N, "source_sha256": H,
               "outcome": ("unread", {"delta": ID}, {"refused": REFUSAL})},
              {"kind": "signed", "round": N, "base": H, "delta": ID, "hotkey": H, "signature": text("[0-9a-f]{128}"),
               "refused": (None, REFUSAL)})
DISPOSITION = {"index": (None, N), "miner": MINER, "verdict": ("absent", {"accepted": {"order": N}}, {"rejected": REFUSAL})}
SIZES = dict(BOOL=1, U8=1, I8=1, F8_E4M3=1, F8_E5M2=1, U16=2, I16=2, F16=2, BF16=2, U32=4, I32=4, F32=4, U64=8, I64=8, F64=8)
DESCRIPTOR = {"type": ("tensor", "delta"), "group": text("[a-z0-9_-]{1,64}"), "name": T, "dtype": tuple(SIZES),
              "shape": [N], "bytes": N, "piece_log2": 16, "root": H}
ROUND = {"round": N, "follows": BOOL, "edge": [H], "plan": BOOL}
CLAIMS = ({"kind": "piece", "round": (None, N), "descriptor": PROOF, "piece": PROOF},
          {"kind": "tensor", "round": (None, N), "descriptor": PROOF},
          {"kind": "submission", "index": N, "disposed": (None, {"round": N, "window": PROOF, "disposition": PROOF})},
          {"kind": "round", **ROUND}, {"kind": "receipt", **ROUND}, {"kind": "records", "round": N, "follows": BOOL},
          {"kind": "refusal", "index": N, "descriptor": PROOF}, {"kind": "heads", "proof": [H]}, {"kind": "entries"}, {"kind": "dispute"},
          {"kind": "fold", "round": N, "tensor": N, "next": [H], "digest": H, "piece": PROOF, "pieces": [[H]],
           "deltas": [{"submission": [H], "book": PROOF, "code": PROOF, "index": PROOF}]})
def descriptor(data):
    found = read(data, DESCRIPTOR)
    size, most = (SIZES[found["dtype"]] * math.prod(max(n, least) for n in found["shape"]) for least in (0, 1))
    need(size == found["bytes"] and most < 2**53 and len(found["shape"]) <= 8, "bytes")
    return need(0 < len(found["name"].encode()) <= 512, "a name") and found
# ---- dispositions: schema/records.md ----
def sent(entry):  # Whose, and {"delta": ..}, {"refused": ..} or "unread".
    if entry["kind"] == "fetched": return entry["uid"], entry["outcome"]
    return entry["hotkey"], {"refused": entry["refused"]} if entry["refused"] else {"delta": entry["delta"]}
def derive(record, window):  # The dispositions of a window's (index, entry) pairs.
    base, listed, reserve, native = record["base"], record["listed"], record["reserve"], record["rule"]["dialect"] == "native"
    valid, senders, found = {}, {}, []
    def named(miner): return "uid %d" % miner if isinstance(miner, int) else miner
    def misplaced(entry, miner):
        root = entry["base"] if entry["kind"] == "signed" else entry["base"]["root"]
        if entry["round"] != record["round"]: return "wrong-round", str(record["round"]), str(entry["round"])
        if entry["base"] not in (base, base["root"]): return "wrong-base", base["root"], root
        if miner not in listed + reserve: return "not-listed", "a listed or reserve miner", named(miner)
    for index, entry in window:
        miner, content = sent(entry)
        if "delta" in content and not misplaced(entry, miner):
            first = senders.setdefault(spelled(content["delta"]), {})
            first.setdefault(miner, index)
            if not native or next(iter(first)) == miner: valid.setdefault(miner, index)
    missing = sum(miner not in valid for miner in listed)
    taken = [miner for miner in reserve if miner not in listed or miner not in valid][:missing]
    def place(miner): return not native and miner not in listed, isinstance(miner, str), miner
    order = sorted((miner for miner in valid if miner in listed + taken), key=place)
    for index, entry in window:
        miner, content = sent(entry)
        why = misplaced(entry, miner)
        if not why and miner not in listed + taken:
            why = "reserve-unused", f"one of the {missing} reserves whose places were needed", "a reserve after them"
        if not why and content == "unread":
            why = "reserve-unused", "a file that was read", "one left unread as an unused reserve's"
        if not why and "delta" in content:
            copied = [(m, at) for m, at in senders[spelled(content["delta"])].items() if native and m != miner and at < index]
            why = "duplicate-submission", f"one submission, the one at index {valid.get(miner)}", "a later one"
            if copied: why = "duplicate-delta", "a delta of the miner's own", f"the delta of {named(copied[0][0])} at index {copied[0][1]}"
        verdict = {"rejected": dict(zip(("code", "expected", "found"), why), tensor=None) if why else content["refused"]}
        if miner in order and valid[miner] == index: verdict = {"accepted": {"order": order.index(miner)}}
        found.append({"index": index, "miner": miner, "verdict": verdict})
    came = {line["miner"] for line in found}
    return found + [{"index": None, "miner": miner, "verdict": "absent"} for miner in listed if miner not in came]
# ---- the fold of one piece: schema/fold.md, delta.md, plan.md ----
def f32(value): return ctypes.c_float(value).value  # Of a sum, product or quotient of two f32 f64 is wide enough to round twice.
def fused(a, b, c):  # a * b + c, rounded once: the product is exact in f64; the sum is rounded to odd there, then to f32.
    near = a * b + c
    if math.isfinite(near) and (exact := Fraction(a * b) + Fraction(c)) != near and not struct.pack("<d", near)[0] & 1:
        near = math.nextafter(near, math.inf if exact > near else -math.inf)
    return f32(near)
def same(a, b): return a == b or a != a and b != b
def floats(data): return struct.unpack("<%df" % (len(data) // 4), data)
def rate(rule):  # The learning rate, of a rule whose parameters are ones.
    lr = struct.unpack(">f", bytes.fromhex(rule["lr_f32"]))[0]
    sides = 2 <= rule["chunk"] <= 4096 and 2 <= rule["top_k"] <= 4096
    return need(sides and rule["bins"] in (4, 16, 256) and 0 < lr < math.inf, "a rule's parameters") and lr
def grid(found, rule):  # Rows, columns, and those of a block; nothing if the rule does not fold the tensor.
    shape = [1] * (2 - len(found["shape"])) + found["shape"]
    if found["group"] != "weights" or found["dtype"] not in ("F32", "F16", "BF16"): return None
    if len(found["shape"]) not in (1, 2) or not all(shape): return None
    height, width = (max(side for side in range(1, min(rule["chunk"], n) + 1) if n % side == 0) for n in shape)
    wide = shape[0] > 1 and 4 * height * shape[1] > 128 << 20
    return (*shape, height, width) if 2 <= height * width <= 4096 and not wide else None
DECIDES = {"non-finite": "book", "magnitude": "book", "index-out-of-range": "index", "duplicate-index": "index", "code-out-of-range": "code"}
class Fold:  # One piece of a tensor after a fold: which bytes of base, plan and deltas it takes, and what they give.
    def __init__(self, rule, base, tensor, piece):
        grids = [grid(found, rule) for found in base]
        need(tensor < len(base) and grids[tensor] and base[tensor]["dtype"] == "F32", "the rule folds no such tensor")
        self.rows, self.columns, self.height, self.width = grids[tensor]
        self.rule, self.name, self.piece, self.before = rule, base[tensor]["name"], piece, sum(map(bool, grids[:tensor]))
        self.tensor, self.tensors = tensor, sum(map(bool, grids))
        self.first, self.end = PIECE // 4 * piece, min(PIECE // 4 * (piece + 1), self.rows * self.columns)
        need(self.first < self.end, "no such piece")
        self.block, bits = self.height * self.width, rule["bins"].bit_length() - 1
        self.k, self.blocks, self.bits = min(rule["top_k"], self.block) & ~1, self.rows * self.columns // self.block, bits
        unit = 1 if self.rows == 1 else self.columns // self.width  # A row of blocks, or a block of a tensor with one row.
        self.around = range(self.first // (unit * self.block) * unit, ((self.end - 1) // (unit * self.block) + 1) * unit)
        self.wide = {"book": 4 * (rule["bins"] + 1), "code": -(-self.k * bits // 8), "index": self.k * 3 // 2}
    def descriptor(self, group, root):  # Of a delta's artifact.
        dtype, shape = ("F32", [self.rule["bins"] + 1]) if group == "book" else ("U8", [self.blocks, self.wide[group]])
        return {"type": "delta", "group": group, "name": self.name, "dtype": dtype, "shape": shape,
                "bytes": math.prod(shape) * SIZES[dtype], "piece_log2": 16, "root": root}
    def span(self, group):  # The bytes of it that the piece takes.
        first, end = (0, 1) if group == "book" else (self.around.start, self.around.stop)
        return first * self.wide[group], end * self.wide[group]
    def plan(self, miners):  # The length of such a plan, and the bytes of the tensor's rows.
        row = miners * (16 + 8 * self.rule["bins"])
        return row * self.tensors, (row * self.before, row * (self.before + 1))
    def factors(self, plan):  # (norm, factor, counts) of each miner: the tensor's rows of the plan.
        row = struct.Struct("<QII%dQ" % self.rule["bins"])
        for norm, factor, flags, *counts in row.iter_unpack(plan):
            need(flags == 0 and (factor <= 0x3f800000 or factor == 0x7fc00000), "flags or a factor")
            need(norm <= 0x7ff0000000000000 or norm == 0x7ff8000000000000, "a norm")
            yield *struct.unpack("<df", struct.pack("<QI", norm, factor)), counts
    def coherent(self, rows, books):  # Factors follow from the norms, native norms from the counts, and all codes are counted.
        native = self.rule["norm"] == "histogram-f64"
        step = float if native else f32
        norms = [step(norm) for norm, _, _ in rows]
        median = math.nan if any(map(math.isnan, norms)) else sorted(norms)[(len(norms) - 1) // 2] if norms else 0
        for (norm, factor, counts), values in zip(rows, books):
            need(sum(counts) == self.blocks * self.k, "not all codes are counted")
            found = step(median / step(step(norm) + step(1e-8)))
            need(same(factor, 1.0 if found > 1 else f32(found)), "the norms give another factor")
            total = 0.0
            for count, value in zip(counts, values): total += float(count) * (value * value)
            need(not native or same(norm, math.sqrt(total)), "the counts give another norm")
    def values(self, book):  # What each code stands for, of a book that intake takes.
        need(all(map(math.isfinite, floats(book))), "a book that is not finite")
        values = [f32(value + floats(book)[-1]) for value in floats(book)[:-1]]
        need(self.rule["dialect"] == "templar" or all(abs(value) < 2**60 for value in values), "a book that is too large")
        return values
    def has_fault(self, code, data):  # Whether a fault of this kind is anywhere in the artifact that decides about it.
        blocks = [int.from_bytes(data[at:at + self.wide[DECIDES[code]]], "little") for at in range(0, len(data), self.wide[DECIDES[code]])]
        if code == "code-out-of-range": return any(block >> self.k * self.bits for block in blocks)
        if code == "non-finite": return not all(map(math.isfinite, floats(data)))
        if code == "magnitude": return not all(abs(f32(value + floats(data)[-1])) < 2**60 for value in floats(data)[:-1])
        blocks = ([block >> 12 * entry & 4095 for entry in range(self.k)] for block in blocks)
        return any(max(places) >= self.block if code == "index-out-of-range" else len(set(places)) < self.k for places in blocks)
    def entries(self, index, code):  # (element of the tensor, code) of a miner's rows of the blocks around the piece.
        across = self.columns // self.width
        for at, block in enumerate(self.around):
            places, codes = (int.from_bytes(rows[at * wide:(at + 1) * wide], "little") for rows, wide in (
                (index, self.wide["index"]), (code, self.wide["code"])))
            places = [places >> 12 * entry & 4095 for entry in range(self.k)]
            need(max(places) < self.block and len(set(places)) == self.k, "a position beyond its block, or twice in it")
            start = block // across * self.height * self.columns + block % across * self.width
            for entry, place in enumerate(places):
                element = start + place // self.width * self.columns + place % self.width
                yield element, codes >> self.bits * entry & self.rule["bins"] - 1
    def next(self, state, skipped, levels, sent):  # The piece after the fold of what miners sent, each with its levels.
        sums, lr, (unchanged, state) = {}, rate(self.rule), (state, bytearray(state))
        for level, entries in zip(levels, sent):
            for element, code in entries:
                total, count = sums.get(element, (0.0, 0))
                sums[element] = f32(total + level[code]), count + 1
        each = self.rule["mean"] == "contributors"
        deltas = {at: f32(total / (count if each else len(levels))) for at, (total, count) in sums.items()}
        odd = min((element for element, delta in deltas.items() if not math.isfinite(delta)), default=None)
        witness = {found["tensor"]: found["element"] for found in skipped}.get(self.tensor)
        if witness is not None:
            need(witness // (PIECE // 4) != self.piece or odd == witness, "left unchanged for another element than the fold finds")
            return unchanged
        need(odd is None, "a delta that is not finite")
        for element in (element for element in deltas if self.first <= element < self.end):
            at = 4 * (element - self.first)
            value = fused(-lr, deltas[element], floats(state[at:at + 4])[0])
            need(self.rule["dialect"] == "templar" or math.isfinite(value), "a value that is not finite")
            state[at:at + 4] = struct.pack("<f", value) if value == value else b"\0\0\xc0\x7f"
        return bytes(state)
