"""Keys in files, as an operator or TorchServe writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ts_parity.errors import ConfigError
from ts_parity.keys import read_key

KEYS = '{"management": {"key": "abc", "expiration time": "soon"}, "inference": {"key": "def"}, "API": {"key": "ghi"}}'


@pytest.mark.parametrize(
    ("text", "key"), [("plain", "plain"), (" plain\n", "plain"), (KEYS, "abc"), ("\n" + KEYS, "abc")]
)
def test_a_file_is_a_key_or_torchserves_own(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "key").write_text(text)
    assert read_key(tmp_path / "key", "management") == key


@pytest.mark.parametrize(
    "text", ["", "{}", '{"management": "abc"}', '{"management": {"key": "a\\nb"}}', "two\nlines", "{" * 9999]
)
def test_what_holds_no_key_says_so_and_not_what_it_holds(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigError, match=r"key' is no key and no key_file.json with a management key") as told:
        read_key(tmp_path / "key", "management")
    assert "abc" not in str(told.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none.*No such file"):
        read_key(tmp_path / "none", "inference")
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        read_key(tmp_path / "key", "inference")
