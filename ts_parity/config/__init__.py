"""Settings of the proxy: each stands once, in `schema`; files, variables, flags and docs are made from that."""

from ts_parity.config.addresses import host_and_port
from ts_parity.config.changes import Changes, changes, kept_running
from ts_parity.config.documentation import settings_markdown
from ts_parity.config.flags import add_flags, add_sources, given_flags
from ts_parity.config.json_schema import json_schema
from ts_parity.config.profiles import PROFILES, profile_toml
from ts_parity.config.reading import (
    ENV_PREFIX,
    ConfigSource,
    Configuration,
    configuration,
    load_settings,
    parse_endpoint,
    parse_model,
    settings_of,
)
from ts_parity.config.removed import REMOVED
from ts_parity.config.schema import (
    AUTO,
    CODES,
    EXACT_ONLY,
    GROUPS,
    KINDS,
    MANAGED,
    OFF,
    UNIX,
    InstanceSettings,
    ModelSettings,
    Settings,
)
from ts_parity.config.show import configuration_json, configuration_table, differences

__all__ = (
    "AUTO", "CODES", "ENV_PREFIX", "EXACT_ONLY", "GROUPS", "KINDS", "MANAGED", "OFF", "PROFILES", "REMOVED", "UNIX",
    "Changes", "ConfigSource", "Configuration", "InstanceSettings", "ModelSettings", "Settings", "add_flags",
    "add_sources", "changes", "configuration", "configuration_json", "configuration_table", "differences",
    "given_flags", "host_and_port", "json_schema", "kept_running", "load_settings", "parse_endpoint", "parse_model",
    "profile_toml", "settings_markdown", "settings_of",
)  # fmt: skip
