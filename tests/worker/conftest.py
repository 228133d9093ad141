"""`serve(handler, section)` -> a worker in this process; all are closed at the end of the test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.serving import InProcess, make_folder


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., InProcess]]:
    opened: list[InProcess] = []
    numbers = itertools.count()

    def start(handler: str, section: dict[str, Any] | None = None, **more: Any) -> InProcess:
        while opened:  # one at a time: handlers share module names
            opened.pop().close()
        opened.append(InProcess(make_folder(tmp_path / f"archive{next(numbers)}", handler, section, **more)))
        return opened[-1]

    yield start
    while opened:
        opened.pop().close()
