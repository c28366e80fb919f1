"""Transparency logs for tools/verify.py: RFC 6962 trees, C2SP signed notes and policies; from schema/merkle.md, log.md, policy.md.

Needs `cryptography`, for Ed25519."""
import base64, contextlib, hashlib, re
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rules import need
def sha(*parts): return hashlib.sha256(b"".join(parts)).digest()
def leaf(entry): return sha(b"\0", entry)
def node(left, right): return sha(b"\1", left, right)
# ---- trees: schema/merkle.md ----
def inclusion(index, hashes, size, found, root):
    last, hashes = size - 1, [*map(bytes.fromhex, hashes)]
    need(index <= last, "the tree has no such leaf")
    while last > 0:
        if index & 1 or index < last:
            found = node(hashes.pop(0), found) if index & 1 else node(found, hashes.pop(0))
        index, last = index >> 1, last >> 1
    need(not hashes and found.hex() == root, "the proof leads elsewhere")
def root_of(leaves, size=0, edge=()):  # The tree of `size` leaves with this right edge, grown by `leaves`.
    need(bin(size).count("1") == len(edge), "an edge of another size")
    edge = [*map(bytes.fromhex, edge)]
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
def decimal(text): return int(need(re.fullmatch("0|[1-9][0-9]{0,19}", text, re.A) and int(text) < 2**64, "a number") and text)
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
                self.logs.append(need((key := read_key(words[0], [1])) not in self.logs, "a log twice") and key)
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
