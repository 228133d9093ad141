"""Keys in files: a file that holds nothing else, or TorchServe's key_file.json, which has one for each purpose."""

from __future__ import annotations

import json
from pathlib import Path

from ts_parity.arguments import is_key
from ts_parity.errors import ConfigError, with_article


def read_key(path: str | Path, purpose: str) -> str:
    """`purpose`, of those in a key_file.json: management, inference or API. Raise ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error}") from None
    try:
        key = str(json.loads(text)[purpose]["key"]) if text.startswith("{") else text
        if not is_key(key):
            raise ValueError
        return key
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{str(path)!r} is no key and no key_file.json with {with_article(purpose)} key") from None
