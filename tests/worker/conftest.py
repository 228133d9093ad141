"""`serve(handler, section)` -> a worker in this process; all are closed at the end of the test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.serving import InProcess, make_folder
from ts_parity.errors import ConfigError
from ts_parity.worker.entry import self_test
from ts_parity.worker.selftest_process import verdict_file, write_verdict


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., InProcess]]:
    opened: list[InProcess] = []
    numbers = itertools.count()

    def start(handler: str, section: dict[str, Any] | None = None, **more: Any) -> InProcess:
        while opened:  # one at a time: handlers share module names
            opened.pop().close()
        folder = make_folder(tmp_path / f"archive{next(numbers)}", handler, section, **more)
        if section and section.get("samples"):
            # A worker tests them in a process of its own, which takes seconds; what it does is done here beforehand.
            with contextlib.suppress(ConfigError):
                write_verdict(self_test(folder, section.get("role", "deployed")), verdict_file(folder, None))
        opened.append(InProcess(folder))
        return opened[-1]

    yield start
    while opened:
        opened.pop().close()
