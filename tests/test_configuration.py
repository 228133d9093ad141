"""`ts-parity config`: what is wrong with a file, where values came from, its schema, and files to begin with."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from ts_parity.cli import main, parsed
from ts_parity.config import GROUPS, PROFILES, Settings, files, json_schema, load_settings, profile_toml
from ts_parity.config.files import TomlFile
from ts_parity.config.schema import FIELDS

FLEET = """\
# A fleet.
port = 1
"deadline_s" = 2
group_by = [
    "x-a",  # port = 3
    "x-b",
]
secret = "file-secret"

[[instance]]
inference = "http://a:8080"
token = "a-token"
[[instance]]  # the second

inference = "http://b:8080"
domain = '''
rack
port = 4'''
[[model]]
name = "m"
repeatable = false
"""
NO_SECRETS = ("file-secret", "a-token", "env-secret", "flag-token", "m-key")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return path


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "SECRET", "ENDPOINTS", "MODELS", "ADMIN_TOKEN"):
        monkeypatch.delenv(f"TS_PARITY_{name}", raising=False)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["config", "show", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_value_with_where_it_came_from(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TS_PARITY_HOST", "::1")
    monkeypatch.setenv("TS_PARITY_PORT", "7")
    given = shown(capsys, "--config", str(file), "--port", "8", "--max-waiting=5")
    assert [*given["settings"]] == [item.name for items in GROUPS.values() for item in items]
    came = {name: (entry["value"], *entry["origin"].values()) for name, entry in given["settings"].items()}
    assert came["port"] == (8, "flag", "--port")
    assert came["max_waiting"] == (5, "flag", "--max-waiting")
    assert came["host"] == ("::1", "environment", "TS_PARITY_HOST")
    assert came["deadline_s"] == (2.0, "file", f"{file}:3")
    assert came["group_by"] == (["x-a", "x-b"], "file", f"{file}:4")
    assert came["reconstruct_after_s"] == (None, "default", "default")
    first, second = given["instances"]
    assert first["inference"]["origin"]["where"] == f"{file}:11"
    assert first["management"]["value"] == "http://a:8081"
    assert first["management"]["origin"]["kind"] == "default"
    assert [second[key]["origin"]["where"] for key in ("inference", "domain")] == [f"{file}:15", f"{file}:16"]
    assert given["models"][0]["repeatable"]["origin"]["where"] == f"{file}:21"


def test_instances_of_a_later_source_replace_the_others(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TS_PARITY_ENDPOINTS", "http://c:1,domain=d")
    (only,) = shown(capsys, "--config", str(file))["instances"]
    assert only["domain"]["origin"] == {"kind": "environment", "where": "TS_PARITY_ENDPOINTS"}
    (only,) = shown(capsys, "--config", str(file), "--endpoint", "http://e:1")["instances"]
    assert only["inference"] == {
        "value": "http://e:1", "default": None, "unit": "", "origin": {"kind": "flag", "where": "--endpoint"},
    }  # fmt: skip


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_secret_is_shown(
    form: tuple[str, ...], file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TS_PARITY_ADMIN_TOKEN", "env-secret")
    for more in ([], ["--endpoint", "http://h:1,token=flag-token,management_token=m-key"]):
        assert main(["config", "show", "--config", str(file), *form, *more]) == 0
        said = capsys.readouterr()
        assert not any(secret in said.out + said.err for secret in NO_SECRETS)
        assert said.out.count("(set, not shown)") == (3 if not more else 4)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://h:1,token=flag-token,places=0",
        "http://h:1,token=flag-token,colour=red",
        "http://h:1,token=x,flag-token",  # a key with a comma in it
        "http://h:1/v2,token=flag-token",
        "http://h:1,token=flag-tokenß",
        "http://:flag-token@h:1",
        "http://user:flag-token@h:1",
    ],
)
def test_no_key_is_in_a_message(endpoint: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--endpoint", endpoint]) == 2
    assert "flag-token" not in capsys.readouterr().err
    file.write_text('secret = ["file-secret"]')
    assert main(["config", "show", "--config", str(file)]) == 2
    assert "file-secret" not in capsys.readouterr().err


def test_the_table_has_each_setting_on_a_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--config", str(file)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["deadline_s", "2.0", f"{file}:3"] in lines
    assert ["max_waiting", "1000", "default"] in lines
    assert {*FIELDS} <= {line[0] for line in lines}


def test_everything_that_is_wrong_is_said_at_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(
        'port = "x"\nporte = 1\nk = 2\n[[instance]]\nplaces = 0\n[[instance]]\ninference = "h"\n'
        '[[model]]\nname = "a/b"\n'
    )
    assert main(["config", "check", str(file), "--deadline-s", "0"]) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert not said.out
    assert len(lines) == 7
    assert all(line.startswith("ts-parity: ") for line in lines)
    in_file = sorted(re.findall(r"^ts-parity: (\S+): .*\(at line (\d+)\)$", said.err, re.MULTILINE))
    assert in_file == [(str(file), line) for line in "123468"]
    assert main(["config", "check", str(file), "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["file"], answer["good"], len(answer["problems"])) == (str(file), False, 6)


def test_values_that_contradict_each_other_are_all_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('peers = ["http://p:1"]\ntls_key = "k"\n')
    assert main(["config", "check", str(file)]) == 2
    said = capsys.readouterr().err
    assert [said.count(word) for word in ("peers needs", "tls_key needs", "no instances")] == [1, 1, 1]


def test_files_that_settings_name_are_read(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = file.parent / "gone"
    endpoint = f'[[instance]]\ninference = "https://a:8080"\ntls_ca = "{gone}/ca.pem"\n'
    file.write_text(
        f'default_answer = "{gone}"\ntls_certificate = "{gone}"\ntls_key = "{gone}"\naccess_log = "{gone}/log"\n'
        f"{endpoint}"
    )
    assert main(["config", "check", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 4
    assert all(name in said for name in ("default_answer:", "tls_certificate:", "tls_ca:", "access_log:"))
    assert not gone.exists()


def test_a_good_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: good, with 2 instances\n"
    assert main(["config", "check", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(file), "good": True, "problems": []}


def test_a_command_line_of_serve_can_be_asked_about(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--endpoint", "http://h:1", "--port", "8"]) == 0
    assert capsys.readouterr().out == "settings: good, with 1 instances\n"
    assert shown(capsys, str(file), "--port", "8") == shown(capsys, "--config", str(file), "--port", "8")


def test_a_long_list_is_not_parsed_again_for_each_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.toml"
    tables = "".join(f'  {{inference = "http://h:{n}"}},\n' for n in range(1, 200))
    path.write_text(f"instance = [\n{tables}]\nport = 1\n")
    parsed: list[str] = []
    monkeypatch.setattr(files, "_loads", lambda text, loads=files._loads: parsed.append(text) or loads(text))
    assert TomlFile(path).line("port") == 202
    assert len(parsed) < 10


def test_lines_of_a_file_that_writes_its_tables_inline(tmp_path: Path) -> None:
    path = tmp_path / "inline.toml"
    path.write_text('\r\nport = 1\r\n\r\ninstance = [\r\n  {inference = "http://a:1"},\r\n]\r\n', newline="")
    file = TomlFile(path)
    assert (file.line("port"), file.line_in_table("instance", 1, "inference"), file.line("host")) == (2, 4, 0)


# ---- the schema ------------------------------------------------------------------------------------------------------


def fits(value: Any, schema: dict[str, Any]) -> bool:
    told = ("$schema", "title", "description", "default", "writeOnly")
    return all(_meets(value, word, limit, schema) for word, limit in schema.items() if word not in told)


def _meets(value: Any, word: str, limit: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON Schema that ours is written in; another keyword is an error here."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match word:
        case "type":
            kinds = {"object": dict, "array": list, "string": str, "boolean": bool}
            if limit in kinds:
                return isinstance(value, kinds[limit])
            return number and (limit == "number" or value == int(value))
        case "minimum":
            return not number or value >= limit
        case "exclusiveMaximum":
            return not number or value < limit
        case "minLength":
            return not isinstance(value, str) or len(value) >= limit
        case "enum":
            return value in limit
        case "const":
            return bool(value == limit)
        case "anyOf":
            return any(fits(value, each) for each in limit)
        case "items":
            return not isinstance(value, list) or all(fits(each, limit) for each in value)
        case "required":
            return not isinstance(value, dict) or {*limit} <= value.keys()
        case "additionalProperties":
            return not isinstance(value, dict) or value.keys() <= schema["properties"].keys()
        case "properties":
            return not isinstance(value, dict) or all(fits(value[name], limit[name]) for name in value.keys() & limit)
    raise AssertionError(f"an unknown keyword: {word}")


TRIED = [-1, 0, 0.5, 1, 2, 65535, 65536, 10**15, True, "", "auto", "x", "student", "exact", [], ["x-a"], [1], {}]


@pytest.mark.parametrize("name", FIELDS)
def test_the_schema_takes_what_the_proxy_takes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for two lenient forms: a text for a number or a list, and forms of addresses and names."""
    file = tmp_path / "one.toml"
    file.touch()
    schema, args = json_schema(), parsed(["config", "check", str(file)])
    for value in TRIED:
        file.write_text(f'{name} = {json.dumps(value)}\n[[instance]]\ninference = "http://h:1"\n')
        in_schema = fits({name: value, "instance": [{"inference": "http://h:1"}]}, schema)
        args.run(args)
        said = capsys.readouterr().err
        refused = f"{file}: {name} must be" in said or f"{file}: {name}: " in said
        if isinstance(value, str) and isinstance(FIELDS[name].default, tuple):
            continue
        if name == "peers" and value == ["x-a"]:
            continue
        assert in_schema is not refused, (value, said)


