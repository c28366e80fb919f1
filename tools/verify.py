#!/usr/bin/env python3
"""A second verifier of bundles, written from schema/bundle.md; shares no code and no table with src/. Logs are in tlog.py, what a
run's records say and its rules give in rules.py.

Needs Python 3.9 and `cryptography`. Exits as `gradledger verify` does; stops at the first check that fails (of a dispute, of each
side). Not done here: miners' sr25519 signatures (`statements`). Whatever is raised while a bundle is read is a refusal, named by
the check under way; it is evidence if what is compared just then is proven to be signed."""
import argparse, io, json, re, sys
from tlog import Note, Policy, artifact, b64, consistent, decimal, inclusion, leaf, root_of, sha
from rules import CLAIMS, DISPOSITION, GENESIS, PIECE, RECORD, SUBMISSION
from rules import DECIDES, Fold, derive, descriptor, f32, need, rate, read, sent, spelled
# ---- bundles: schema/bundle.md ----
def header(name, size):
    start = name.encode().ljust(100, b"\0") + b"0000644\0" + 2 * b"0000000\0" + b"%011o\0%011o\0" % (size, 0)
    rest = (b"0" + bytes(100) + b"ustar\00000").ljust(356, b"\0")
    return start + b"%07o\0" % (sum(start + rest) + 8 * 32) + rest
def stems(claim):  # The entries of logs that a bundle holds, each with its log proof, and the members after them.
    kind, records = claim["kind"], ["genesis"] + ["previous"] * claim.get("follows", 0) + ["record"]
    lines, disposed = ["submissions.jsonl", "dispositions.jsonl"] + ["plan"] * claim.get("plan", 0), bool(claim.get("disposed"))
    return {"submission": (["genesis", "submission"] + ["record"] * disposed, ["disposition.json"] * disposed),
            "records": (records, []), "round": (records, lines), "receipt": (records + ["receipt"], lines),
            "fold": (["record"], ["base.jsonl", "next.json", "dispositions.jsonl", "deltas.jsonl", "pieces"]),
            "refusal": (["genesis", "submission"], ["model.jsonl", "descriptor.json", "artifact"]),
            "entries": (["a", "b"], []), "heads": ([], ["a.note", "b.note"]), "dispute": ([], ["a.tar", "b.tar"]),
            }.get(kind, (["record"], ["descriptor.json", kind]))
def unpack(file):
    def member(name):
        block = file.read(512)
        size = int(re.fullmatch(b"[0-7]{11}", block[124:135])[0], 8)
        need(block == header(name, size) and (size <= 256 << 20 or name == "tensor"), "the header of " + name)
        pieces = (file.read(min(PIECE, size - at)) for at in range(0, size, PIECE))
        body = artifact(pieces) if name == "tensor" else b"".join(pieces)
        need(size == (body["bytes"] if name == "tensor" else len(body)), "it is cut: " + name)
        need(file.read(-size % 512) == bytes(-size % 512), "padding")
        return body
    claim = read(member("bundle.json"), {"format": "gradledger-bundle/1", "claim": CLAIMS})["claim"]
    names = [stem + end for stem in stems(claim)[0] for end in (".json", ".tlog-proof")] + stems(claim)[1]
    found = {name: member(name) for name in names}
    need(file.read(1025) == bytes(1024), "the end of the archive")
    return claim, found
