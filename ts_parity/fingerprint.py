"""The fingerprint of a file of weights: sha256 of its bytes.

The worker publishes that of the weights it has loaded, and an archive knows that of the weights it was made for.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO

_BLOCK = 1 << 20


def fingerprint(file: Path | IO[bytes]) -> str:
    """`sha256:...` of a file, or of what is left in an open one."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return fingerprint(opened)
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return f"sha256:{digest.hexdigest()}"
