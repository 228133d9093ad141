"""Model archives for the fleet: reading, unpacking, wrapping and packing them. The door to this room's archive work.

Packing from files is torch-model-archiver's work, done here in a process of its own. Reading is in `mar`, wrapping in
`wrapping`. Knows files; runs nothing of what is inside them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ts_parity.describe import ProtectedModel
from ts_parity.errors import ArchiveError
from ts_parity.torchserve.mar import Archive, extract_archive, read_archive
from ts_parity.torchserve.wrapping import (
    SampleRequest,
    protection_name,
    rewrite,
    shim,
    worker_zip_bytes,
    wrap_deployed,
    wrap_parity,
)

__all__ = [
    "Archive",
    "read_archive",
    "extract_archive",
    "pack",
    "SampleRequest",
    "ProtectedModel",
    "wrap_deployed",
    "wrap_parity",
    "protection_name",
    "rewrite",
    "worker_zip_bytes",
    "shim",
]


def pack(
    out: str | Path,
    *,
    model_name: str,
    handler: str | Path,
    version: str = "1.0",
    serialized_file: str | Path | None = None,
    model_file: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
    config_file: str | Path | None = None,
    requirements_file: str | Path | None = None,
) -> Path:
    """Run torch-model-archiver. -> `out`/`model_name`.mar, replaced if it is there."""
    for extra in extra_files:
        if re.search(r"[,*?\[]", str(extra)):
            raise ArchiveError(f"torch-model-archiver would split or expand the file name {str(extra)!r}: rename it")
    options: dict[str, object] = {
        "--model-name": model_name,
        "--version": version,
        "--handler": handler,
        "--serialized-file": serialized_file,
        "--model-file": model_file,
        "--extra-files": ",".join(map(str, extra_files)) or None,
        "--config-file": config_file,
        "--requirements-file": requirements_file,
        "--export-path": out,
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    arguments = [part for option, value in options.items() if value is not None for part in (option, str(value))]
    # In a process and temporary folder of its own: the archiver deletes and makes <tmpdir>/<model name> again, so two
    # at a time with one name would mix their files.
    with tempfile.TemporaryDirectory(prefix="ts-parity-pack-") as private:
        ran = subprocess.run(
            [sys.executable, "-m", "model_archiver.model_packaging", "--force", *arguments],
            env={**os.environ, "TMPDIR": private},
            capture_output=True,
            text=True,
        )
    if ran.returncode:
        raise ArchiveError(_archiver_error(model_name, ran.stderr))
    return Path(out) / f"{model_name}.mar"


def _archiver_error(model_name: str, stderr: str) -> str:
    if "No module named" in stderr and "model_archiver" in stderr:
        return "torch-model-archiver is not installed in this Python: pip install 'ts-parity[torchserve]'"
    said = stderr.strip().splitlines()[-1:] or ["it said nothing"]
    return f"torch-model-archiver could not pack {model_name}: {said[0]}"
