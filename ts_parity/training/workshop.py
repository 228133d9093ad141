"""The folder of unfinished work beside the one that is wanted: what an interrupted run is gone on with from.

Knows settings and folders. Knows nothing of what is made in them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ts_parity import __version__
from ts_parity.errors import Exhausted, TrainingError
from ts_parity.fingerprint import fingerprint
from ts_parity.training import TrainSettings
from ts_parity.training.bodies import RequestBody, bodies_of


@contextmanager
def workshop(settings: TrainSettings, bodies: Sequence[RequestBody]) -> Iterator[Path]:
    """The folder of unfinished work; gone when all is done, or when nothing in it is worth keeping.

    A run with other settings finds in it what these settings make no difference to.
    """
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
        print(f"interrupted; what is finished is in {work}: the same command goes on from there", file=sys.stderr)
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise Exhausted(
            f"no space left on the disk of {work}; what is finished is kept there: free some space (about twice the "
            "size of all model inputs is needed) and give the same command again"
        ) from None
    except torch.cuda.OutOfMemoryError as error:
        raise Exhausted(
            f"the GPU is out of memory ({str(error).partition('.')[0]}); what is finished is kept in {work}: end what "
            "else runs on that GPU or name another --device, and give the same command again"
        ) from None
    except Exception:
        if not (work / "seen" / "index.json").exists():
            shutil.rmtree(work, ignore_errors=True)
        else:
            print(f"what is finished is in {work}: a run with other settings goes on from there", file=sys.stderr)
        raise
    shutil.rmtree(work)


def _identity(settings: TrainSettings, bodies: Sequence[RequestBody]) -> dict[str, Any]:
    """What all unfinished work depends on. What learned weights depend on besides is in their files' names."""
    scored = [] if settings.score is None else bodies_of(settings, settings.score)
    return {
        "package": __version__,
        "archive": fingerprint(settings.archive),
        "inputs": _contents(bodies),
        "score": _contents(scored),
        "declaration": dict(settings.declaration),
    }


def _contents(bodies: Sequence[RequestBody]) -> str:
    digest = hashlib.sha256()
    for body in bodies:
        content = hashlib.sha256(body.read()).hexdigest()
        digest.update(f"{body.name}\0{body.content_type}\0{content}\0".encode("utf-8", "surrogateescape"))
    return f"{len(bodies)} bodies, {digest.hexdigest()}"


def _check_same(work: Path, wanted: dict[str, Any], force: bool) -> None:
    try:
        before = json.loads((work / "job.json").read_text(encoding="utf-8"))
    except ValueError:  # the disk was full
        before = {}
    differing = [name for name in wanted if before.get(name) != wanted[name]]
    if differing and not force:
        raise TrainingError(
            f"{work} holds unfinished work with other {' and '.join(differing)}, which is of no use here: delete that "
            "folder (--force does), or give another --out"
        )
    if differing:
        shutil.rmtree(work)
