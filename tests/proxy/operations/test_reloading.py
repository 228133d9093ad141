"""A running proxy reads its configuration again: all of it takes effect or nothing does, and no query is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.proxy.authority import Authority
from tests.proxy.conftest import PATIENCE_S, Client, Raw, nothing_left, until
from tests.proxy.test_app import JSON
from ts_parity.cli import main
from ts_parity.config import ConfigSource
from ts_parity.engine import scheduler
from ts_parity.proxy.app import Proxy
from ts_parity.proxy.operations.processes import Supervisor
from ts_parity.testing import Canned, FakeModel, FakeTorchServe

BODY = b"[1, 2]"
ANSWER = [5.0, 11.0]
FLAGS = {
    "port": "0",
    "admin_port": "0",
    "discovery_interval_s": "60",
    "describe_timeout_s": str(PATIENCE_S),
    "connect_timeout_s": str(PATIENCE_S),
    "drain_s": str(PATIENCE_S),
}


class Running:
    """A proxy or several processes, and the file that they read."""

    def __init__(self, running: Proxy | Supervisor, file: Path) -> None:
        self.running = running
        self.file = file
        self.client = Client(running.url)
        self.admin = Client(running.admin_url)

    def write(self, *instances: FakeTorchServe, more: str = "", **settings: Any) -> None:
        self.file.write_text(toml(*instances, more=more, **settings), encoding="utf-8")

    async def reload(self, *headers: tuple[str, str]) -> Raw:
        return await self.admin.post("/reload", b"", headers or JSON)

    async def reloaded(self) -> Any:
        answer = await self.reload()
        assert answer.status == 200, answer.body
        return answer.json()

    async def post(self) -> Raw:
        return await self.client.post("/predictions/linear", BODY)

    async def status(self) -> Any:
        return (await self.admin.get("/status")).json()

    async def metric(self, line: str) -> float:
        text = (await self.admin.get("/metrics")).body.decode()
        return next(float(each.removeprefix(f"{line} ")) for each in text.splitlines() if each.startswith(f"{line} "))


def toml(*instances: FakeTorchServe, more: str = "", **settings: Any) -> str:
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    for instance in instances:
        lines += ["[[instance]]", f'inference = "{instance.inference}"', f'management = "{instance.management}"']
    return "\n".join([*lines, more, ""])


Make = Callable[..., Awaitable[Running]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def make(
            *instances: FakeTorchServe, start: bool = True, flags: dict[str, str] | None = None, **settings: Any
        ) -> Running:
            for instance in instances:
                await stack.enter_async_context(instance)
            file = tmp_path / "fleet.toml"
            file.write_text(toml(*instances, **settings), encoding="utf-8")
            source = ConfigSource(file, {**FLAGS, **(flags or {})})
            found = source.read()
            assert found.settings is not None, found.problems
            running: Proxy | Supervisor
            if found.settings.processes > 1:
                running = Supervisor(found.settings, (0.1,), source, found)
            else:
                running = Proxy(found.settings, proved=True, source=source, found=found)
            stack.push_async_callback(running.close)
            for instance in instances:
                stack.callback(instance.thaw)
            if start:
                await running.start()
            return Running(running, file)

        yield make


async def started(*models: FakeModel) -> FakeTorchServe:
    return await FakeTorchServe(*(models or (FakeModel(),))).__aenter__()


# ---- what an operator is told ----------------------------------------------------------------------------------------


async def test_settings_of_the_policy_take_effect_at_once_and_are_told(make: Make) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one, extra_work=0.05)
    for _ in range(5):
        assert (await running.post()).status == 200
    running.write(one, extra_work=0.2, deadline_s=7.0, target_s=0.5)
    told = await running.reloaded()
    assert told == {
        "result": "changed",
        "changed": ["extra_work: 0.05 -> 0.2", "deadline_s: 30.0 -> 7.0", "target_s: auto -> 0.5"],
        "needs_restart": [],
        "problems": [],
    }
    assert isinstance(running.running, Proxy)
    assert running.running.scheduler.policy.deadline_s == 7.0
    assert running.running.scheduler.snapshot()["pools"]["linear/1.0"]["usual_s"]  # type: ignore[index]
    status = await running.status()
    assert status["policy"]["extra_work"] == 0.2
    assert status["configuration"]["file"] == str(running.file)
    assert status["configuration"]["reloads"] == {"changed": 1, "unchanged": 0, "refused": 0}
    assert status["configuration"]["last_reload"]["changed"] == told["changed"]
    assert await running.metric('ts_parity_config_reloads_total{result="changed"}') == 1
    assert await running.metric("ts_parity_config_last_reload_successful") == 1


async def test_an_unchanged_file_is_said_to_be_so(make: Make) -> None:
    running = await make(FakeTorchServe(FakeModel()))
    began = await running.metric("ts_parity_config_last_reload_success_timestamp_seconds")
    told = await running.reloaded()
    assert (told["result"], told["changed"], told["needs_restart"]) == ("unchanged", [], [])
    assert await running.metric('ts_parity_config_reloads_total{result="unchanged"}') == 1
    assert await running.metric("ts_parity_config_last_reload_success_timestamp_seconds") > began


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extra_work = -1", "fleet.toml: extra_work must be a number of at least 0, not -1 (at line 1)"),
        ("deadlin_s = 2", "fleet.toml: unknown setting 'deadlin_s'; did you mean 'deadline_s'? (at line 1)"),
        ("extra_work = ", "is not a TOML file"),
        ("", "no instances: give --endpoint"),
        ('default_answer = "/no/such/file"', "default_answer: cannot read '/no/such/file'"),
    ],
)
async def test_what_is_wrong_changes_nothing_and_is_told_with_its_line(
    make: Make, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    one, other = FakeTorchServe(FakeModel()), await started()
    async with other:
        running = await make(one, extra_work=0.05)
        before = running.running.settings
        instances = toml(other) if text.startswith("default") else toml(one) if text else ""
        running.file.write_text(f"{text}\n{instances}", encoding="utf-8")
        answer = await running.reload()
        assert answer.status == 422
        told = answer.json()
        assert told["result"] == "refused"
        assert said in told["problems"][0]
        assert told["reason"].startswith(told["problems"][0])
        assert running.running.settings is before
        assert "the old one goes on" in caplog.text
        assert [each["name"] for each in (await running.status())["instances"]] == [one.inference[7:]]
        assert (await running.post()).json() == ANSWER
        assert not other.received


async def test_a_refused_reload_is_a_problem_until_one_succeeds(make: Make) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one)
    running.file.write_text("port = 99999\nextra_work = -1\n", encoding="utf-8")
    assert (await running.reload()).status == 422
    status = await running.status()
    [problem] = status["problems"]
    assert problem.startswith("the configuration was not reloaded, and the old one goes on: ")
    assert "port must be" in problem
    assert problem.endswith("(and 1 more)")
    [advice] = status["advice"]
    assert "ts-parity config check" in advice["remedy"]
    assert await running.metric("ts_parity_config_last_reload_successful") == 0
    assert await running.metric('ts_parity_config_reloads_total{result="refused"}') == 1
    running.write(one)
    assert (await running.reloaded())["result"] == "unchanged"
    assert (await running.status())["problems"] == []
    assert await running.metric("ts_parity_config_last_reload_successful") == 1


async def test_what_needs_a_restart_is_named_and_not_taken(make: Make) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one, max_body_bytes=1000)
    running.write(one, extra_work=0.1, max_body_bytes=2000, secret="sesame", processes=2, tracing=True)
    for result in ("changed", "unchanged"):  # it waits for a restart until there is one
        told = await running.reloaded()
        assert told["result"] == result
        assert told["needs_restart"] == [
            "secret: a key now",
            "processes: 1 -> 2",
            "max_body_bytes: 1000 -> 2000",
            "tracing: false -> true",
        ]
    assert running.running.settings.max_body_bytes == 1000
    assert running.running.settings.secret == ""
    shown = (await running.admin.get("/config")).json()
    assert shown["settings"]["max_body_bytes"]["value"] == 1000
    assert shown["settings"]["max_body_bytes"]["origin"]["where"] == f"{running.file}:1"
    assert shown["settings"]["extra_work"] == {
        "value": 0.1,
        "default": 0.05,
        "unit": "",
        "origin": {"kind": "file", "where": f"{running.file}:1"},
    }
    assert len(shown["needs_restart"]) == 4
    running.file.write_text("port = ", encoding="utf-8")
    assert (await running.reload()).status == 422
    assert (await running.admin.get("/config")).json()["needs_restart"] == shown["needs_restart"], "they still wait"
    assert "sesame" not in json.dumps([shown, told])


async def test_flags_and_environment_win_over_the_file_as_at_the_start(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one, extra_work=0.3, flags={"extra_work": "0.07"})
    running.write(one, extra_work=0.4, max_waiting=5)
    monkeypatch.setenv("TS_PARITY_MAX_WAITING", "9")
    assert (await running.reloaded())["changed"] == ["max_waiting: 1000 -> 9"]
    shown = (await running.admin.get("/config")).json()["settings"]
    assert (shown["extra_work"]["value"], shown["extra_work"]["origin"]["where"]) == (0.07, "--extra-work")
    assert shown["max_waiting"]["origin"]["where"] == "TS_PARITY_MAX_WAITING"


async def test_a_proxy_that_was_given_its_settings_by_a_program_has_nothing_to_read(make_fleet: Any) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    answer = await fleet.admin.post("/reload", b"", JSON)
    assert answer.status == 409
    assert "nothing to read again" in answer.json()["reason"]
    fleet.proxy.reload()  # as SIGHUP: certificates and keys alone
    assert fleet.proxy.reloader.counts["refused"] == 1


async def test_the_key_of_actions_guards_it_and_may_be_changed_by_it(make: Make) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one, admin_token="first")
    assert (await running.reload()).status == 403
    running.write(one, admin_token="second")
    told = await running.reload(("Authorization", "Bearer first"))
    assert told.json()["changed"] == ["admin_token: another key"]
    assert (await running.reload(("Authorization", "Bearer first"))).status == 403
    assert (await running.reload(("Authorization", "Bearer second"))).json()["result"] == "unchanged"
    assert (await running.admin.get("/reload")).status == 405


async def test_the_command_shows_what_runs_and_what_differs_from_a_file(
    make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one, admin_token="sesame", group_by=["x-a"])

    async def shown(*more: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["config", "show", "--admin", running.running.admin_url, *more])
        return code, capsys.readouterr().out

    code, out = await shown()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert f"group_by x-a {running.file}:2" in lines
    assert f"inference {one.inference} {running.file}:4" in lines
    assert "drain_s" in out
    assert not any(word in out for word in ("differs", "needs a restart", "sesame"))
    assert json.loads((await shown("--json"))[1]) == (await running.admin.get("/config")).json()

    other, flags = tmp_path / "other.toml", [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    other.write_text(toml(one, admin_token="else", group_by=["x-a"]), encoding="utf-8")
    code, out = await shown(str(other), *flags)
    assert (code, out.splitlines()[-1]) == (0, "nothing differs from what is given"), "a key is not compared"
    more = '[[instance]]\ninference = "http://h:1"\n[[model]]\nname = "m"'
    other.write_text(toml(group_by=["x-b"], port=81, more=more), encoding="utf-8")
    differing = json.loads((await shown(str(other), "--json"))[1])["differing"]
    assert f"group_by: x-a runs, x-b is given ({other}:1)" in differing
    assert f"port: 0 runs, 81 is given ({other}:2)" in differing
    assert "admin_token: (set, not shown) runs, none is given (default)" in differing
    assert f"instance {one.inference}: runs, and is not given" in differing
    assert "instance http://h:1: is given, and does not run" in differing
    assert "model m: is given, and does not run" in differing
    assert f"differs: port: 0 runs, 81 is given ({other}:2)" in (await shown(str(other)))[1].splitlines()

    running.write(one, admin_token="sesame", group_by=["x-a"], max_body_bytes=2000)
    await running.reload(("Authorization", "Bearer sesame"))
    assert "needs a restart: max_body_bytes: " in (await shown())[1]


async def test_the_command_says_that_what_it_asked_is_no_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    async with FakeTorchServe(FakeModel()) as one:
        assert await asyncio.to_thread(main, ["config", "show", "--admin", one.inference]) == 3
    assert "is this the admin port of a proxy?" in capsys.readouterr().err


async def test_the_command_says_what_has_changed(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one, admin_token="key")

    async def typed(*more: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ["reload", "--admin", running.running.admin_url, *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, _, err = await typed()
    assert (code, "Authorization: Bearer TOKEN" in err) == (3, True)
    assert await typed("--token", "key") == (0, "nothing has changed\n", "")
    running.write(one, admin_token="key", extra_work=0.5, port=81)
    running.running.reloader._source = ConfigSource(running.file)  # type: ignore[union-attr]
    code, out, _ = await typed("--token", "key")
    assert code == 0
    assert out.startswith("reloaded\n  ")
    assert "  extra_work: 0.05 -> 0.5\n" in out
    assert "needs a restart: port: 0 -> 81\n" in out
    running.write(one, admin_token="key", extra_work=-1)
    code, out, err = await typed("--token", "key")
    assert (code, out) == (2, "")
    assert "extra_work must be a number of at least 0, not -1 (at line 2)" in err
    assert "the old configuration goes on" in err
    code, out, _ = await typed("--token", "key", "--json")
    assert code == 2
    assert json.loads(out)["result"] == "refused"
    running.running.drain()
    code, _, err = await typed("--token", "key")
    assert code == 3
    assert "it drains" in err


# ---- instances -------------------------------------------------------------------------------------------------------


async def test_an_added_instance_is_used_and_a_removed_one_gets_nothing_new(make: Make) -> None:
    old, new = FakeTorchServe(FakeModel()), await started()
    async with new:
        running = await make(old)
        await running.post()
        running.write(new)
        told = await running.reloaded()
        assert told["changed"] == [f"instance {new.inference[7:]}: added", f"instance {old.inference[7:]}: removed"]
        asked = len(old.received)
        for _ in range(3):
            assert (await running.post()).json() == ANSWER
        assert len(old.received) == asked
        assert len(new.received) == 3
        assert [each["name"] for each in (await running.status())["instances"]] == [new.inference[7:]]
        assert nothing_left(running.running)  # type: ignore[arg-type]


async def test_what_is_under_way_on_a_removed_instance_is_finished(make: Make) -> None:
    """The only one that serves a model, so its work cannot go elsewhere."""
    old = FakeTorchServe(FakeModel(), FakeModel("other", matrix=FakeModel().matrix))
    kept = FakeTorchServe(FakeModel())
    running = await make(old, kept)
    old.models[1].script.append(Canned(hold_s=0.2, body=b"kept", headers=(("content-type", "text/plain"),)))
    asked = asyncio.ensure_future(running.client.post("/predictions/other", BODY))
    await until(lambda: any(request.target == "/predictions/other" for request in old.received), "the query")
    running.write(kept)
    assert (await running.reloaded())["changed"] == [f"instance {old.inference[7:]}: removed"]
    answer = await asked
    assert (answer.status, answer.body) == (200, b"kept")
    assert (await running.client.post("/predictions/other", BODY)).status == 404
    assert nothing_left(running.running)  # type: ignore[arg-type]


async def test_queries_on_a_frozen_instance_go_elsewhere_when_it_is_removed(make: Make) -> None:
    frozen, good = FakeTorchServe(FakeModel(workers=3)), FakeTorchServe(FakeModel(workers=8))
    running = await make(frozen, good, extra_work=0.0)
    frozen.freeze()
    asked = [asyncio.ensure_future(running.post()) for _ in range(6)]
    await until(lambda: len(frozen.received) > 0 and len(good.received) > 0, "both to have some")
    running.write(good, extra_work=0.0)
    await running.reloaded()
    assert [answer.json() for answer in await asyncio.gather(*asked)] == [ANSWER] * 6


@pytest.mark.slow
async def test_no_query_is_lost_while_instances_come_and_go_under_load(make: Make) -> None:
    three = [FakeTorchServe(FakeModel(workers=2, latency_s=0.01)) for _ in range(3)]
    running = await make(*three)
    answers: list[Raw] = []
    over = asyncio.Event()

    async def keep_asking() -> None:
        while not over.is_set():
            answers.append(await running.post())

    asking = [asyncio.ensure_future(keep_asking()) for _ in range(8)]
    for number in range(12):
        chosen = [one for index, one in enumerate(three) if index != number % 3]
        running.write(*chosen, extra_work=[0.0, 0.5][number % 2], max_wait_s=[5.0, 10.0][number % 2])
        assert (await running.reloaded())["result"] == "changed"
        await asyncio.sleep(0.02)
    over.set()
    await asyncio.gather(*asking)
    assert len(answers) > 100
    assert all(answer.json() == ANSWER for answer in answers)
    await until(lambda: nothing_left(running.running), "all to end")  # type: ignore[arg-type]


async def test_an_instance_at_another_management_address_is_asked_there(make: Make) -> None:
    one, model = FakeTorchServe(FakeModel()), FakeModel("other")
    elsewhere = await started(FakeModel(), model)
    async with elsewhere:
        running = await make(one)
        running.file.write_text(
            f'[[instance]]\ninference = "{one.inference}"\nmanagement = "{elsewhere.management}"\n', encoding="utf-8"
        )
        [told] = (await running.reloaded())["changed"]
        assert told.startswith(f"instance {one.inference[7:]}: management: {one.management} -> ")
        assert "other/1.0" in (await running.status())["pools"]


async def test_an_added_instance_that_is_down_is_a_problem_and_no_reason_to_refuse(make: Make) -> None:
    one, other = FakeTorchServe(FakeModel()), await started()
    running = await make(one, flags={"describe_timeout_s": "2", "connect_timeout_s": "2"})
    await other.stop()
    running.write(one, other)
    assert (await running.reloaded())["changed"] == [f"instance {other.inference[7:]}: added"]
    assert any(other.inference[7:] in problem for problem in (await running.status())["problems"])
    assert (await running.post()).json() == ANSWER
    await other.start(int(other.inference.rpartition(":")[2]), int(other.management.rpartition(":")[2]))
    async with other:
        await running.reloaded()
        for _ in range(200):  # until it has told what it hosts
            if not (await running.status())["problems"]:
                break
            await asyncio.sleep(0.02)
        await asyncio.gather(*(running.post() for _ in range(8)))
        assert other.received


async def test_a_reload_while_all_instances_are_down_keeps_what_is_known(make: Make) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one, flags={"describe_timeout_s": "2", "connect_timeout_s": "2"})
    port, management = (int(url.rpartition(":")[2]) for url in (one.inference, one.management))
    await one.stop()
    running.write(one, extra_work=0.5)
    assert (await running.reloaded())["changed"] == ["extra_work: 0.05 -> 0.5"]
    assert (await running.post()).status == 503
    await one.start(port, management)
    await running.reloaded()
    assert (await running.post()).json() == ANSWER


async def test_a_model_that_must_not_be_asked_twice_is_so_from_now_on(make: Make) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one)
    running.write(one, more='[[model]]\nname = "linear"\nrepeatable = false\n')
    assert (await running.reloaded())["changed"] == ["model linear: added"]
    assert (await running.status())["pools"]["linear/1.0"]["repeatable"] is False


async def test_another_default_answer_is_given_and_a_file_of_other_content_is_a_change(
    make: Make, tmp_path: Path
) -> None:
    answer = tmp_path / "default.txt"
    answer.write_text("first", encoding="utf-8")
    one = FakeTorchServe(FakeModel())
    running = await make(one)
    one.freeze()
    running.write(one, default_answer=str(answer), deadline_s=0.05)
    await running.reloaded()
    assert (await running.post()).body == b"first"
    answer.write_text("second", encoding="utf-8")
    assert (await running.reloaded())["changed"] == ["default_answer: its file has another content"]
    assert (await running.post()).body == b"second"
    assert (await running.reloaded())["result"] == "unchanged"
    running.write(one, deadline_s=0.05)
    await running.reloaded()
    assert (await running.post()).status == 504


@pytest.mark.skipif(not scheduler.__file__.endswith(".py"), reason="compiled, so that nobody can listen")
async def test_queries_before_and_after_another_group_by_share_no_group(make: Make) -> None:
    running = await make(FakeTorchServe(FakeModel()))
    proxy = running.running
    assert isinstance(proxy, Proxy)
    keys: list[Any] = []
    arrived = proxy.scheduler.query_arrived

    def noted(query: Any, now: float) -> Any:
        keys.append(query.key)
        return arrived(query, now)

    proxy.scheduler.query_arrived = noted  # type: ignore[method-assign]
    proxy.plan = replace(proxy.plan)
    for plan in proxy.plan.pools.values():  # as if it were coded
        object.__setattr__(plan, "code", object())
    await running.post()
    proxy._service.change_settings(("x-language",), proxy.driver._backends)
    await running.post()
    assert len(set(keys)) == 2


async def test_tls_settings_of_an_instance_are_those_of_its_next_connection(
    make: Make, authority: Authority, tmp_path: Path
) -> None:
    one = FakeTorchServe(FakeModel(), tls=authority.serving())
    running = await make(one)
    assert (await running.post()).status == 503, "nobody trusts it yet"
    secure = f'[[instance]]\ninference = "{one.inference}"\nmanagement = "{one.management}"\ntls_ca = '
    running.file.write_text(secure + f'"{tmp_path}/none.pem"\n', encoding="utf-8")
    refused = await running.reload()
    assert refused.status == 422
    assert "tls_ca: cannot read" in refused.json()["reason"]
    running.file.write_text(secure + f'"{authority.folder}/ca.pem"\n', encoding="utf-8")
    await running.reloaded()
    assert (await running.post()).json() == ANSWER


# ---- at once, and at the end -----------------------------------------------------------------------------------------


async def test_two_reloads_at_once_take_turns(make: Make) -> None:
    """The second reads what the file says when its turn comes."""
    one = FakeTorchServe(FakeModel())
    running = await make(one)
    one.management_pause_s = 0.05
    running.write(one, extra_work=0.1)
    first = asyncio.ensure_future(running.reload())
    await until(lambda: running.running.reloader._turn.locked(), "the first to begin")  # type: ignore[union-attr]
    second = asyncio.ensure_future(running.reload())
    running.write(one, extra_work=0.2)
    assert (await first).json()["changed"] in (["extra_work: 0.05 -> 0.1"], ["extra_work: 0.05 -> 0.2"])
    await second
    assert running.running.settings.policy.extra_work == 0.2
    assert isinstance(running.running, Proxy)
    assert running.running.scheduler.policy.extra_work == 0.2


async def test_whoever_asked_may_leave(make: Make) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one)
    one.management_pause_s = 0.1
    running.write(one, extra_work=0.1)
    asked = asyncio.ensure_future(running.reload())
    await until(lambda: running.running.reloader._turn.locked(), "it to begin")  # type: ignore[union-attr]
    asked.cancel()
    await until(lambda: running.running.settings.policy.extra_work == 0.1, "it to be done")


async def test_what_drains_reads_nothing_again(make: Make) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one)
    running.write(one, extra_work=0.1)
    running.running.drain()
    answer = await running.reload()
    assert answer.status == 409
    assert "drains" in answer.json()["reason"]
    assert running.running.settings.policy.extra_work == 0.05


async def test_sighup_waits_for_the_start_and_is_told_in_the_log(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one, start=False)
    running.write(one, extra_work=0.1)
    running.running.reload()
    await running.running.start()
    with caplog.at_level(logging.WARNING):
        await until(lambda: "configuration reloaded: extra_work: 0.05 -> 0.1" in caplog.text, "the log")


async def test_an_unforeseen_error_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = FakeTorchServe(FakeModel())
    running = await make(one)

    def broken(_: Any) -> Any:
        raise RuntimeError("oops")

    monkeypatch.setattr(running.running, "prepare", broken)
    running.write(one, extra_work=0.1)
    answer = await running.reload()
    assert answer.status == 500
    assert running.running.settings.policy.extra_work == 0.05
    monkeypatch.undo()
    assert (await running.reloaded())["result"] == "changed"


# ---- several ---------------------------------------------------------------------------------------------------------


async def test_proxies_share_again_when_both_have_the_new_instances(make: Make) -> None:
    one, other = FakeTorchServe(FakeModel()), await started()
    async with other:
        running = await make(one, secret="sesame", peers=["http://127.0.0.1:1"])
        proxy = running.running
        assert isinstance(proxy, Proxy)
        assert proxy.peers is not None
        before = proxy.peers.members.fleet
        running.write(one, other, secret="sesame", peers=["http://127.0.0.1:1"])
        await running.reloaded()
        assert proxy.peers.members.fleet != before
        running.write(other, one, secret="sesame", peers=["http://127.0.0.1:1"])
        told = await running.reloaded()
        assert told["changed"] == ["instances: in another order"]
        changed = proxy.peers.members.fleet
        running.write(one, secret="sesame", peers=["http://127.0.0.1:1"])
        await running.reloaded()
        assert proxy.peers.members.fleet == before != changed


@pytest.mark.slow
async def test_all_processes_reload_or_none_does(make: Make, tmp_path: Path) -> None:
    one, other = FakeTorchServe(FakeModel(workers=4)), await started(FakeModel(workers=4))
    async with other:
        running = await make(one, processes=2)
        default = tmp_path / "answer.txt"
        default.write_text("first", encoding="utf-8")
        running.write(other, processes=2, extra_work=0.5, default_answer=str(default))
        told = await running.reloaded()
        assert told["result"] == "changed"
        status = await running.status()
        assert [each["name"] for each in status["instances"]] == [other.inference[7:]]
        assert status["policy"]["extra_work"] == 0.5
        assert status["configuration"]["reloads"]["changed"] == 1
        asked = len(one.received)
        answers = await asyncio.gather(*(running.post() for _ in range(20)))
        assert [answer.json() for answer in answers] == [ANSWER] * 20
        assert len(one.received) == asked
        default.write_text("second", encoding="utf-8")
        assert (await running.reloaded())["changed"] == ["default_answer: its file has another content"]
        assert await running.metric('ts_parity_config_reloads_total{result="changed"}') == 2
        assert await running.metric("ts_parity_config_last_reload_successful") == 1

        # One is frozen: nobody changes.
        frozen = psutil.Process(status["processes"][1]["pid"])
        running.write(one, processes=2, extra_work=0.25)
        frozen.suspend()
        try:
            answer = await running.reload()
        finally:
            frozen.resume()
        assert answer.status == 503
        assert f"(pid {frozen.pid}) gives no answer, so none reloads" in answer.json()["reason"]
        assert running.running.settings.policy.extra_work == 0.5
        status = await running.status()
        assert [each["name"] for each in status["instances"]] == [other.inference[7:]]

        # One that dies is started again with what was adopted since.
        assert (await running.reloaded())["result"] == "changed"
        os.kill(status["processes"][0]["pid"], signal.SIGKILL)
        for _ in range(600):
            rows = (await running.status())["processes"]
            if rows[0]["restarts"] and all(row["state"] == "serving" for row in rows):
                break
            await asyncio.sleep(0.05)
        status = await running.status()
        assert [each["name"] for each in status["instances"]] == [one.inference[7:]]
        assert status["policy"]["extra_work"] == 0.25
        answers = await asyncio.gather(*(running.post() for _ in range(20)))
        assert [answer.json() for answer in answers] == [ANSWER] * 20
