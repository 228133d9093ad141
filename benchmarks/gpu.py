"""What everything takes on the GPU that serves: networks, encoders, workers, a shared card, and TorchServe on it.

    python benchmarks/gpu.py                     all of it on the GPU, within seven minutes
    python benchmarks/gpu.py --minutes 3         the first sections that fit
    python benchmarks/gpu.py --only workers      one section
    python benchmarks/gpu.py --tiny --device cpu tiny networks on a CPU: whether it runs at all; its times mean nothing
    python benchmarks/gpu.py --tables            the tables of docs/benchmarks.md, renewed from the results

Sections, in this order: `workers` (what a group costs a worker, with handler and copies), `torchserve` (two real
instances and the proxy, with frozen workers), `networks` (T(b) of ResNet-18, ResNet-50 and ViT-B/16 and of students of
1/4 and 1/10, at batches of 1 to 32), `steps` (encoding, copies, decoding, finishing), `sharing` (what a late protection
costs the deployed model's p99 on the same GPU) and `sizes` (from which size on `exact` is dearer than a student). The
results are written after each list of rows: a run that ends early leaves what was measured until then.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpu_networks import NETWORKS, Deployed
from gpu_serving import torchserve
from gpu_sharing import sharing
from gpu_times import Rows, Setting, costs, networks, sizes, steps, workers
from tables import renew
from ts_parity.arguments import number
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "gpu.json"
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
MINUTES = 7.0
RATE = 60.0
"""Queries a second of the section `torchserve`: two instances with a CUDA worker each are far from busy."""

Section = Callable[[Setting, bool], Iterator[Rows]]


def _sharing(setting: Setting, tiny: bool) -> Iterator[Rows]:
    return sharing(replace(setting, networks=setting.networks[:1]), 0.5 if tiny else 4.0)


def _torchserve(setting: Setting, tiny: bool) -> Iterator[Rows]:
    return torchserve(setting, *((6.0, 10.0, 3.0) if tiny else (20.0, RATE)))


SECTIONS: dict[str, tuple[Section, float]] = {
    "workers": (lambda setting, tiny: workers(replace(setting, networks=setting.networks[:2])), 50),
    "torchserve": (_torchserve, 110),
    "networks": (lambda setting, tiny: networks(setting), 70),
    "steps": (lambda setting, tiny: steps(setting), 15),
    "sharing": (_sharing, 100),
    "sizes": (lambda setting, tiny: sizes(setting), 50),
}
"""Each with the seconds it is expected to take on a data centre's GPU: one that would not fit is left out."""


def setting_of(device: torch.device, tiny: bool) -> Setting:
    if not tiny:
        return Setting(device, tuple(Deployed(name) for name in NETWORKS))
    made = tuple(Deployed(name, 1 / 4, 32, 10) for name in NETWORKS)
    return Setting(device, made, batches=(1, 2, 4), widths=(1 / 2, 1), rounds=2)


