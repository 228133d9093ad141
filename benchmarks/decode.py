"""What decoding costs in the proxy: microseconds to rebuild one output of 1,000 classes, for each k and r.

    python benchmarks/decode.py [--classes N] [--json]

Target: at most 20 microseconds. The pattern's weights are computed once and kept; this is the cost after that.
"""

import argparse
import json
import platform
import statistics
import sys
import timeit

import numpy as np

from ts_parity.arguments import count
from ts_parity.codes import make_code

TARGET_US = 20.0
REPEAT = 2000


def one_case(k: int, r: int, classes: int) -> float:
    """-> median microseconds; the most slots that r parities can recover are missing."""
    code = make_code("sum", k, r)
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(k, 1, classes)).astype(np.float32)
    parities = {j: sum(c * o for c, o in zip(code.coefficients[j], outputs, strict=True)) for j in range(r)}
    covers = {j: frozenset(range(k)) for j in range(r)}
    have = {slot: outputs[slot] for slot in range(min(r, k), k)}
    assert np.allclose(code.decode(0, have, parities, covers), outputs[0], atol=1e-3)
    runs = timeit.repeat(lambda: code.decode(0, have, parities, covers), number=REPEAT, repeat=7)
    return statistics.median(runs) / REPEAT * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=count(), default=1000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [{"k": k, "r": r, "decode_us": round(one_case(k, r, args.classes), 2)} for k in (2, 3, 4) for r in (1, 2)]
    machine = f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}"
    if args.json:
        print(json.dumps({"classes": args.classes, "target_us": TARGET_US, "machine": machine, "rows": rows}))
    else:
        print(f"decode of one output of {args.classes} classes, median of 7 x {REPEAT}; {machine}")
        for row in rows:
            print(f"  k={row['k']} r={row['r']}: {row['decode_us']} us (target {TARGET_US})")
    return 0 if all(row["decode_us"] <= TARGET_US for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
