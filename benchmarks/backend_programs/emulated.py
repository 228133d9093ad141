"""What each of the servers beside this file serves: a deployed model and its student, on an emulated machine.

Runs in a server's own environment: the standard library, and the emulation, which needs no more. Inference is a wait
(`ts_parity.lab.emulation`), as long as the machine's file says; without one it takes no time.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from ts_parity.lab.emulated_handler import MACHINE, EmulatedMachine, batch_cost, draw, ends

FEATURES, CLASSES = 4, 3
DEPLOYED, STUDENT = "deployed", "student"
COSTS = {DEPLOYED: 1.0, STUDENT: 0.25}
"""Of an inference, in deployed ones. A quarter is what the tables of the simulator take for a student."""
_SCALE = {DEPLOYED: 1.0, STUDENT: 1.001}
"""A student decides as its model does, and can be told from it all the same."""
WEIGHTS = ((0.5, -1.0, 0.25, 2.0), (1.5, 0.75, -0.5, -1.0), (-1.0, 0.5, 1.25, 0.25))
_NO_WAIT = {"service_s": 0.0, "cv": 0.0, "saves": 0.0}


def scores(model: str, row: Sequence[float]) -> list[float]:
    """The answer of one of the two models to one input. Raise ValueError for one of another length."""
    if len(row) != FEATURES:
        raise ValueError(f"an input has {FEATURES} numbers, not {len(row)}")
    return [_SCALE[model] * sum(w * x for w, x in zip(each, row, strict=True)) for each in WEIGHTS]


class EmulatedModel:
    """One of the two, on the machine that the environment names. A model in use is in one process at a time, and says
    in a file beside the machine's which that is.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        file = os.environ.get(MACHINE)
        self._machine = EmulatedMachine(file)
        self._rng = random.Random(f"0 {name} {file}")
        if file is not None:
            pid_file(Path(file), name).write_text(str(os.getpid()))

    def answer(self, rows: Sequence[Sequence[float]]) -> list[list[float]]:
        """Of a batch, after its time."""
        answers = [scores(self._name, row) for row in rows]
        state, new = self._machine.state()
        if new:  # with the same seed, the same draws
            self._rng = random.Random(f"{state['seed']} {self._name} {os.environ.get(MACHINE)}")
        says = {**_NO_WAIT, **state.get("service", {})}
        takes_s = says["service_s"] * batch_cost([COSTS[self._name]] * len(rows), says["saves"])
        with self._machine.turn():
            begins = time.monotonic() - state["started_at"]
            ends_at = state["started_at"] + ends(begins, takes_s * draw(self._rng, says["cv"]), state["slow"])
            while (left_s := ends_at - time.monotonic()) > 0:
                time.sleep(min(left_s, 1.0) if left_s < math.inf else 1.0)
        return answers


def pid_file(machine: Path, model: str) -> Path:
    return machine.with_name(f"{machine.name}.{model}.pid")
