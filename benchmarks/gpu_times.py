"""What networks, encoders, copies and whole workers take on one device: the sections `networks`, `sizes`, `steps` and
`workers` of benchmarks/gpu.py.

Each is a function of a setting that yields rows. Times are the lower quartile of runs taken in turn, each begun after
a pause, as the training report takes them. Knows networks and clocks. Knows nothing of processes, or of TorchServe.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gpu_networks import Deployed, multiplications
from ts_parity.codes import make_code
from ts_parity.torchserve.archive import extract_archive, pack, wrap_deployed, wrap_parity
from ts_parity.torchserve.wrapping import SampleRequest
from ts_parity.training.bodies import RequestBody
from ts_parity.training.cost import measure
from ts_parity.training.sizing import in_turn, usual
from ts_parity.worker.encoders import combine, tile
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.outputs import take, to_array

SHARES = {"student 1/4": 1 / 4, "student 1/10": 1 / 10}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """Where and how much is measured. `batches` begin with 1."""

    device: torch.device
    networks: tuple[Deployed, ...]
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    ks: tuple[int, ...] = (2, 4)
    widths: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 1, 3 / 2, 2)
    rounds: int = 30

    @property
    def halves(self) -> tuple[torch.dtype, ...]:
        """What is served on such a device."""
        return (torch.float32, torch.float16) if self.device.type == "cuda" else (torch.float32,)

    @property
    def gpu_id(self) -> int | None:
        return (self.device.index or 0) if self.device.type == "cuda" else None


def milliseconds(setting: Setting, runs: dict[Any, Callable[[], object]]) -> dict[Any, float]:
    """Of each, taken in turn."""
    seconds = usual(in_turn([*runs.values()], setting.device, setting.rounds))
    return {name: round(1000 * float(each), 4) for name, each in zip(runs, seconds, strict=True)}


def networks(setting: Setting) -> Iterator[Rows]:
    """T(b) of each deployed network and its students, launched one kernel after the other and, on a GPU, as one graph;
    a list of rows for each network and precision.
    """
    for deployed in setting.networks:
        sizes = {"deployed": deployed, **{name: deployed.student(share) for name, share in SHARES.items()}}
        for dtype in setting.halves:
            runs: dict[tuple[str, str, int], Callable[[], object]] = {}
            for role, network in sizes.items():
                model = network.make().to(setting.device, dtype)
                for batch in setting.batches:
                    images = network.images(batch).to(setting.device, dtype)
                    runs[role, "one by one", batch] = inference(model, images)
                    if setting.device.type == "cuda":
                        runs[role, "graph", batch] = graphed(model, images)
            taken = milliseconds(setting, runs)
            yield [
                {
                    "network": deployed.name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "role": role,
                    "how": how,
                    "batch": batch,
                    "ms": ms,
                    "multiplications": multiplications(sizes[role]),
                }
                for (role, how, batch), ms in taken.items()
            ]


def inference(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> object:
        return model(images)

    return run


@torch.inference_mode()
def graphed(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """All kernels of one inference as a CUDA graph: what the network takes when nobody waits for launches."""
    aside = torch.cuda.Stream(images.device)
    aside.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(aside):
        for _ in range(3):
            model(images)
    torch.cuda.current_stream(images.device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(images)
    return graph.replay


def costs(rows: Rows, ks: tuple[int, ...]) -> Rows:
    """T(group) / T(1) of the networks alone: `exact` and a student run k at once, `sum` and `concat` run one."""
    found: Rows = []
    taken = {(r["network"], r["dtype"], r["how"], r["role"], r["batch"]): r["ms"] for r in rows}
    for network, dtype, how in dict.fromkeys((r["network"], r["dtype"], r["how"]) for r in rows):
        one = taken[network, dtype, how, "deployed", 1]
        for k in ks:
            codes = {"exact": taken[network, dtype, how, "deployed", k], "sum, concat": one}
            codes |= {role: taken[network, dtype, how, role, k] for role in SHARES}
            found.append(
                {"network": network, "dtype": dtype, "how": how, "k": k, "one_ms": one}
                | {f"cost of {code}": round(ms / one, 3) for code, ms in codes.items()}
            )
    return found


def sizes(setting: Setting) -> Iterator[Rows]:
    """From which size on `exact` stops being cheap: each network at several widths, beside its student of a quarter."""
    dtype = setting.halves[-1]
    for whole in setting.networks:
        runs: dict[tuple[float, str, int], Callable[[], object]] = {}
        for width in setting.widths:
            deployed = replace(whole, width=whole.width * width)
            for role, network in (("deployed", deployed), ("student", deployed.student(1 / 4))):
                model = network.make().to(setting.device, dtype)
                for batch in (1, *setting.ks) if role == "deployed" else setting.ks:
                    images = network.images(batch).to(setting.device, dtype)
                    runs[width, role, batch] = inference(model, images)
        taken = milliseconds(setting, runs)
        yield [
            {
                "network": whole.name,
                "dtype": str(dtype).removeprefix("torch."),
                "width": width,
                "multiplications": multiplications(replace(whole, width=whole.width * width)),
                "one_ms": taken[width, "deployed", 1],
                "k": k,
                "cost of exact": round(taken[width, "deployed", k] / taken[width, "deployed", 1], 3),
                "cost of student 1/4": round(taken[width, "student", k] / taken[width, "deployed", 1], 3),
            }
            for width in setting.widths
            for k in setting.ks
        ]


def steps(setting: Setting) -> Iterator[Rows]:
    """Encoding on the device, copies there and back, decoding, and the output that a finish gives to user code."""
    side, classes = setting.networks[0].side, setting.networks[0].classes
    for dtype in setting.halves:
        runs: dict[str, Callable[[], object]] = {}
        for k in setting.ks:
            images = [torch.randn(1, 3, side, side).to(setting.device, dtype) for _ in range(k)]
            runs[f"encode sum, k={k}"] = lambda images=images, k=k: combine(images, [1.0] * k)
            if k in (2, 4):
                runs[f"encode concat, k={k}"] = lambda images=images: tile(torch.stack(images, dim=-4))
            code, outputs = (
                make_code("sum", k),
                np.random.default_rng(0).normal(size=(k, 1, classes)).astype(np.float32),
            )
            have = {slot: outputs[slot] for slot in range(1, k)}
            runs[f"decode, k={k}"] = lambda code=code, outputs=outputs, have=have, k=k: code.decode(
                0, have, {0: outputs.sum(0)}, {0: frozenset(range(k))}
            )
        here = torch.randn(1, 3, side, side, dtype=dtype)
        there, output = here.to(setting.device), torch.randn(1, classes).to(setting.device, dtype)
        raw, container = take(output)
        runs["an image to the device"] = lambda here=here: here.to(setting.device)
        if setting.device.type == "cuda":
            pinned = here.pin_memory()
            runs["an image to the device, pinned"] = lambda pinned=pinned: pinned.to(setting.device, non_blocking=True)
        runs["an image on the device, copied"] = lambda there=there: there.clone()
        runs["an output from the device"] = lambda output=output: to_array(output)
        runs["an output to the device (finish)"] = lambda raw=raw, container=container: container.rebuild(raw)
        taken = milliseconds(setting, runs)
        yield [{"dtype": str(dtype).removeprefix("torch."), "step": name, "ms": ms} for name, ms in taken.items()]


HANDLER = '''
"""Raw pixels in, the best class out, in half precision on a GPU."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler

