#!/usr/bin/env python3
"""A second verifier of bundles, written from schema/bundle.md; shares no code and no table with src/.

Needs Python 3.9 and `cryptography`, for Ed25519. Exits as `gradledger verify` does; stops at the first check that fails.
Not done here: miners' sr25519 signatures (`statements`), and deriving a round's dispositions again (`derivation`).
Whatever is raised while a bundle is read is a refusal, named by the check under way."""
import argparse, base64, contextlib, hashlib, json, math, re, sys, unicodedata
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
def sha(*parts): return hashlib.sha256(b"".join(parts)).digest()
def leaf(entry): return sha(b"\0", entry)
def node(left, right): return sha(b"\1", left, right)
def need(condition, text):
    if not condition: raise ValueError(text)
    return condition
# ---- trees: schema/merkle.md ----
def inclusion(proof, size, found, root):
    index, last, hashes = proof["index"], size - 1, [bytes.fromhex(found) for found in proof["hashes"]]
    need(index <= last, "the tree has no such leaf")
    while last > 0:
        if index & 1 or index < last:
            found = node(hashes.pop(0), found) if index & 1 else node(found, hashes.pop(0))
        index, last = index >> 1, last >> 1
    need(not hashes and found.hex() == root, "the proof leads elsewhere")
def root_of(leaves, size=0, edge=()):  # The tree of `size` leaves with this right edge, grown by `leaves`.
    need(bin(size).count("1") == len(edge), "an edge of another size")
    edge = [bytes.fromhex(found) for found in edge]
    for found in leaves:
        left, size = size, size + 1
        while left & 1: found, left = node(edge.pop(), found), left >> 1
        edge.append(found)
    while len(edge) > 1: edge[-2:] = [node(*edge[-2:])]
    return (edge[0] if edge else sha()).hex()
def consistent(old, new, hashes):  # Whether the proof of RFC 6962, 2.1.2 shows that `new` starts with `old`.
    if not old.size or old.size == new.size: return old.root == new.root or not old.size
    first, last, hashes = old.size - 1, new.size - 1, [*map(bytes.fromhex, hashes)]
    while first & 1: first, last = first >> 1, last >> 1
    left = right = hashes.pop(0) if first and hashes else bytes.fromhex(old.root)
    while last and (hashes or first == last):
        if first & 1: left, right = node(hashes[0], left), node(hashes.pop(0), right)
        elif first < last: right = node(right, hashes.pop(0))
        first, last = first >> 1, last >> 1
    return not last and not hashes and (left.hex(), right.hex()) == (old.root, new.root)
def artifact(pieces):  # Root and length of logical bytes.
    found = [(len(piece), leaf(sha(piece))) for piece in pieces]
    return {"bytes": sum(length for length, _ in found), "root": root_of(hashed for _, hashed in found)}
