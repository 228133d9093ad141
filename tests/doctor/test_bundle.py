"""No secret leaves in a bundle, whatever it is in."""

from __future__ import annotations

from pathlib import Path

from ts_parity.config import parse_endpoint, settings_of
from ts_parity.doctor.bundle import secrets, shown, without


def test_secrets_are_those_of_settings_and_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("in-a-file\n")
    text = f"http://a:8080,token=t1,management_token_file={tmp_path / 'key'}"
    settings = settings_of({"instances": (parse_endpoint(text),), "secret": "s1", "admin_token": "s2"})
    assert secrets(settings) == {"t1", "in-a-file", "s1", "s2"}
    told = shown(settings)
    assert (told["secret"], told["admin_token"], told["instances"][0]["token"]) == ("[given]",) * 3
    assert told["instances"][0]["management_token"] == ""
    assert told["policy"]["extra_work"] == settings.policy.extra_work


def test_a_secret_is_replaced_as_it_is_and_as_json_has_it() -> None:
    text = r'said "ab\"c" and ab"c, ab'
    assert without(text, {'ab"c', "ab"}) == 'said "[removed]" and [removed], [removed]'
