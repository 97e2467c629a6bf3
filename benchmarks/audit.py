"""An audit end to end, killed half-way and resumed: `python benchmarks/audit.py [--rows 10000] [--sample 10000] ...`.

Writes a LanceDB table of invented notes and speeches, audits it with the command line in a process of its own, kills
that process when half of the sample is done, and starts it again with --resume. Prints one CSV line: rows audited,
rows already done at the kill and rows repeated after it (must be 0), seconds of both runs, rows a second, embedder
queries, peak memory of the larger process (Linux), and the share recovered exactly.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# VmHWM is the process's own peak: getrusage's maximum is inherited from the process that starts it.
AUDIT = """
import sys
from tutorial_lib.cli import main
code = main(sys.argv[1:])
peak = [int(line.split()[1]) // 1024 for line in open("/proc/self/status") if "VmHWM" in line]
print("peak", *peak, file=sys.stderr)
sys.exit(code)
"""


def fill(folder: str, rows: int, device: str | None) -> None:
    """A table of `rows` texts that the shipped weights have not seen, with their vectors."""
    import lancedb

    from tutorial_lib import Embedder, passages, synthetic_records

    embedder = Embedder.from_pretrained("all-MiniLM-L6-v2", device=device)
    # Cutting speeches takes longer than a try with a few rows.
    speeches = passages("sotu", "test", 8, embedder=embedder)[: rows // 2] if rows >= 1000 else []
    notes = synthetic_records(rows - len(speeches), "test", 0, 8, embedder)
    texts = [*speeches, *(note.text for note in notes)]
    vectors = embedder.encode(texts, progress=False)
    table = [{"id": str(i), "vector": v, "text": t} for i, (v, t) in enumerate(zip(vectors, texts, strict=True))]
    lancedb.connect(folder).create_table("notes", table)


def done(journal: Path) -> list[str]:
    """Ids of the rows that an audit's journal holds, in its order."""
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    return [row["id"] for line in lines if line.endswith("}") for row in json.loads(line).get("rows_done", ())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the store (default 10000)")
    parser.add_argument("--sample", type=int, default=10_000, help="rows inverted (default 10000)")
    parser.add_argument("--steps", type=int, default=3, help="rounds of correction (default 3)")
    parser.add_argument("--beam", type=int, default=2, help="beam width (default 2)")
    parser.add_argument("--edits", type=int, default=0, help="local edits a round (default 0)")
    parser.add_argument("--device", help="of the embedder that writes the store")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fill(folder, given.rows, given.device)
        out = Path(folder) / "audit"
        command = [sys.executable, "-c", AUDIT, "audit", f"lancedb:{folder}#notes", "--json", "--out", str(out)]
        command += ["--sample", str(given.sample), "--steps", str(given.steps), "--beam", str(given.beam)]
        command += ["--edits", str(given.edits)]
        started = time.monotonic()
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = 0
        while first.poll() is None and len(done(out / "journal.jsonl")) < given.sample // 2:
            time.sleep(0.5)
            with open(f"/proc/{first.pid}/status") as status:
                peak = max([peak, *(int(line.split()[1]) // 1024 for line in status if "VmHWM" in line)])
        first.kill()
        first.wait()
        killed, before = time.monotonic() - started, len(done(out / "journal.jsonl"))
        started = time.monotonic()
        second = subprocess.run([*command, "--resume"], capture_output=True, text=True)
        if second.returncode:
            sys.exit(second.stderr)
        resumed = time.monotonic() - started
        report = json.loads(second.stdout)
        peak = max(peak, *(int(line.split()[1]) for line in second.stderr.splitlines() if line.startswith("peak")))
        rows = done(out / "journal.jsonl")
        repeated = len(rows) - len(set(rows))
        if len(set(rows)) != min(given.sample, given.rows):
            sys.exit(f"{len(set(rows))} of {min(given.sample, given.rows)} rows were inverted")
        exact = (report["exact"] or {"value": float("nan")})["value"]
        print("rows,done at kill,repeated,seconds to kill,seconds after,rows a second,queries,peak MB,exact %,machine")
        print(
            report["rows"], before, repeated, f"{killed:.0f}", f"{resumed:.0f}",
            f"{report['rows'] / (killed + resumed):.2f}", report["queries"], peak, f"{exact:.1f}",
            f"{platform.machine()} with {len(os.sched_getaffinity(0))} cores", sep=",",
        )  # fmt: skip


if __name__ == "__main__":
    main()