# ---- signed notes, keys, policies: schema/log.md, schema/policy.md ----
P, WEAK = 2**255 - 19, {0, 1, 2**255 - 20, *(int.from_bytes(bytes.fromhex(y), "little") for y in (
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"))}
def strong(point): return (y := int.from_bytes(point, "little") & 2**255 - 1) < P and y not in WEAK
def b64(text, least=0, most=1 << 20):
    found = base64.b64decode(text, validate=True)
    need(base64.b64encode(found).decode() == text and least <= len(found) <= most, "base64")
    return found
def decimal(text):
    return int(need(re.fullmatch("0|[1-9][0-9]{0,19}", text, re.A) and int(text) < 2**64, "a number") and text)
def read_key(text, kinds):
    name, number, key = re.fullmatch(r"([^\s+]+)\+([0-9a-f]{8})\+(.*)", text).groups()
    key = b64(key, 33, 33)
    need(key[0] in kinds and strong(key[1:]) and number == sha(name.encode(), b"\n", key)[:4].hex(), "a key")
    return name, bytes.fromhex(number), key
class Note:
    def __init__(self, data):
        text, at = data.decode(), data.decode().rfind("\n\n")
        need(len(data) <= 1 << 20 and not re.search(r"[\0-\x09\x0b-\x1f]", text), "control character")
        self.text, lines = text[:at + 1], text[at + 2:-1].split("\n")
        need(at >= 0 and text.endswith("\n") and len(lines) <= 100, "signature lines")
        lines = [re.fullmatch(r"\u2014 ([^\s+]+) (\S+)", line).groups() for line in lines]
        self.signatures = [(name, b64(found, 5)[:4], b64(found)[4:]) for name, found in lines]
        lines = need(all(self.text[:-1].split("\n")), "an empty line") and self.text.split("\n")
        self.origin, self.size, self.root = lines[0], decimal(lines[1]), b64(lines[2], 32, 32).hex()
    def signers(self, keys):
        found = set()
        for name, number, signature in self.signatures:
            for key in (key for key in keys if key[:2] == (name, number)):
                message = self.text.encode()
                if key[2][0] == 4:  # A witness signs a time, too.
                    time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
                    message = need(time < 2**63, "a time") and b"cosignature/v1\ntime %d\n" % time + message
                Ed25519PublicKey.from_public_bytes(key[2][1:]).verify(signature, message)
                found.add(need(strong(signature[:32]), "a weak signature") and key)
        return found
    def is_by(self, key):
        with contextlib.suppress(Exception): return self.signers([key])
class Policy:
    def __init__(self, text):
        self.logs, self.parts, self.quorum, grouped = [], {}, None, {"none"}
        for kind, *words in (re.split("[ \t]+", line.strip(" \t")) for line in text.split("\n")):
            need(kind not in ("witness", "group") or words[0] not in [*self.parts, "none"], "a name twice")
            if kind == "log" and len(words) in (1, 2):
                key = read_key(words[0], [1])
                self.logs.append(need(key not in self.logs, "a log twice") and key)
            elif kind == "witness" and len(words) in (2, 3):
                key = self.parts[words[0]] = read_key(words[1], [4])
                need([part[2] for part in self.parts.values() if len(part) == 3].count(key[2]) == 1, "a witness twice")
            elif kind == "group" and len(words) > 2:
                name, least, *members = words
                need(all(member in self.parts and member not in grouped for member in members), "a member")
                least = {"any": 1, "all": len(members)}.get(least) or decimal(least)
                need(1 <= least <= len(members) == len(set(members)), "a threshold")
                grouped.update(members)
                self.parts[name] = least, members
            elif kind == "quorum" and len(words) == 1:
                self.quorum = need(not self.quorum and words[0] in [*self.parts, "none"], "a quorum") and words[0]
            else: need(kind.startswith("#") or not kind, "a line of a policy")
        need(self.quorum and self.logs, "a policy has a log and a quorum")
    def met(self, note):
        met, signers = {"none": True}, note.signers([part for part in self.parts.values() if len(part) == 3])
        for name, part in self.parts.items():
            met[name] = part in signers if len(part) == 3 else sum(met[m] for m in part[1]) >= part[0]
        return met[self.quorum]
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
GENESIS = {"kind": "genesis", "version": N, "run": T, "origin": T, "model": ID, "rule": RULE, "netuid": (None, U16),
           "log_keys": {"rounds": T, "submissions": T}, "miners": ("listed", {"hotkeys": [H]}), "chain_genesis": (None, H),
           "anchor_hotkey": (None, H)}; FILES = {"files": lambda v: v != [] and fits(v, [{"bytes": N, "name": T, "sha256": H}])}
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
VERDICT = ("absent", {"accepted": {"order": N}}, {"rejected": REFUSAL})
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
         "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}
DESCRIPTOR = {"type": ("tensor", "delta"), "group": text("[a-z0-9_-]{1,64}"), "name": T, "dtype": tuple(SIZES),
              "shape": [N], "bytes": N, "piece_log2": 16, "root": H}
CLAIMS = ({"kind": "piece", "round": (None, N), "descriptor": PROOF, "piece": PROOF},
          {"kind": "tensor", "round": (None, N), "descriptor": PROOF},
          {"kind": "submission", "index": N, "disposed": (None, {"round": N, "window": PROOF, "disposition": PROOF})},
          {"kind": "round", "round": N, "follows": BOOL, "edge": [H], "plan": BOOL}, {"kind": "heads", "proof": [H]})
# ---- bundles: schema/bundle.md ----
def header(name, size):
    start = name.encode().ljust(100, b"\0") + b"0000644\0" + 2 * b"0000000\0" + b"%011o\0%011o\0" % (size, 0)
    rest = (b"0" + bytes(100) + b"ustar\00000").ljust(356, b"\0")
    return start + b"%07o\0" % (sum(start + rest) + 8 * 32) + rest
def stems(claim):  # The entries of logs that a bundle holds, each with its log proof, and the members after them.
    disposed, lines = bool(claim.get("disposed")), ["submissions.jsonl", "dispositions.jsonl"]
    return {"submission": (["genesis", "submission"] + ["record"] * disposed, ["disposition.json"] * disposed),
            "round": (["genesis"] + ["previous"] * claim.get("follows", 0) + ["record"], lines + ["plan"] * claim.get("plan", 0)),
            "heads": ([], ["a.note", "b.note"])}.get(claim["kind"], (["record"], ["descriptor.json", claim["kind"]]))
def unpack(file):
    def member(name):
        block = file.read(512)
        size = int(re.fullmatch(b"[0-7]{11}", block[124:135])[0], 8)
        need(block == header(name, size) and (size <= 256 << 20 or name == "tensor"), "the header of " + name)
        pieces = (file.read(min(65536, size - at)) for at in range(0, size, 65536))
        body = artifact(pieces) if name == "tensor" else b"".join(pieces)
        need(size == (body["bytes"] if name == "tensor" else len(body)), "it is cut: " + name)
        need(file.read(-size % 512) == bytes(-size % 512), "padding")
        return body
    claim = read(member("bundle.json"), {"format": "gradledger-bundle/1", "claim": CLAIMS})["claim"]
    names = [stem + end for stem in stems(claim)[0] for end in (".json", ".tlog-proof")] + stems(claim)[1]
    found = {name: member(name) for name in names}
    need(file.read(1025) == bytes(1024), "the end of the archive")
    return claim, found
class Judge:
    def __init__(self, policy):
        self.policy, self.at, self.undone, self.notes, self.kind = policy, "format", set(), {}, None
    def judge(self, file):
        claim, self.member = unpack(file)
        self.kind, self.at = claim["kind"], "inclusion"
        for stem in stems(claim)[0]: setattr(self, stem, self.entry(stem, claim))
        {"submission": self.submission_, "round": self.round_, "heads": self.heads_}.get(self.kind, self.tensor_)(claim)
    def entry(self, stem, claim):  # Value, index and leaf hash of an entry that its C2SP tlog-proof finds in its log.
        data, check = self.member[stem + ".json"], "submissions" if stem == "submission" else "rounds"
        proof = self.member[stem + ".tlog-proof"].decode()
        lines, text = re.fullmatch(r"c2sp\.org/tlog-proof@v1\n(?:extra [^\n]*\n)?index (.*?)\n\n(.*)", proof, re.S).groups()
        index, hashes = lines.split("\n")[0], [b64(line, 32, 32).hex() for line in lines.split("\n")[1:]]
        if check not in self.notes: self.signed_head(check, text)
        before, note = self.notes[check]
        need(before == text and len(hashes) <= 64 and note.origin.endswith("/" + check), "another head")
        inclusion({"index": decimal(index), "hashes": hashes}, note.size, leaf(data), note.root)
        number = claim["disposed"]["round"] if claim.get("disposed") else claim.get("round")
        genesis = stem == "genesis" or stem == "record" and number is None
        value = read(data, SUBMISSION if stem == "submission" else (GENESIS, GENESIS | FILES) if genesis else RECORD)
        need(index == "0" if genesis else stem != "record" or value["round"] == number, "another entry")
        return value, int(index), leaf(data)
    def signed_head(self, check, text):
        self.at = check + "-signature"
        self.notes[check] = text, (note := Note(text.encode()))
        if self.policy:
            keys = [key for key in self.policy.logs if key[0] == note.origin]
            if not keys and check == "submissions":  # One key signs both logs, under two names.
                name = note.origin[:-len("submissions")] + "rounds"
                keys = [(note.origin, sha(note.origin.encode(), b"\n", key[2])[:4], key[2]) for key in self.policy.logs if key[0] == name]
            need(any(note.is_by(key) for key in keys), "no known key signed it")
            self.at = "witnesses"
            need(self.policy.met(note), "too few witnesses")
        else: self.undone |= {self.at, "witnesses"}
        self.at = "inclusion"
        return need(note.size or note.root == sha().hex(), "an empty log with a root") and note
    def tensor_(self, claim):
        data, self.at = self.member["descriptor.json"], "descriptor"
        state = self.record[0]["next" if self.record[0]["kind"] == "round" else "model"]
        inclusion(claim["descriptor"], state["count"], leaf(data), state["root"])
        found = read(data, DESCRIPTOR)
        size, most = (SIZES[found["dtype"]] * math.prod(max(n, least) for n in found["shape"]) for least in (0, 1))
        need(size == found["bytes"] and most < 2**53 and len(found["shape"]) <= 8, "bytes")
        need(0 < len(found["name"].encode()) <= 512, "a name")
        self.at, member = "bytes", self.member[self.kind]
        if self.kind == "tensor": return need(member == {key: found[key] for key in member}, "another root")
        need(0 < len(member) == min(65536, found["bytes"] - 65536 * claim["piece"]["index"]), "another length")
        inclusion(claim["piece"], -(-found["bytes"] // 65536), leaf(sha(member)), found["root"])
    def submission_(self, claim):
        submission, index, entry = self.submission
        need(index == claim["index"], "another index")
        self.undone |= {"statements"} if submission["kind"] == "signed" else set()
        if claim["disposed"]:
            disposed, self.at = claim["disposed"], "windows"
            window, tree = self.record[0]["submissions"], self.record[0]["dispositions"]
            need(window["start"] <= index == disposed["window"]["index"] < window["end"], "not in the window")
            inclusion(disposed["window"], window["end"], entry, window["root_at_end"])
            self.at, data = "dispositions", self.member["disposition.json"]
            need(disposed["disposition"]["index"] == index - window["start"], "another place")
            inclusion(disposed["disposition"], tree["count"], leaf(data), tree["root"])
            found = read(data, {"index": (None, N), "miner": MINER, "verdict": VERDICT})
            miner = submission["uid" if submission["kind"] == "fetched" else "hotkey"]
            need((found["index"], found["miner"]) == (index, miner), "another's disposition")
    def round_(self, claim):
        (genesis, _, run), (record, at, _), self.at = self.genesis, self.record, "records"
        before, place, previous = self.previous if claim["follows"] else (None, -1, run)
        need(place < at and record["previous"] == previous.hex(), "it does not follow that record")
        need(not before or before["round"] < record["round"], "the order of rounds")
        base, places = before["next"] if before else genesis["model"], [skipped["tensor"] for skipped in record["skipped"]]
        need(record["base"] == base and record["rule"] == genesis["rule"], "another base or rule")
        once = all(len(set(record[who])) == len(record[who]) for who in ("listed", "reserve"))
        need(once and places == sorted(set(places)), "a miner twice, or skipped tensors out of order")
        window, self.at = record["submissions"], "windows"
        need(window["start"] == (before["submissions"]["end"] if before else 0) <= window["end"], "a gap or overlap")
        lines = self.lines("submissions.jsonl")
        start = root_of([], window["start"], claim["edge"])
        need(not before or start == before["submissions"]["root_at_end"], "another log before it")
        need(len(lines) == window["end"] - window["start"], "not all of the window")
        need(root_of(map(leaf, lines), window["start"], claim["edge"]) == window["root_at_end"], "another log")
        kinds = {read(line, SUBMISSION)["kind"] for line in lines}
        self.undone |= {"derivation", *(["statements"] if "signed" in kinds else [])}
        self.at, data = "plan", self.member.get("plan")
        if data is None: self.undone.add("plan")
        else: need(artifact(data[at:at + 65536] for at in range(0, len(data), 65536)) == record["plan"], "another plan")
        self.at = "dispositions"
        lines = self.lines("dispositions.jsonl")
        need({"root": root_of(map(leaf, lines)), "count": len(lines)} == record["dispositions"], "other dispositions")
    def lines(self, name):
        *lines, end = self.member[name].split(b"\n")
        return need(end == b"" and all(lines), "a line without an end") and lines
    def heads_(self, claim):  # One size with two roots is a fork; that a proof does not show consistency proves nothing.
        self.at, (a, b) = "format", (self.member[name].decode() for name in ("a.note", "b.note"))
        origin = need(a.split("\n")[0] == b.split("\n")[0], "two logs") and a.split("\n")[0]
        check = "rounds" if origin.endswith("/rounds") else "submissions"
        old, new = sorted((self.signed_head(check, text) for text in (a, b)), key=lambda head: head.size)
        self.at = "consistency"
        need(not self.policy or old.size != new.size or old.root == new.root, "a fork")
        if not self.policy or not consistent(old, new, claim["proof"]): self.undone.add("consistency")
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--policy", type=argparse.FileType("rb"), help="C2SP tlog-policy")
    for flag, what in (("--log-key", "a verifier key in its place"), ("--without", "a check that is not required")):
        parser.add_argument(flag, action="append", default=[], help=what)
    args, code = parser.parse_args(), 0
    keys = "\n".join(["log " + key for key in args.log_key] + ["quorum none"])
    policy = Policy(args.policy.read().decode() if args.policy else keys) if args.policy or args.log_key else None
    for path in args.bundles:
        judge, failed, why = Judge(policy), None, None
        try: judge.judge(open(path, "rb"))
        except Exception as error: failed, why = judge.at, str(error)
        undone = sorted(judge.undone - set(args.without))
        exit = 3 * bool(undone) if not failed else 21 if failed.endswith(("signature", "witnesses")) else 20
        print(json.dumps({"kind": judge.kind, "failed": failed, "why": why, "not_done": undone, "exit": exit}))
        code = max(code, exit)
    sys.exit(code)
if __name__ == "__main__": main()