SIDE = {side}


class Pixels(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.model = self.model.to(self.dtype)

    def preprocess(self, data):
        read = [np.frombuffer(bytes(row.get("data") or row.get("body")), np.uint8) for row in data]
        pixels = torch.from_numpy(np.stack(read).reshape(len(read), 3, SIDE, SIDE)).to(self.device)
        return (pixels.to(self.dtype) - 127.5) / 64

    def postprocess(self, scores):
        best = scores.float().softmax(1).max(1)
        return [dict(best=i, p=p) for i, p in zip(best.indices.tolist(), best.values.tolist())]
'''


@dataclass(frozen=True)
class Archives:
    """Of one network with random weights: plain, wrapped, and its protections by (code, k)."""

    plain: Path
    deployed: Path
    protections: dict[tuple[str, int], Path]
    bodies: list[bytes]


def make_archives(out: Path, network: Deployed, wanted: list[tuple[str, int]]) -> Archives:
    """`wanted`: (code, k); a student is one of a quarter, a parity model the deployed network with other weights."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    name = network.name.replace("_", "-")
    handler = out / "pixels_handler.py"
    handler.write_text(HANDLER.format(side=network.side))
    files = {role: out / f"{role}.pt" for role in ("own", "student", "parity")}
    for role, file in files.items():
        made = network.student(1 / 4) if role == "student" else network
        torch.jit.save(torch.jit.trace(made.make(), network.images(1), check_trace=False), str(file))
    rng = np.random.default_rng(0)
    bodies = [rng.integers(0, 256, 3 * network.side**2, np.uint8).tobytes() for _ in range(16)]
    samples = []
    for number, body in enumerate(bodies[:2]):
        (out / f"sample{number}.bin").write_bytes(body)
        samples.append(SampleRequest(out / f"sample{number}.bin", "application/octet-stream"))
    plain = pack(out, model_name=name, handler=handler, serialized_file=files["own"])
    protections = {}
    for code, k in wanted:
        script = {"exact": None, "student": files["student"]}.get(code, files["parity"])
        protections[code, k] = wrap_parity(
            plain, out, f"{name}-{code}-k{k}", code=code, k=k, partial=True, serialized_file=script, samples=samples
        )
    return Archives(plain, wrap_deployed(plain, out / "wrapped", samples=samples), protections, bodies)


def workers(setting: Setting) -> Iterator[Rows]:
    """What a worker takes for a group, in plain requests: its handler and its copies included."""
    for network in setting.networks:
        wanted = [(code, k) for code in ("exact", "student", "sum", "concat") for k in setting.ks]
        with tempfile.TemporaryDirectory(prefix="ts-parity-gpu-") as scratch:
            made = make_archives(Path(scratch) / "made", network, wanted)
            extract_archive(made.plain, Path(scratch) / "plain")
            rows = []
            with OfflineHandler(Path(scratch) / "plain", setting.gpu_id) as handler:
                for (code, k), archive in made.protections.items():
                    bodies = [
                        RequestBody(str(n), "application/octet-stream", lambda body=body: body)
                        for n, body in enumerate(made.bodies[:k])
                    ]
                    found = measure(handler, archive, bodies, None, setting.device)
                    rows.append(
                        {"network": network.name, "code": code, "k": k, "cost": found.cost}
                        | {"group_ms": found.group_ms, "one_ms": found.one_ms}
                    )
            yield rows
