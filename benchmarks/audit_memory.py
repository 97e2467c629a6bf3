"""Memory of an audit's scan against the size of the store: `python benchmarks/audit_memory.py [rows ...]`.

For each size a synthetic LanceDB table of 384 float32 values a row is written, then scanned in a fresh
process whose peak resident memory is read from /proc (Linux).  Prints one CSV line per size.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

DIMENSION, CHUNK = 384, 20_000  # values per vector; rows written at once

# VmHWM and not getrusage: the latter's maximum is inherited from the process that wrote the table.
SCAN = """
import sys, time
from tutorial_lib.audit_sample import scan
from tutorial_lib.stores import open_store

def peak():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if "VmHWM" in line)

with open_store(sys.argv[1]) as store:
    before, started = peak(), time.monotonic()
    found = scan(store, 1000)
    print(found.rows, before, peak(), round(time.monotonic() - started, 1), sep=",")
"""


def fill(folder: str, rows: int) -> None:
    """A table of random unit vectors, written chunk by chunk."""
    import lancedb
    import pyarrow as pa

    rng = np.random.default_rng(0)

    def chunks() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, CHUNK):
            size = min(CHUNK, rows - start)
            vectors = rng.standard_normal((size, DIMENSION), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
            yield pa.record_batch([pa.array(range(start, start + size)), column], names=["id", "vector"])

    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), DIMENSION))])
    lancedb.connect(folder).create_table("rows", pa.RecordBatchReader.from_batches(schema, chunks()))


def main() -> None:
    print("rows,memory before MB,peak memory MB,seconds", flush=True)
    for rows in map(int, sys.argv[1:] or ("10000", "100000", "1000000")):
        with tempfile.TemporaryDirectory() as folder:
            fill(folder, rows)
            subprocess.run([sys.executable, "-c", SCAN, f"lancedb:{folder}#rows"], check=True)


if __name__ == "__main__":
    main()
