"""The folder of unfinished work beside the one that is wanted: what an interrupted run is gone on with from.

Knows settings and folders. Knows nothing of what is made in them.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from ts_parity import __version__
from ts_parity.errors import Exhausted, TrainingError
from ts_parity.torchserve.archive import fingerprint
from ts_parity.training import TrainSettings
from ts_parity.training.bodies import Body


@contextmanager
def workshop(settings: TrainSettings, bodies: Sequence[Body]) -> Iterator[Path]:
    """The folder of unfinished work; gone when all is done, or when nothing in it is worth keeping."""
    work = settings.out.with_name(f"{settings.out.name}.unfinished")
    wanted = _identity(settings, bodies)
    if (work / "job.json").exists():
        _check_same(work, wanted, settings.force)
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / "job.json").write_text(json.dumps(wanted, indent=2) + "\n")
        shutil.rmtree(work / "made", ignore_errors=True)
        (work / "made").mkdir()
        yield work
    except KeyboardInterrupt:
        print(f"interrupted; what is finished is in {work}, the same command goes on from there", file=sys.stderr)
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise Exhausted(
            f"no space left on the disk of {work}; what is finished is kept there: free some space (about twice the "
            "size of all model inputs is needed) and give the same command again"
        ) from None
    except Exception:
        if not (work / "seen" / "index.json").exists():
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)


def _identity(settings: TrainSettings, bodies: Sequence[Body]) -> dict[str, Any]:
    """What must be the same for unfinished work to be of use."""
    told = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in ("progress", "force", "out")}
    told |= {"archive": fingerprint(settings.archive), "bodies": len(bodies), "package": __version__}
    identity: dict[str, Any] = json.loads(json.dumps(told, default=str))
    return identity


def _check_same(work: Path, wanted: dict[str, Any], force: bool) -> None:
    before = json.loads((work / "job.json").read_text())
    differing = [name for name in wanted if before.get(name) != wanted[name]]
    if differing and not force:
        was = ", ".join(f"{name} was {before.get(name)}" for name in differing)
        raise TrainingError(
            f"{work} holds an interrupted run with other settings ({was}); give those to go on with it, or --force to "
            "throw it away"
        )
    if differing:
        shutil.rmtree(work)