GROUPS = "book", "code", "index"
class Judge:
    def __init__(self, policy):
        self.policy, self.claim, self.undone, self.notes, self.failed, self.sides = policy, {}, set(), {}, [], []
    def step(self, check, signed=False):  # What fails from here on; whether it is the signers' own contradiction.
        self.at, self.signed = check, signed
    def judge(self, file, only=None):
        self.step("format")
        try:
            claim, self.member = unpack(file)
            need(only in (None, claim["kind"]), "another kind of claim")
            self.claim = claim
            self.step("inclusion")
            for stem in [] if claim["kind"] == "entries" else stems(claim)[0]: setattr(self, stem, self.entry(stem, claim))
            getattr(self, "is_" + {"tensor": "piece"}.get(claim["kind"], claim["kind"]))(claim)
        except Exception as error: self.failed.append((self.at, str(error), self.signed and self.policy is not None))
        return self
    def proof(self, stem):  # Index, hashes and signed head of a C2SP tlog-proof.
        text = self.member[stem + ".tlog-proof"].decode()
        lines, text = re.fullmatch(r"c2sp\.org/tlog-proof@v1\n(?:extra [^\n]*\n)?index (.*?)\n\n(.*)", text, re.S).groups()
        index, *hashes = lines.split("\n")
        return decimal(index), [b64(line, 32, 32).hex() for line in need(len(hashes) <= 64, "a long proof") and hashes], text
    def entry(self, stem, claim):  # Value, index and leaf hash of an entry that is in its log.
        data, check = self.member[stem + ".json"], "submissions" if stem in ("submission", "receipt") else "rounds"
        index, hashes, text = self.proof(stem)
        if check not in self.notes: self.notes[check] = text, self.head(check, text)
        before, note = self.notes[check]
        need(before == text and note.origin.endswith("/" + check), "another head")
        inclusion(index, hashes, note.size, leaf(data), note.root)
        number = claim["disposed"]["round"] if claim.get("disposed") else claim.get("round")
        genesis = stem == "genesis" or stem == "record" and number is None
        value = read(data, SUBMISSION if check == "submissions" else GENESIS if genesis else RECORD)
        need(index == 0 if genesis else stem not in ("record", "receipt") or value["round"] == number, "another entry")
        return value, index, leaf(data)
    def head(self, check, text):
        self.step(check + "-signature")
        note = Note(text.encode())
        if self.policy:
            keys = [key for key in self.policy.logs if key[0] == note.origin]
            if not keys and check == "submissions":  # One key signs both logs, under two names.
                keys = [key[2] for key in self.policy.logs if key[0] == note.origin[:-len(check)] + "rounds"]
                keys = [(note.origin, sha(note.origin.encode(), b"\n", key)[:4], key) for key in keys]
            need(any(note.is_by(key) for key in keys), "no known key signed it")
            self.step("witnesses")
            need(self.policy.met(note), "too few witnesses")
        else: self.undone |= {self.at, "witnesses"}
        self.step("inclusion")
        return need(note.size or note.root == sha().hex(), "an empty log with a root") and note
    def is_piece(self, claim):
        data, member = self.member["descriptor.json"], self.member[claim["kind"]]
        self.step("descriptor")
        state = self.record[0]["next" if self.record[0]["kind"] == "round" else "model"]
        inclusion(**claim["descriptor"], size=state["count"], found=leaf(data), root=state["root"])
        found = descriptor(data)
        self.step("bytes")
        if claim["kind"] == "tensor": return need(member == {key: found[key] for key in member}, "another root")
        need(0 < len(member) == min(PIECE, found["bytes"] - PIECE * claim["piece"]["index"]), "another length")
        inclusion(**claim["piece"], size=-(-found["bytes"] // PIECE), found=leaf(sha(member)), root=found["root"])
    def is_submission(self, claim):
        submission, index, entry = self.submission
        need(index == claim["index"], "another index")
        self.undone |= {"statements"} if submission["kind"] == "signed" else set()
        if not claim["disposed"]: return
        disposed, (record, _, _) = claim["disposed"], self.record
        self.step("windows")
        window, tree, data = record["submissions"], record["dispositions"], self.member["disposition.json"]
        need(window["start"] <= index == disposed["window"]["index"] < window["end"], "not in the window")
        inclusion(**disposed["window"], size=window["end"], found=entry, root=window["root_at_end"])
        self.step("dispositions")
        need(disposed["disposition"]["index"] == index - window["start"], "another place")
        inclusion(**disposed["disposition"], size=tree["count"], found=leaf(data), root=tree["root"])
        found = read(data, DISPOSITION)
        self.step("dispositions", signed=True)
        need((found["index"], found["miner"]) == (index, sent(submission)[0]), "another's disposition")
    def is_records(self, claim):
        (genesis, _, run), (record, at, _) = self.genesis, self.record
        before, place, previous = self.previous if claim["follows"] else (None, 0, run)
        self.step("records")
        need(place < at and (record["previous"] == previous.hex() or place + 1 == at), "another record stands before it")
        self.step("records", signed=True)
        need(record["previous"] == previous.hex() and not (before and before["round"] >= record["round"]), "it does not follow")
        base, places = before["next"] if before else genesis["model"], [skipped["tensor"] for skipped in record["skipped"]]
        need(record["base"] == base and record["rule"] == genesis["rule"], "another base or rule")
        once = all(len(set(record[who])) == len(record[who]) for who in ("listed", "reserve"))
        need(once and places == sorted(set(places)), "a miner twice, or skipped tensors out of order")
        self.step("windows", signed=True)
        window = record["submissions"]
        need(window["start"] == (before["submissions"]["end"] if before else 0) <= window["end"], "a gap or overlap")
        return record, window, before
    def is_round(self, claim, receipt=None):
        record, window, before = self.is_records(claim)
        self.step("windows")
        lines, edge = self.lines("submissions.jsonl"), (window["start"], claim["edge"])
        need(not before or root_of([], *edge) == before["submissions"]["root_at_end"], "another log before it")
        need(len(lines) == window["end"] - window["start"], "not all of the window")
        need(root_of(map(leaf, lines), *edge) == window["root_at_end"], "another log")
        self.step("windows", signed=True)
        if receipt: need(receipt in enumerate(lines, window["start"]), "it leaves out the receipt's entry")
        entries = [*enumerate((read(line, SUBMISSION) for line in lines), window["start"])]
        self.undone |= {"statements"} if any(entry["kind"] == "signed" for _, entry in entries) else set()
        self.step("plan")
        data = self.member.get("plan")
        if data is None: self.undone |= set() if receipt else {"plan"}
        else: need(artifact(data[at:at + PIECE] for at in range(0, len(data), PIECE)) == record["plan"], "another plan")
        lines = self.dispositions(record)
        self.step("derivation", signed=True)
        need([spelled(found).encode() for found in derive(record, entries)] == lines, "other dispositions follow")
        accepted = sum(b'"accepted"' in line for line in lines)
        unchanged = record["next"] == record["base"] and not record["skipped"]
        need(accepted <= 255 and (accepted or unchanged), "too many are accepted, or nobody changed the state")
    def is_receipt(self, claim): self.is_round(claim, (self.receipt[1], self.member["receipt.json"]))
    def dispositions(self, record):
        self.step("dispositions")
        lines = self.lines("dispositions.jsonl")
        need({"root": root_of(map(leaf, lines)), "count": len(lines)} == record["dispositions"], "other dispositions")
        return lines
    def lines(self, name):
        *lines, end = self.member[name].split(b"\n")
        return need(end == b"" and all(lines), "a line without an end") and lines
    def one_log(self, texts):
        self.step("format")
        origin, other = (text.split("\n")[0] for text in texts)
        need(origin == other, "two logs")
        return "rounds" if origin.endswith("/rounds") else "submissions"
    def is_heads(self, claim):  # One size with two roots is a fork; that a proof does not show consistency proves nothing.
        texts = [self.member[name].decode() for name in ("a.note", "b.note")]
        check = self.one_log(texts)
        old, new = sorted((self.head(check, text) for text in texts), key=lambda head: head.size)
        self.step("consistency", signed=True)
        need(not self.policy or old.size != new.size or old.root == new.root, "a fork")
        if not self.policy or not consistent(old, new, claim["proof"]): self.undone.add("consistency")
    def is_entries(self, claim):  # Logs only grow: two entries at one index are a fork, under heads of any sizes.
        proofs = [self.proof(stem) for stem in "ab"]
        need(proofs[0][0] == proofs[1][0], "two indices")
        check = self.one_log([text for _, _, text in proofs])
        for stem, (index, hashes, text) in zip("ab", proofs):
            note = self.head(check, text)
            inclusion(index, hashes, note.size, leaf(self.member[stem + ".json"]), note.root)
        self.step("consistency", signed=True)
        need(not self.policy or self.member["a.json"] == self.member["b.json"], "a fork")
        self.undone |= set() if self.policy else {"consistency"}
    def is_fold(self, claim):
        record, (tensor, piece) = self.record[0], (claim["tensor"], claim["piece"]["index"])
        self.step("records")
        rate(record["rule"])
        self.step("descriptor")
        base, after = self.manifest("base.jsonl", record["base"]), self.member["next.json"]
        fold, before = Fold(record["rule"], base, tensor, piece), base[tensor]
        inclusion(tensor, claim["next"], record["next"]["count"], leaf(after), record["next"]["root"])
        after = descriptor(after)
        self.step("descriptor", signed=True)
        need({**after, "root": before["root"]} == before, "another tensor in its place")
        self.step("bytes")
        digest = bytes.fromhex(claim["digest"])
        inclusion(**claim["piece"], size=-(-after["bytes"] // PIECE), found=leaf(digest), root=after["root"])
        artifacts = self.accepted(claim, record, fold)
        self.step("plan", signed=True)
        length, rows = fold.plan(len(artifacts))
        need(length == record["plan"]["bytes"], "a plan of another length")
        self.step("bytes")
        pieces, proofs = io.BytesIO(self.member["pieces"]), iter(claim["pieces"])
        def take(artifact, start, end):  # These bytes of an artifact, each piece that holds them proven.
            found = b""
            for index in range(start // PIECE, -(-end // PIECE)) if start < end else ():
                size = need(artifact["bytes"] > PIECE * index, "no such piece") and min(PIECE, artifact["bytes"] - PIECE * index)
                found += need(len(data := pieces.read(size)) == size, "the pieces end early") and data
                inclusion(index, next(proofs), -(-artifact["bytes"] // PIECE), leaf(sha(data)), artifact["root"])
            return found[start % PIECE:][:end - start]
        state, plan = take(before, 4 * fold.first, 4 * fold.end), take(record["plan"], *rows)
        deltas = [[take(found, *fold.span(found["group"])) for found in three] for three in artifacts]
        need(not pieces.read(1) and next(proofs, None) is None, "more pieces than the fold takes")
        self.step("plan", signed=True)
        rows = [*fold.factors(plan)]
        self.step("acceptances", signed=True)
        values = [fold.values(book) for book, _, _ in deltas]
        levels = [[f32(value * factor) for value in book] for book, (_, factor, _) in zip(values, rows)]
        sent = [[*fold.entries(index, code)] for _, code, index in deltas]
        self.step("plan", signed=True)
        fold.coherent(rows, values)
        self.step("fold", signed=True)
        need(sha(fold.next(state, record["skipped"], levels, sent)) == digest, "the fold gives another piece")
    def manifest(self, name, state):  # All descriptors of a state.
        lines = self.lines(name)
        found = [descriptor(line) for line in lines]
        names = [(line["group"].encode(), line["name"].encode()) for line in found]
        size = {"root": root_of(map(leaf, lines)), "count": len(lines), "bytes": sum(line["bytes"] for line in found)}
        return need(names == sorted(set(names)) and size == state, "another state") and found
    def is_refusal(self, claim):
        (genesis, _, _), (entry, index, _), line = self.genesis, self.submission, self.member["descriptor.json"]
        need(index == claim["index"], "another index")
        self.step("refusals")
        refusal = need(entry["kind"] == "signed" and entry["refused"], "not refused") and entry["refused"]
        need(refusal["tensor"] is not None and refusal["code"] in DECIDES, "no bytes of one tensor decide")
        self.step("descriptor")
        rate(genesis["rule"])
        model = self.manifest("model.jsonl", genesis["model"])
        fold = Fold(genesis["rule"], model, [(found["group"], found["name"]) for found in model].index(("weights", refusal["tensor"])), 0)
        inclusion(**claim["descriptor"], size=entry["delta"]["count"], found=leaf(line), root=entry["delta"]["root"])
        found, data = descriptor(line), self.member["artifact"]
        need(found == fold.descriptor(DECIDES[refusal["code"]], found["root"]), "another artifact")
        self.step("bytes")
        size = artifact(data[at:at + PIECE] for at in range(0, len(data), PIECE))
        need(size == {"bytes": found["bytes"], "root": found["root"]}, "another root")
        self.step("refusals", signed=True)
        need(fold.has_fault(refusal["code"], data), "there is nothing of the kind")
    def accepted(self, claim, record, fold):  # Descriptors of book, code and index of each accepted delta, in ledger order.
        found = [read(line, DISPOSITION) for line in self.dispositions(record)]
        order = sorted((line["verdict"]["accepted"]["order"], line["index"], line["miner"]) for line in found
                       if "accepted" in line["verdict"] and line["index"] is not None)
        self.step("windows")
        lines, all, window = self.lines("deltas.jsonl"), [], record["submissions"]
        self.step("acceptances", signed=True)
        need(len(order) <= 255, "too many are accepted")
        self.step("windows")
        need(len(lines) == 4 * len(order) == 4 * len(claim["deltas"]), "not as many deltas as are accepted")
        for (_, index, miner), proofs, at in zip(order, claim["deltas"], range(0, len(lines), 4)):
            self.step("windows")
            inclusion(index, proofs["submission"], window["end"], leaf(lines[at]), window["root_at_end"])
            who, content = sent(read(lines[at], SUBMISSION))
            self.step("acceptances", signed=True)
            need(who == miner and "delta" in content, "accepted, but no delta")
            all.append((content["delta"], proofs, lines[at + 1:at + 4]))
        self.step("bytes")
        for at, (delta, proofs, three) in enumerate(all):
            for group, line in zip(GROUPS, three):
                inclusion(**proofs[group], size=delta["count"], found=leaf(line), root=delta["root"])
            all[at] = three = [descriptor(line) for line in three]
            need(three == [fold.descriptor(group, found["root"]) for group, found in zip(GROUPS, three)], "another artifact")
        return all
    def is_dispute(self, claim):  # Two claims about one piece, each judged by itself.
        self.step("format")
        self.sides = [Judge(self.policy).judge(io.BytesIO(self.member[name + ".tar"]), only="fold") for name in "ab"]
        for name, side in zip("ab", self.sides): self.failed += [(check, name + ": " + why, shown) for check, why, shown in side.failed]
        self.undone = {check for side in self.sides for check in side.undone}
        places = [(side.claim["round"], side.claim["tensor"], side.claim["piece"]["index"]) for side in self.sides if side.claim]
        need(len(places) == 2 and places[0] == places[1], "two pieces")
        need(self.sides[0].claim["digest"] != self.sides[1].claim["digest"], "no piece in dispute")
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
        with open(path, "rb") as file: judge = Judge(policy).judge(file)
        failed, why, _ = judge.failed[0] if judge.failed else (None, None, False)
        undone = sorted(judge.undone - set(args.without))
        signature = any(check.endswith(("signature", "witnesses")) for check, _, _ in judge.failed)
        exit = 21 if signature else 20 if failed else 3 * bool(undone)
        wrong = [name for name, side in zip("ab", judge.sides) if any(evidence for _, _, evidence in side.failed)]
        print(json.dumps({"kind": judge.claim.get("kind"), "failed": failed, "why": why, "not_done": undone, "exit": exit,
                          "evidence": any(evidence for _, _, evidence in judge.failed), "wrong": wrong}))
        code = max(code, exit)
    sys.exit(code)
if __name__ == "__main__": main()
