"""Emulated accelerators: any archive becomes one whose inference takes a given time, by waiting; its answers stay.

So that a fleet of machines fits on a few cores, and what a policy does is not hidden in the noise of the host. A table
made with them says so. An instance's machine is a file: it says how slow the machine is and when, and can be exchanged
while the instance serves, so that several arms of a comparison share one fleet.

Knows archives and spells. What an emulated worker does stands in `emulated_handler`, which runs inside the archive.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ts_parity.codes import Family, make_code
from ts_parity.errors import ConfigError
from ts_parity.lab import emulated_handler
from ts_parity.lab.emulated_handler import MACHINE, SECTION, batch_cost
from ts_parity.lab.scenario import Outage, Spells
from ts_parity.torchserve.archive import read_archive, rewrite
from ts_parity.torchserve.mar import MANIFEST
from ts_parity.torchserve.mar import SECTION as PROTECTION

HANDLER = "ts_parity_emulated.py"
_CONFIG = "ts_parity_emulation.yaml"


@dataclass(frozen=True)
class Emulation:
    """How long one deployed inference takes: lognormal of this mean and coefficient of variation, 0 being fixed.

    `body_bytes`: a body of so many bytes takes `service_s`, others in proportion; 0: all alike. `saves`: what each
    further input of a batch or a group saves, from 0 (k cost k) to 1 (k cost one), as in the simulator.
    """

    service_s: float = 0.05
    cv: float = 0.1
    body_bytes: int = 0
    saves: float = 0.0

    def __post_init__(self) -> None:
        fits = 0 < self.service_s < math.inf and 0 <= self.cv < math.inf and self.body_bytes >= 0
        if not (fits and 0 <= self.saves <= 1):
            raise ConfigError(f"an accelerator cannot be emulated with {self}")

    def described(self) -> str:
        """For the foot of a table."""
        spread = f", cv {self.cv:g}" if self.cv else ", always"
        size = f" for each {self.body_bytes} bytes of body" if self.body_bytes else ""
        batch = f"1 + {1 - self.saves:g} (k - 1) times as long" if self.saves else "k times as long"
        wait = f"a wait of {1000 * self.service_s:g} ms{size}{spread}"
        return f"emulated accelerators: an inference is {wait}; k in a batch take {batch}"


def emulate(archive: str | Path, out: str | Path, emulation: Emulation, cost: float = 1.0) -> Path:
    """-> a copy of the archive, in the folder `out` and of the same name, whose inference takes its time.

    `cost`: of an inference of this archive, in deployed ones; of a backup, one for each member of a group. A protection
    then declares the cost that is emulated. Raise ArchiveError or ConfigError.
    """
    if not 0 < cost < math.inf:
        raise ConfigError(f"the cost of an emulated inference must be positive, not {cost}")
    source, out = read_archive(archive), Path(out)
    config = {**source.config}
    handler = config[SECTION]["handler"] if SECTION in config else source.handler
    combined = False
    if source.section is not None and source.role == "parity":
        code = make_code(source.section["code"], source.section["k"], source.section["r"])
        combined = code.family is Family.PARITY
        group = cost if combined else batch_cost([cost] * code.k, emulation.saves)
        config[PROTECTION] = {**source.section, "cost": group}
    config[SECTION] = {"handler": handler, "cost": cost, "combined": combined, **asdict(emulation)}
    config_file = source.config_file or _CONFIG
    named = {"handler": HANDLER, "configFile": config_file}
    target = out / f"{source.model_name}.mar"
    rewrite(
        source,
        target,
        {
            MANIFEST: json.dumps({**source.manifest, "model": {**source.model, **named}}, indent=2),
            config_file: yaml.safe_dump(config, sort_keys=False),
            HANDLER: Path(emulated_handler.__file__).read_bytes(),
        },
    )
    return target


class MachineFile:
    """What one instance runs on, as its emulated workers read it. Give `env` to the instance."""

    def __init__(self, file: Path) -> None:
        self.file = file.resolve()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.set()

    @property
    def env(self) -> dict[str, str]:
        return {MACHINE: str(self.file)}

    def set(
        self,
        slow: Sequence[Outage] = (),
        started_at: float = 0.0,
        seed: int = 0,
        emulation: Emulation | None = None,
    ) -> None:
        """From now on: slow as these say, from `started_at` (time.monotonic) on. `emulation` takes the archives' place.

        Service times are drawn again, from the seed. Raise ConfigError for outages other than slow and frozen ones.
        """
        state: dict[str, Any] = {"seed": seed, "started_at": started_at, "slow": [_as_slow(each) for each in slow]}
        if emulation is not None:
            state["service"] = asdict(emulation)
        unfinished = self.file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(state), encoding="utf-8")
        os.replace(unfinished, self.file)  # a worker reads all of it or none


def _as_slow(outage: Outage) -> tuple[float, float, float]:
    if outage.kind not in ("slow", "frozen"):
        raise ConfigError(f"an emulated machine is slow or frozen, not {outage.kind}")
    return outage.at, outage.ends_at, math.inf if outage.kind == "frozen" else outage.factor


def make_spells(spells: Spells, machines: int, duration_s: float, seed: int) -> tuple[Outage, ...]:
    """The spells of each machine m0, m1 ... until then, in order of machine and time; the seed says all about them.

    As the simulator takes them, so that it can be told of the very same ones. Lengths and gaps are exponential; with
    `spells.by_domain` all machines are slow together.
    """
    if spells.share <= 0:
        return ()
    made = []
    gap_s = spells.mean * (1 - spells.share) / spells.share
    kind = "frozen" if spells.factor == math.inf else "slow"
    for machine in range(machines):
        rng = random.Random(f"spells {seed} {0 if spells.by_domain else machine}")
        at = 0.0 if rng.random() < spells.share else rng.expovariate(1 / gap_s)
        while at < duration_s:
            lasts = rng.expovariate(1 / spells.mean)
            made.append(Outage(f"m{machine}", at, lasts, kind, spells.factor))
            at += lasts + rng.expovariate(1 / gap_s)
    return tuple(made)


def of_machine(outages: Sequence[Outage], machine: int) -> list[Outage]:
    return [outage for outage in outages if outage.worker == f"m{machine}"]
