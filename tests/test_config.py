"""Settings: where they come from, who wins, and how mistakes are told."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ts_parity.cli import main
from ts_parity.config import (
    GROUPS,
    REMOVED,
    InstanceSettings,
    ModelSettings,
    Settings,
    add_flags,
    given_flags,
    load_settings,
    parse_endpoint,
    parse_model,
    settings_markdown,
)
from ts_parity.engine import Policy
from ts_parity.errors import ConfigError

ENDPOINT = ("http://h:8080",)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "proxy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_but_endpoints_is_enough():
    settings = load_settings(endpoints=ENDPOINT)
    assert settings == Settings(instances=(InstanceSettings("http://h:8080", "http://h:8081", "h:8080"),))


def test_file_then_environment_then_flags(tmp_path: Path):
    path = write(tmp_path, 'deadline_s = 1\nport = 1\nhost = "a"\n[[instance]]\ninference = "http://h:8080"\n')
    settings = load_settings(path, {"TS_PARITY_PORT": "2", "TS_PARITY_HOST": "b", "OTHER": "x"}, {"host": "c"})
    assert (settings.policy.deadline_s, settings.port, settings.host) == (1.0, 2, "c")


def test_instances_of_the_file(tmp_path: Path):
    path = write(
        tmp_path,
        """
        [[instance]]
        inference = "http://a:8080/"
        management = "https://b:9"
        domain = "rack 1"
        token = "t"
        places = 3
        [[instance]]
        inference = "http://[::1]:8080"
        """,
    )
    first, second = load_settings(path).instances
    assert first == InstanceSettings("http://a:8080", "https://b:9", "rack 1", token="t", places=3)
    assert (second.management, second.name) == ("http://[::1]:8081", "[::1]:8080")


def test_endpoints_replace_the_files_instances(tmp_path: Path):
    path = write(tmp_path, '[[instance]]\ninference = "http://a:1"\n')
    assert load_settings(path, endpoints=ENDPOINT).instances[0].name == "h:8080"
    from_environment = load_settings(path, {"TS_PARITY_ENDPOINTS": "http://b:1 http://c:1,domain=d"})
    assert [i.domain for i in from_environment.instances] == ["b:1", "d"]


def test_the_command_line_form_of_an_instance():
    given = parse_endpoint("http://a:1,management=http://a:7,domain=z1,token=t,management_token=m,places=4")
    assert given == InstanceSettings("http://a:1", "http://a:7", "z1", "t", "", "m", "", 4)


def test_instances_behind_tls_and_unix_sockets():
    """The scheme goes from the one address to the other; a socket is called by its path."""
    secure = parse_endpoint("https://a:1,tls_ca=ca.pem,tls_verify=FALSE,tls_certificate=c.pem,tls_key=k.pem")
    assert (secure.management, secure.tls_verify, secure.tls_key) == ("https://a:2", False, "k.pem")
    local = parse_endpoint("unix:/run/a b.sock,management=unix:///run/m.sock")
    assert local == InstanceSettings("unix:/run/a b.sock", "unix:/run/m.sock", "/run/a b.sock")
    assert parse_endpoint("unix:/a,management=https://h:1,tls_ca=ca.pem").tls_ca == "ca.pem"


def test_truths(tmp_path: Path):
    path = write(tmp_path, 'vouch = true\n[[instance]]\ninference = "https://a:1"\ntls_verify = false\n')
    settings = load_settings(path)
    assert (settings.vouch, settings.instances[0].tls_verify) == (True, False)
    assert load_settings(path, flags={"vouch": "false"}).vouch is False


def test_auto_and_lists():
    settings = load_settings(
        flags={"reconstruct_after_s": "auto", "deadline_s": "0.5", "group_by": "X-Top-K, x-lang"}, endpoints=ENDPOINT
    )
    assert (settings.policy.reconstruct_after_s, settings.policy.deadline_s) == (None, 0.5)
    assert settings.group_by == ("x-top-k", "x-lang")


def test_flags_that_are_not_given_win_over_nothing():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert given_flags(parser.parse_args(["--deadline-s", "2", "--max-body-bytes=7"])) == {
        "deadline_s": "2",
        "max_body_bytes": "7",
    }
    assert "deadline-s" in parser.format_help()


MISTAKES = [
    ({"flags": {"port": "http"}}, r"--port must be a whole number of at least 0 and below 65536, not 'http'"),
    ({"flags": {"port": "65536"}}, r"--port .*not '65536'"),
    ({"flags": {"max_waiting": "0"}}, r"--max-waiting must be a whole number of at least 1, not '0'"),
    ({"flags": {"processes": "0"}}, r"--processes must be a whole number of at least 1, not '0'"),
    ({"flags": {"max_waiting": "1.5"}}, r"not '1.5'"),
    ({"flags": {"deadline_s": "nan"}}, r"--deadline-s must be a number of at least 0.001, not 'nan'"),
    ({"flags": {"deadline_s": "inf"}}, r"not 'inf'"),
    ({"flags": {"deadline_s": "1e300"}}, r"--deadline-s must be a number of at least 0.001 and below 1e\+15, not"),
    ({"flags": {"max_waiting": "9" * 400}}, r"--max-waiting must be a whole number of at least 1 and below 1e\+15"),
    (
        {"flags": {"reconstruct_after_s": "9" * 400}},
        r"--reconstruct-after-s must be a number of at least 0.*, or 'auto', not",
    ),
    ({"flags": {"reconstruct_after_s": "x"}}, r"at least 0, or 'auto', not 'x'"),
    (
        {"environ": {"TS_PARITY_DEADLINE": "1"}},
        r"TS_PARITY_DEADLINE: unknown setting 'deadline'; did you mean 'deadline_s'",
    ),
    ({"environ": {"TS_PARITY_PORT": "x"}}, r"^port must be"),
    ({"endpoints": ["h:8080"]}, r"--endpoint 'h:8080': inference must be like http://HOST:PORT or unix:/PATH, not"),
    ({"endpoints": ["http://h:x"]}, r"is not an address"),
    ({"endpoints": ["http://h:1/v1"]}, r"has a path"),
    ({"endpoints": ["http://h:1,token"]}, r"'token' is not of the form key=value"),
    ({"endpoints": ["http://h"]}, r"give management=URL too, or a port"),
    ({"endpoints": ["unix:/a"]}, r"give management=ADDRESS too: nothing follows from 'unix:/a'"),
    (
        {"endpoints": ["unix:a,management=http://h:1"]},
        r"inference must be the absolute path of a socket, .* not 'unix:a'",
    ),
    ({"endpoints": ["unix:/a/,management=http://h:1"]}, r"not 'unix:/a/'"),
    ({"endpoints": ["unix:/" + 107 * "a" + ",management=http://h:1"]}, r"has room for 107 bytes"),
    ({"endpoints": ["unix:/a,management=unix:/b", "unix:///a,management=unix:/c"]}, r"instance /a is given twice"),
    ({"endpoints": ["http://h:1,tls_ca=x"]}, r"tls_ca is of no use: neither address is https"),
    ({"endpoints": ["https://h:1,tls_key=x"]}, r"--endpoint .*: tls_key needs tls_certificate too"),
    ({"endpoints": ["https://h:1,tls_verify=no"]}, r"tls_verify must be true or false, not 'no'"),
    ({"flags": {"tls_certificate": "x"}}, r"^tls_certificate needs tls_key too"),
    ({"flags": {"vouch": "1"}}, r"--vouch must be true or false, not '1'"),
    ({"endpoints": ["http://h:1,tokn=x"]}, r"unknown setting 'tokn'; did you mean 'token'"),
    ({"endpoints": ["http://h:1,kind=triton"]}, r"kind must be .*, not 'triton'; did you mean 'open-inference'\?"),
    ({"endpoints": ["http://h:1,kind=OpenVINO"]}, r"did you mean 'open-inference'\?"),
    ({"endpoints": ["http://h:1", "http://h:1/"]}, r"instance h:1 is given twice"),
    ({"endpoints": ["http://h:1", "http://H:01"]}, r"instance h:1 is given twice"),
    ({"endpoints": []}, r"no instances: give --endpoint"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes_are_told_with_what_is_allowed(given: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        load_settings(**{"endpoints": ENDPOINT, **given})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = ", "is not a TOML file"),
        ("porte = 1", "unknown setting 'porte'; did you mean 'port'"),
        ('instance = "x"', r"instances are tables \[\[instance\]\]"),
        ("[[instance]]\nmanagement = 'http://h:1'", r"\[\[instance\]\] 1: inference, .* is missing"),
        ("[[instance]]\ninference = 5", "must be a text, not 5"),
        ("port = true", "not True"),
        ("[[model]]\nname = 'm/1.0'", "a model's name has no slash; write m,version=1.0"),
        ("[[model]]\nname = 'm'\ncost = 0.1", "model m: exact, cost and agreement say something of a student; name it"),
        ("[[model]]\nname = 'm'\nstudent = 's'", "model m: TorchServe's archives tell their students"),
        ("[[model]]\nname = 'm'\nstudent = 'http://h:9/s'", "list the instance of its student, h:9, as"),
        ("[[model]]\nname = 'm'\ncompare = ['output']", "compare takes JSON pointers, such as /output, not 'output'"),
        (
            "[[instance]]\ninference = 'http://h:1'\nkind = 'rest'\nplaces = 1\nmanagement = 'http://h:2'",
            "management is TorchServe's; an instance of kind rest has none",
        ),
        ("[[instance]]\ninference = 'http://me:pass@h:1'", "inference has a name or a password before its @"),
        ("deadline_s = nan", r"proxy.toml: deadline_s must be a number of at least 0.001, not nan"),
        ("deadline_s = -inf", "not -inf"),
        (f"deadline_s = 1{400 * '0'}", "deadline_s must be a number of at least 0.001, not 1000"),
        (f"max_waiting = 1{400 * '0'}", r"max_waiting must be a whole number of at least 1 and below 1e\+15, not 1000"),
        ("group_by = 5", "must be a list of names, not 5"),
        ("[[instance]]\ninference = 'http://h:1'\nplaces = 0", "places must be a whole number of at least 1"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_settings(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_settings(tmp_path / "no.toml")


def test_variables_that_kubernetes_makes_for_a_service_are_not_ours():
    environ = {
        "TS_PARITY_PORT": "tcp://10.0.0.1:8080",
        "TS_PARITY_SERVICE_HOST": "10.0.0.1",
        "TS_PARITY_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings(environ=environ, endpoints=ENDPOINT).port == 8080


@pytest.mark.parametrize("text", ["http://h\n:1", "http://h:1\t", "http://h :1", "unix:/a\nb,management=http://h:1"])
def test_an_address_holds_nothing_that_its_parser_would_drop(text: str):
    with pytest.raises(ConfigError, match="it holds blanks, or what cannot be printed"):
        load_settings(endpoints=[text])


def test_a_key_file_is_looked_at_when_it_is_there(tmp_path: Path):
    """TorchServe writes it when it starts, so one that is not there yet may come."""
    file = tmp_path / "key_file.json"
    endpoint = f"http://h:1,token_file={file},management_token_file={file}"
    assert load_settings(endpoints=[endpoint]).instances[0].token_file == str(file)
    for text in ("", "{}", "two\nlines", '{"inference": 5}', '{"inference": ' + "[" * 100_000, "\x00"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"instance h:1: token_file: .* is no key and no key_file\.json with a"):
            load_settings(endpoints=[endpoint])
    file.write_text(json.dumps({"inference": {"key": "i"}}))
    with pytest.raises(ConfigError, match=r"instance h:1: management_token_file: .* with a management key"):
        load_settings(endpoints=[endpoint])
    with pytest.raises(ConfigError, match=r"token_file: .* can never be: there is no folder"):
        load_settings(endpoints=[f"http://h:1,token_file={tmp_path}/no/key_file.json"])


def test_keys_come_from_text_files_and_from_torchserves_own(tmp_path: Path):
    plain, own = tmp_path / "token", tmp_path / "key_file.json"
    plain.write_text("secret\n")
    own.write_text(json.dumps({kind: {"key": kind[:3]} for kind in ("management", "inference", "API")}))
    assert InstanceSettings("http://h", token_file=str(plain)).inference_token() == "secret"
    instance = InstanceSettings("http://h", token_file=str(own), management_token_file=str(own))
    assert (instance.inference_token(), instance.management_key()) == ("inf", "man")
    own.write_text("{}")
    with pytest.raises(ConfigError, match=r"no key_file\.json with a management key"):
        instance.management_key()
    with pytest.raises(ConfigError, match="token_file: cannot read"):
        InstanceSettings("http://h", token_file=str(tmp_path / "no")).inference_token()


def test_a_default_answer_that_cannot_be_read():
    assert Settings().read_default_answer() is None
    with pytest.raises(ConfigError, match="default_answer: cannot read"):
        Settings(default_answer="/no/such/file").read_default_answer()


def test_a_setting_exists_once():
    """Whatever can be set has one field, in one place, and nothing else of that name stands beside it."""
    items = [*fields(Settings), *fields(Policy)]
    names = [item.name for item in items if "text" in item.metadata]
    assert len(names) == len({*names})
    assert {item.name for item in fields(Settings)} - {*names} == {"instances", "models", "policy"}
    assert sorted(names) == sorted(item.name for listed in GROUPS.values() for item in listed)
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert sorted(names) == sorted(action.dest for action in parser._actions if action.dest not in ("help", *REMOVED))


def test_twelve_settings_say_what_the_policy_is():
    """Each with two users who want it otherwise; `repeatable` is the twelfth, of a model."""
    assert sum(title.startswith("policy") for title in GROUPS) == 1
    assert [item.name for item in GROUPS["policy"]] == [
        "protect", "group_by", "extra_work", "differing", "reconstruct_after_s", "retry_ratio", "deadline_s",
        "target_s", "max_waiting", "max_wait_s", "default_answer",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "why"), REMOVED.items())
def test_a_setting_of_earlier_versions_is_refused_with_what_replaces_it(name, why, tmp_path, capsys):
    assert name not in {item.name for items in GROUPS.values() for item in items}
    flag = f"--{name.replace('_', '-')}"
    for words in ([flag, "1"], [f"{flag}=1"], [flag]):
        assert main(["serve", "--endpoint", "http://h:1", *words]) == 2
        assert capsys.readouterr().err == f"ts-parity: {flag} is no flag any more: {why}\n"
    with pytest.raises(ConfigError, match=re.escape(f"proxy.toml: {name} is no setting any more: {why}")):
        load_settings(write(tmp_path, f"{name} = 1"))
    variable = f"TS_PARITY_{name.upper()}"
    with pytest.raises(ConfigError, match=re.escape(f"environment variable {variable}: {name} is no setting any more")):
        load_settings(environ={variable: "1"}, endpoints=ENDPOINT)


def test_what_replaces_a_setting_is_there():
    """Names in the table of former settings are settings, or values of them."""
    known = {item.name for items in GROUPS.values() for item in items}
    told = {word for why in REMOVED.values() for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", why)}
    assert told <= known | {"repeatable"}


def test_no_secret_is_in_the_repr_of_settings():
    """Tracebacks and logs show those."""
    secrets = {item.name: "hunter2" for listed in GROUPS.values() for item in listed if item.metadata.get("secret")}
    assert {"secret", "admin_token"} <= set(secrets)
    instance = InstanceSettings("http://h:1", token="hunter2", management_token="hunter2")
    assert "hunter2" not in repr(Settings(**secrets, instances=(instance,)))


def test_a_policy_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(Policy(deadline_s=2.0))) == Policy(deadline_s=2.0)


def test_the_documentation_is_up_to_date():
    written = (Path(__file__).parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == settings_markdown(), "run: python -m ts_parity.config > docs/settings.md"


def test_what_must_be_said_of_models(tmp_path: Path):
    path = tmp_path / "proxy.toml"
    path.write_text(
        '[[instance]]\ninference = "http://h:8080"\n[[model]]\nname = "chat"\nversion = "2.0"\nrepeatable = false\n'
    )
    told = ModelSettings("chat", "2.0", False)
    assert load_settings(path).models == (told,)
    assert load_settings(path, models=["b,repeatable=false"]).models == (ModelSettings("b", repeatable=False),)
    assert load_settings(path, {"TS_PARITY_MODELS": "chat,version=2.0,repeatable=false"}).models == (told,)
    for wrong in ("", "chat,repeatable", "chat,repeatable=perhaps", "chat,repeated=false"):
        with pytest.raises(ConfigError, match="--model"):
            parse_model(wrong)
    path.write_text("model = 3\n")
    with pytest.raises(ConfigError, match=r"models are tables \[\[model\]\]"):
        load_settings(path)


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("protect", "summ", "must be auto, exact-only, off, sum, concat or student, not 'summ'; did you mean 'sum'"),
        ("protect", "", "--protect must be auto, exact-only"),
        ("deadline_s", "0", "--deadline-s must be a number of at least 0.001, not '0'"),
        ("deadline_s", "-1", "--deadline-s must be a number of at least 0.001"),
        ("deadline_s", "nan", "--deadline-s must be a number"),
        ("deadline_s", "inf", "--deadline-s must be a number"),
    ],
)
def test_what_no_proxy_could_use_is_refused_with_what_is_allowed(name: str, given: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(flags={name: given}, endpoints=ENDPOINT)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("serve", "--extra-wrok", "0.1"), "; did you mean --extra-work?"),
        (("serve", "--extra-wrok=0.1"), "; did you mean --extra-work?"),
        (("status", "--jsn"), "; did you mean --json?"),
        (("drain", "--extra-work", "1"), ""),
        (("serve", "--port", "1", "more"), ""),
    ],
)
def test_a_flag_that_is_none_gets_the_suggestion_that_a_file_gets(
    words: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"{hint}\n")
    assert bool(hint) is ("did you mean" in said)
