"""From the name of a kind to what is known of it: `open-inference` is `open_inference.BACKEND`, in the file of that
name. Only those that are asked for are imported.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from ts_parity.proxy.fleet.backends.backend import Backend


@cache
def backend_of(kind: str) -> Backend:
    """`kind`: one of `config.KINDS`."""
    backend: Backend = import_module(f"{__package__}.{kind.replace('-', '_')}").BACKEND
    return backend