def card(device: torch.device) -> dict[str, str]:
    """What the figures were measured on."""
    told = {"machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"}
    if device.type != "cuda":
        return {"device": str(device), **told}
    about = torch.cuda.get_device_properties(device)
    told |= {"device": about.name, "memory": f"{about.total_memory / 2**30:.0f} GiB", "cuda": str(torch.version.cuda)}
    if (smi := shutil.which("nvidia-smi")) is not None:
        asked = "driver_version,clocks.max.sm,power.limit,compute_mode"
        command = [smi, f"--query-gpu={asked}", "--format=csv,noheader", f"--id={device.index or 0}"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip().split(", ")
        told |= dict(zip(("driver", "most MHz", "power", "mode"), said, strict=False))
    return told


def measure_all(
    setting: Setting, only: Sequence[str], ends_at: float, tiny: bool, write: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """`write` is given the document after each list of rows. What fails is told in it, and the next section begins."""
    document: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "card": card(setting.device),
        "tiny": tiny,
        "sections": {},
        "left": dict.fromkeys(only, "not begun"),
        "seconds": {},
    }
    for name in only:
        section, expected_s = SECTIONS[name]
        begun = time.monotonic()
        if not tiny and begun + expected_s > ends_at:
            document["left"][name] = "there was no time for it"
            continue
        document["left"][name] = "not finished"
        rows = document["sections"][name] = []
        try:
            for more in section(setting, tiny):
                rows += more
                document["seconds"][name] = round(time.monotonic() - begun, 1)
                write(document)
                print(f"{name}: {len(rows)} rows, {document['seconds'][name]} s", file=sys.stderr, flush=True)
            del document["left"][name]
        except Exception as error:
            traceback.print_exc()
            document["left"][name] = f"failed: {type(error).__name__}: {error}"
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
        write(document)
    return document


# ---- the page --------------------------------------------------------------------------------------------------------

HEADS: dict[str, tuple[str, ...]] = {
    "workers": ("network", "code", "k", "one_ms", "group_ms", "cost"),
    "sharing": ("network", "how", "beside", "queries", "p50_ms", "p99_ms", "p999_ms"),
    "torchserve": ("arm", "rate", "queries", "p50_ms", "p99_ms", "max_ms", "errors", "rebuilt", "work"),
    "sizes": ("network", "width", "multiplications", "one_ms", "k", "cost of exact", "cost of student 1/4"),
    "steps": ("dtype", "step", "ms"),
}
TOLD = {
    "workers": "What a worker takes for a group, in plain requests (raw pixels, handler and copies included)",
    "networks": "The networks alone: milliseconds by batch",
    "sharing": "Latencies of the deployed model while something shares its GPU",
    "torchserve": "Two TorchServe instances on the GPU, workers frozen",
    "sizes": "`exact` beside a student of a quarter, by size of the network",
    "steps": "Encoding, copies, decoding, finishing",
}


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/benchmarks.md says between its marks. Empty: nothing has been run."""
    if not document:
        listed = ", ".join(f"`{name}`" for name in SECTIONS)
        return {"gpu": f"Not run yet on any GPU: {listed}. There are no figures, and none are guessed."}
    told = [", ".join(f"{what} {value}" for what, value in document["card"].items()) + "."]
    for name, rows in document["sections"].items():
        if rows:
            told += [f"{TOLD[name]}:", _table(name, rows)]
    if document["left"]:
        told.append("Not run: " + "; ".join(f"`{name}` ({why})" for name, why in document["left"].items()) + ".")
    return {"gpu": "\n\n".join(told)}


def _table(name: str, rows: Rows) -> str:
    if name != "networks":
        shown = [row for row in rows if row.get("arm") != "start"]
        return markdown(HEADS[name], [[_cell(head, row.get(head)) for head in HEADS[name]] for row in shown])
    batches = sorted({row["batch"] for row in rows})
    keys = list(dict.fromkeys((r["network"], r["dtype"], r["how"], r["role"]) for r in rows))
    taken = {(r["network"], r["dtype"], r["how"], r["role"], r["batch"]): r["ms"] for r in rows}
    by_batch = markdown(
        ("network", "dtype", "launched", "role", *(f"{batch}" for batch in batches)),
        [[*key, *(f"{taken[(*key, batch)]:.3g}" for batch in batches)] for key in keys],
    )
    ks = tuple(batch for batch in batches if batch in (2, 4, 8))
    found = costs(rows, ks)
    by_code = markdown(tuple(found[0]), [[_cell(head, value) for head, value in row.items()] for row in found])
    return f"{by_batch}\n\nThe same as costs, T(group) / T(1):\n\n{by_code}"


def _cell(head: str, value: Any) -> str:
    if value is None:
        return "-"
    if head == "multiplications":
        return f"{value / 1e9:.2f} G"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def read_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="default %(default)s")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=number(above=0), default=MINUTES, help="default %(default)g")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and a few rounds")
    parser.add_argument("--out", type=Path, help=f"default {RESULTS}; of --tiny: nowhere")
    parser.add_argument("--tables", action="store_true", help="renew the tables from the kept results, measure nothing")
    args = parser.parse_args(arguments)
    if args.tables:
        for mark, text in sections(read_results()).items():
            renew(DOCS, mark, text)
        return 0
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here that torch can use; --tiny --device cpu shows whether it runs", file=sys.stderr)
        return 3
    out = args.out or (None if args.tiny else RESULTS)

    def write(document: dict[str, Any]) -> None:
        if out is None:
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(document, indent=1) + "\n")
        unfinished.replace(out)

    ends_at = time.monotonic() + 60 * args.minutes
    document = measure_all(setting_of(device, args.tiny), args.only, ends_at, args.tiny, write)
    print(sections(document)["gpu"])
    return 1 if any(why.startswith("failed") for why in document["left"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