def test_the_schema_knows_what_is_required_and_nothing_else() -> None:
    schema = json_schema()
    instance = {"inference": "http://h:1", "places": "auto", "tls_verify": False}
    assert fits({"instance": [instance], "model": [{"name": "m"}]}, schema)
    for wrong in (
        {"porte": 1},
        {"instance": [{}]},
        {"instance": instance},
        {"instance": [{**instance, "places": 0}]},
        {"instance": [{**instance, "colour": "red"}]},
        {"model": [{"name": ""}]},
    ):
        assert not fits(wrong, schema), wrong


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(json_schema()))


# ---- files to begin with ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_good_and_fits_the_schema(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "init", "--profile", profile]) == 0
    file = tmp_path / "made.toml"
    file.write_text(capsys.readouterr().out)
    assert main(["config", "check", str(file)]) == 0
    assert fits(TomlFile(file).data, json_schema())
    given = {name: getattr(load_settings(file), name, None) for name in PROFILES[profile].given}
    secret = given.pop("secret", None)
    assert secret is None or len(secret) >= 32
    assert max(map(len, file.read_text().splitlines())) <= 120


@pytest.mark.parametrize("profile", PROFILES)
def test_comments_are_settings_with_their_defaults(profile: str, tmp_path: Path) -> None:
    """Taking the `#` away changes nothing."""
    made = profile_toml(profile, "s" * 32)
    file = tmp_path / "made.toml"
    file.write_text(made)
    as_made = load_settings(file)
    before_models = made.partition("# [[model]]")[0]
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", before_models, flags=re.MULTILINE))
    assert load_settings(file) == as_made
    assert {*FIELDS} <= {*TomlFile(file).data}
    file.write_text(re.sub(r"^# (\w+ = |\[\[)", r"\1", made, flags=re.MULTILINE))
    assert [model.name for model in load_settings(file).models] == ["as-clients-call-it"]


def test_plain_changes_no_setting(tmp_path: Path) -> None:
    file = tmp_path / "made.toml"
    file.write_text(profile_toml("plain", ""))
    settings = load_settings(file)
    assert settings == Settings(instances=settings.instances)
    assert len(settings.instances) > 1


def test_each_secret_is_another_and_the_file_is_its_owners(tmp_path: Path) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    for file in (one, other):
        assert main(["config", "init", "--profile", "proxies", "--out", str(file)]) == 0
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_settings(one).secret != load_settings(other).secret
    assert main(["config", "init", "--out", str(one)]) == 2
    assert main(["config", "init", "--out", str(one), "--force"]) == 0
    assert load_settings(one).secret == ""
