"""From the name of a kind to what is known of it: `open-inference` is `open_inference.BACKEND`, in the file of that
name. Only those that are asked for are imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from ts_parity.config import InstanceSettings, ModelSettings
from ts_parity.proxy.fleet.backends.backend import Backend


def backend_of(kind: str, models: Sequence[ModelSettings] = (), prefix: str = "") -> Backend:
    """`kind`: one of `config.KINDS`."""
    backend: Backend = import_module(f"{__package__}.{kind.replace('-', '_')}").BACKEND(models, prefix)
    return backend


def backends_of(
    instances: Sequence[InstanceSettings], models: Sequence[ModelSettings] = (), first: str = ""
) -> dict[str, Backend]:
    """Instance -> its kind's backend, in the order of the configuration. Names of models begin with their kind, so that
    two of one name do not meet; except for those of the kind `first`, which is the first one's if none is named.
    """
    kinds = [*dict.fromkeys(instance.kind for instance in instances)]
    first = first or next(iter(kinds), "")
    made = {kind: backend_of(kind, models, f"{kind}:" if kind != first else "") for kind in kinds}
    return {instance.name: made[instance.kind] for instance in instances}
