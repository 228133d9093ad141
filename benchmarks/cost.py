"""Is the cost in the training report the one that a worker takes? On real TorchServe, by its workers' own clock.

    python benchmarks/cost.py [--fashion fashion_mnist.npz] [--steps N] [--rounds N] [--json]

The digits example and, if its images are given, a network of five convolutions on Fashion-MNIST (random weights: time
does not depend on them) are served by one instance beside what `ts-parity train` makes for them, with one worker each.
Groups and plain requests of the same bodies are sent in turn, and TorchServe logs what its worker's handler takes
(PredictionTime, in ms). Cost: T(group) / T(1), of each the lower quartile. Target: the report is within 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from ts_parity.arguments import count
from ts_parity.lab.demo import DemoSettings, find_example, pack
from ts_parity.torchserve import configuration
from ts_parity.torchserve.archive import read_archive
from ts_parity.torchserve.configuration import InstanceOptions
from ts_parity.torchserve.launcher import TorchServeInstance
from ts_parity.training import TrainSettings, train
from ts_parity.training.bodies import list_bodies
from ts_parity.training.sizing import usual
from ts_parity.wire import FRAME_TYPE, OP, OP_GROUP, Frame, Part, pack_frame

TARGET = 0.10
CANDIDATES = (("student", 2), ("student", 4), ("sum", 2), ("exact", 2))
HANDLER = """
import io
import numpy as np
import torch
from PIL import Image
from ts.torch_handler.base_handler import BaseHandler


class Images(BaseHandler):
    def preprocess(self, data):
        images = [Image.open(io.BytesIO(row.get("data") or row.get("body"))) for row in data]
        return torch.from_numpy(np.stack([np.asarray(image, np.float32) / 255 for image in images])[:, None])

    def postprocess(self, out):
        return out.argmax(1).tolist()
"""


def digits(out: Path) -> tuple[Path, Path]:
    """-> archive, bodies."""
    example = find_example(DemoSettings())
    made = out / "digits"
    command = [sys.executable, str(example / "train_digits.py"), "--out", str(made)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    handler, model = example / "digits_handler.py", example / "model.py"
    archive = pack(out, model_name="digits", handler=handler, model_file=model, serialized_file=made / "digits.pt")
    return archive, made / "train"


def fashion(file: Path, out: Path) -> tuple[Path, Path]:
    import torch

    from ts_parity.training.architectures import cnn

    torch.manual_seed(0)
    script = torch.jit.trace(cnn((1, 28, 28), 10, 1.0).eval(), torch.zeros(1, 1, 28, 28))
    torch.jit.save(script, str(out / "fashion.pt"))
    (out / "fashion_handler.py").write_text(HANDLER)
    with np.load(file) as opened:
        np.savez(out / "some.npz", images=opened["x_train"][:600])
    archive = pack(out, model_name="fashion", handler=out / "fashion_handler.py", serialized_file=out / "fashion.pt")
    return archive, out / "some.npz" / "images"


def sent(url: str, body: bytes, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def taken(instance: TorchServeInstance, model: str) -> list[float]:
    """What the worker's handler took for each request, in ms, as logged so far."""
    text = "".join(file.read_text(errors="replace") for file in sorted(instance.folder.rglob("torchserve.log*")))
    return [
        float(found) for found in re.findall(rf"PredictionTime\S*?:([0-9.]+)\|#ModelName:{re.escape(model)},", text)
    ]


def all_taken(instance: TorchServeInstance, model: str, wanted: int) -> list[float]:
    for _ in range(100):
        if len(found := taken(instance, model)) >= wanted:
            return found
        time.sleep(0.1)  # the log is written a moment after the answer
    raise RuntimeError(f"TorchServe has logged {len(found)} requests to {model}, not {wanted}")


def on_a_worker(archive: Path, protection: Path, bodies: list[bytes], kind: str, rounds: int) -> float:
    """-> T(group) / T(1) by TorchServe's log."""
    options = InstanceOptions(properties={"disable_system_metrics": "true"})
    typed = (("content-type", kind),) if kind else ()
    group = pack_frame(Frame(tuple(Part(typed, body) for body in bodies)))
    names = [read_archive(each).model_name for each in (archive, protection)]
    with TorchServeInstance([archive, protection], options) as instance:
        for _ in range(rounds):
            sent(f"{instance.inference_url}/predictions/{names[1]}", group, {OP: OP_GROUP, "content-type": FRAME_TYPE})
            for body in bodies:
                sent(f"{instance.inference_url}/predictions/{names[0]}", body, dict(typed))
        ones = np.array(all_taken(instance, names[0], rounds * len(bodies))[: rounds * len(bodies)])
        groups = all_taken(instance, names[1], rounds)[:rounds]
    warm = rounds // 5
    return float(usual(np.array(groups[warm:])) / usual(ones.reshape(rounds, -1)[warm:]).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, help="fashion_mnist.npz, with x_train")
    parser.add_argument(
        "--steps", type=count(), default=20, help="of training; time does not depend on what is learned"
    )
    parser.add_argument("--rounds", type=count(), default=100)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    # Our instances leave metrics out of their logs; here they are what is wanted.
    off, on = (f'name="MODEL_METRICS" level="{level}"' for level in ("off", "info"))
    configuration._LOG4J2 = configuration._LOG4J2.replace(off, on)
    with tempfile.TemporaryDirectory(prefix="ts-parity-cost-") as scratch:
        out = Path(scratch)
        sets = [("digits", *digits(out), None)]
        if args.fashion is not None:
            sets.append(("fashion", *fashion(args.fashion, out), "png"))
        for name, archive, inputs, form in sets:
            for code, k in CANDIDATES:
                made = out / f"{name}-{code}-{k}"
                report = train(
                    TrainSettings(
                        archive, inputs, made, (code,), (k,), body=form, steps=args.steps, progress=False,
                        score=inputs if code == "exact" else None,
                    )
                )  # fmt: skip
                [one] = report["candidates"]
                bodies = [body.read() for body in list_bodies(inputs, form)[:k]]
                found = on_a_worker(archive, made / one["archives"][0], bodies, "image/png", args.rounds)
                rows.append({"model": name, "code": code, "k": k, "report": one["cost"], "worker": round(found, 3)})
                rows[-1] |= {"multiplications": one["multiplications"], "ratio": round(one["cost"] / found, 3)}
                print(rows[-1], file=sys.stderr)
    document = {
        "command": " ".join(["python", "benchmarks/cost.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rows": rows,
    }
    print(json.dumps(document, indent=1) if args.json else "\n".join(map(str, rows)))
    return 0 if all(abs(row["ratio"] - 1) <= TARGET for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
