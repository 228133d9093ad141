"""Settings of the proxy: each stands once, in `schema`; files, variables, flags and docs are made from that."""

from ts_parity.config.addresses import host_and_port
from ts_parity.config.documentation import settings_markdown
from ts_parity.config.flags import add_flags, given_flags
from ts_parity.config.reading import ENV_PREFIX, load_settings, parse_endpoint, parse_model, settings_of
from ts_parity.config.removed import REMOVED
from ts_parity.config.schema import (
    AUTO,
    CODES,
    EXACT_ONLY,
    GROUPS,
    OFF,
    UNIX,
    InstanceSettings,
    ModelSettings,
    Settings,
)

__all__ = (
    "AUTO", "CODES", "ENV_PREFIX", "EXACT_ONLY", "GROUPS", "OFF", "REMOVED", "UNIX", "InstanceSettings",
    "ModelSettings", "Settings", "add_flags", "given_flags", "host_and_port", "load_settings", "parse_endpoint",
    "parse_model", "settings_markdown", "settings_of",
)  # fmt: skip
