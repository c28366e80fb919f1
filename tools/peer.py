#!/usr/bin/env python3
"""Times Templar's own fold and ours in turns, on one machine, and prints how many times ours is faster.

    python3 tools/peer.py --peer templar_fold.py --checkout TEMPLAR --gradledger target/release/gradledger --tmp DIR

`--peer` is a script that runs Templar's outer step from a checkout on the shapes of one layer of the 72B model and
prints JSON lines with `params` and `fold_cpu_s`; it is started with this Python, which so needs torch, numpy, einops
and pydantic. Ours is `gradledger bench --json`: one thread, in memory, without and with SHA-256 of the result.

Both are in parameters a processor second, and of all turns the fastest counts. Ours is taken by the clock, so that a
machine that others use makes it look slower than it is, never faster. Records go to `benches/record/` with `--record`.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys

MINERS = (4, 20)
ROOT = pathlib.Path(__file__).resolve().parent.parent


def lines(command):
    """The JSON documents that a command prints, a line each."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def templar(args, *more):
    common = ["--checkout", args.checkout, "--tmp", args.tmp, "--fraction", str(args.fraction), "--threads", "1"]
    return lines([sys.executable, args.peer, *common, *more])


def theirs(args, miners):
    (fold,) = templar(args, "--stage", "fold", "--miners", str(miners))
    return fold["params"] / fold["fold_cpu_s"]


def ours(args):
    """(name, miners) to rate."""
    command = [args.gradledger, "bench", "--json", "--threads", "1", "--dir", args.tmp]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    rates = {}
    for line in report["kernels"]["one_thread"]:
        name, _, miners = line["name"].rpartition("/")
        if name.startswith("in-place"):
            hashed = "hashed" if name == "in-place-hashed" else "fold"
            rates[hashed, int(miners)] = line["parameters_per_s"]
    return rates


def record(rows):
    said = lambda *command: subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.split("\n")[0]
    cpu = [l for l in open("/proc/cpuinfo") if l.startswith("model name")][0].split(": ")[1].strip().replace("(R)", "")
    machine = f"{cpu.replace(',', ' ')} {said('nproc')} cores"
    date, commit = datetime.date.today().isoformat(), said("git", "rev-parse", "--short", "HEAD")
    path = ROOT / "benches/record" / f"peer-{date}-{''.join(c if c.isalnum() else '-' for c in machine).lower()}.csv"
    body = "".join(f"{date},{commit},{machine},peer/{what},{value:.3f},{unit}\n" for what, value, unit in rows)
    path.write_text("date,commit,machine,bench,median,unit\n" + body)
    print(f"recorded in {path}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("--peer", "--checkout", "--gradledger", "--tmp"):
        parser.add_argument(name, required=True)
    parser.add_argument("--fraction", type=float, default=0.1, help="of a layer, for the peer")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()

    pathlib.Path(args.tmp).mkdir(parents=True, exist_ok=True)
    templar(args, "--stage", "prepare", "--miners", *map(str, MINERS))
    best = {}
    for turn in range(args.turns):
        turned = {("templar", miners): theirs(args, miners) for miners in MINERS} | ours(args)
        for key, rate in turned.items():
            best[key] = max(rate, best.get(key, 0))
        print(f"turn {turn + 1} of {args.turns} done", file=sys.stderr)

    rows = []
    print("| miners | Templar, M parameters/CPU-s | ours | times | ours, hashed | times |\n|---:|---:|---:|---:|---:|---:|")
    for miners in MINERS:
        peer, fold, hashed = (best[name, miners] for name in ("templar", "fold", "hashed"))
        print(f"| {miners} | {peer / 1e6:.1f} | {fold / 1e6:.0f} | {fold / peer:.0f} | {hashed / 1e6:.0f} | {hashed / peer:.0f} |")
        for what, rate in (("templar", peer), ("fold", fold), ("fold-hashed", hashed)):
            rows.append((f"{what}/{miners}", rate / 1e6, "M parameters/CPU-s"))
        rows += [(f"fold-over-templar/{miners}", fold / peer, "ratio"), (f"fold-hashed-over-templar/{miners}", hashed / peer, "ratio")]
    if args.record:
        record(rows)


if __name__ == "__main__":
    main()
