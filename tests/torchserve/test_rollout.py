"""`register` and `unregister`, before fake instances: what is said first, done in order, and undone when it fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import write_archive
from tests.proxy.authority import Authority
from tests.proxy.conftest import MakeFleet, make_fleet  # noqa: F401
from ts_parity import admin_client
from ts_parity.cli import main
from ts_parity.errors import ManagementError
from ts_parity.testing import Canned, FakeModel, FakeTorchServe
from ts_parity.torchserve import rollout
from ts_parity.torchserve.archive import Archive, read_archive, wrap_deployed, wrap_parity
from ts_parity.torchserve.management import ManagementClient
from ts_parity.torchserve.proxies import ProxyView
from ts_parity.torchserve.rollout import Rollout, check_content
from ts_parity.torchserve.rollout_plan import (
    ArchiveSource,
    RequestedOptions,
    RolloutStep,
    StepAction,
    look,
    plan_registration,
)

FAILURE = Canned.error(500, "InternalServerException", "out of\n  luck")
LOST = Canned(drop=True)


@pytest.fixture(autouse=True)
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SETTLE_S", "DRAIN_S", "READY_S", "LATE_S", "POLL_S"):
        monkeypatch.setattr(rollout, name, 0.0)


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[FakeTorchServe]]]:
    async with AsyncExitStack() as stack:

        async def one(*models: FakeModel, store: tuple[Path, ...] = (), **more: Any) -> FakeTorchServe:
            """`store`: archives in its model store."""
            instance = FakeTorchServe(*models, **more)
            instance.store = {path.name: as_model(read_archive(path)) for path in store}
            return await stack.enter_async_context(instance)

        yield one


Start = Callable[..., Awaitable[FakeTorchServe]]


@pytest.fixture
def packed(tmp_path: Path) -> Callable[..., Path]:
    """`packed("2.0", b"weights")` -> a wrapped archive of the model `linear`."""

    def pack(version: str = "1.0", weights: bytes = b"f", file: str = "linear.mar", wrapped: bool = True) -> Path:
        plain = write_archive(
            tmp_path / "plain" / version / file, name="linear", version=version, serialized=weights, config="a: 1\n"
        )
        return wrap_deployed(plain, tmp_path / f"wrapped {version} {weights.decode()}" / file) if wrapped else plain

    return pack


Pack = Callable[..., Path]


def as_model(archive: Archive) -> FakeModel:
    said = archive.section or {}
    protects = said.get("protects", {})
    return FakeModel(
        archive.model_name,
        archive.model_version,
        said.get("role"),
        weights=archive.weights(),
        code=said.get("code", "sum"),
        k=said.get("k", 2),
        protects=(protects.get("model"), protects.get("version"), protects.get("weights")),
    )


def served(*instances: FakeTorchServe) -> list[list[tuple[str, str, bool, str | None, int, int]]]:
    """Of each instance: name, version, default, weights, workers, batch size."""
    return [
        sorted((m.name, m.version, m.default, m.weights, m.workers, m.batch_size) for m in instance.models)
        for instance in instances
    ]


async def run(command: str, *words: Any, on: tuple[FakeTorchServe, ...]) -> int:
    urls = [part for instance in on for part in ("--management", instance.management)]
    return await asyncio.to_thread(main, [command, *map(str, words), *urls])


class TestRegister:
    async def test_a_file_that_was_copied(self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]) -> None:
        archive = packed()
        fleet = (await start(store=(archive,)), await start(store=(archive,)))
        assert await run("register", archive, "--workers", "2", "--batch-size", "3", on=fleet) == 0
        weights = read_archive(archive).weights()
        assert served(*fleet) == [[("linear", "1.0", True, weights, 2, 3)]] * 2
        out, err = capsys.readouterr()
        assert out.splitlines() == [
            f'{each.management}: Model "linear" Version: 1.0 registered with 2 initial workers' for each in fleet
        ]
        assert err.splitlines() == [
            f"to do: {each.management}: register linear 1.0 from linear.mar, 2 workers" for each in fleet
        ]

    async def test_a_protection(self, start: Start, packed: Pack, tmp_path: Path) -> None:
        protection = wrap_parity(packed(), tmp_path / "out", code="exact", k=3)
        instance = await start(store=(protection,))
        assert await run("register", protection, on=(instance,)) == 0
        assert instance.models[0].name == "linear-1.0-exact-k3"
        other = wrap_parity(packed(), tmp_path / "other", "linear-1.0-exact-k3", code="exact", k=2)
        instance.models = []
        assert await run("register", other, on=(instance,)) == 3
        assert instance.models == []

    async def test_the_model_store_holds_other_weights(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Of that name: it was registered without a word."""
        wanted, other = packed(), packed(weights=b"other")
        fleet = (await start(store=(wanted,)), await start(store=(other,)))
        assert await run("register", wanted, on=fleet) == 3
        assert served(*fleet) == [[], []]
        err = capsys.readouterr().err
        assert f"{fleet[1].management}: the linear.mar in its model store is not {wanted} (weights: sha256:" in err
        assert err.endswith("copy the file there. What was done is undone\n")

    @pytest.mark.parametrize("wrapped", [True, False])
    async def test_the_model_store_holds_another_version(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str], wrapped: bool
    ) -> None:
        wanted = packed("2.0")
        instance = await start(store=(packed("1.0", wrapped=wrapped),))
        assert await run("register", wanted, on=(instance,)) == 3
        assert instance.models == []
        assert "in its model store holds linear 1.0, not linear 2.0 as " in capsys.readouterr().err

    async def test_the_model_store_holds_one_that_is_not_wrapped(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        instance = await start(store=(packed(wrapped=False),))
        assert await run("register", packed(), on=(instance,)) == 3
        assert instance.models == []
        assert "(it is not wrapped)" in capsys.readouterr().err

    async def test_a_path_to_what_cannot_be_compared_is_refused(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plain = packed(wrapped=False)
        instance = await start(store=(plain,))
        assert await run("register", plain, on=(instance,)) == 2
        assert "copy it there and give its name alone, linear.mar" in capsys.readouterr().err
        assert await run("register", plain.name, on=(instance,)) == 0

    async def test_a_name_that_only_the_model_store_knows(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """And when it fails on the second instance, it is found and unregistered on the first."""
        archive = packed(file="known_there.mar")
        fleet = (await start(FakeModel(version="0.1"), store=(archive,)), await start(store=(archive,)))
        before = served(*fleet)
        fleet[1].before_change = lambda change: FAILURE if change.startswith("POST") else None
        assert await run("register", "known_there.mar", on=fleet) == 3
        assert served(*fleet) == before
        assert "out of luck. What was done is undone" in capsys.readouterr().err
        fleet[1].before_change = lambda change: None
        assert await run("register", "known_there.mar", on=fleet) == 0
        assert [len(instance.models) for instance in fleet] == [2, 1]

    async def test_what_an_instance_has_already_is_said_before_anything_is_done(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        archive = packed()
        fleet = (await start(store=(archive,)), await start(FakeModel(), store=(archive,)))
        assert await run("register", archive, on=fleet) == 3
        assert [instance.changes for instance in fleet] == [[], []]
        assert f"{fleet[1].management} has linear 1.0 already: --replace it" in capsys.readouterr().err

    async def test_what_appears_meanwhile_is_not_removed(
        self, start: Start, packed: Pack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Somebody else registers the same version after the instance has been looked at."""
        archive = packed()
        instance = await start(store=(archive,))
        register = ManagementClient.register

        def second(client: ManagementClient, *args: Any, **more: Any) -> str:
            register(client, *args, **more)
            return register(client, *args, **more)

        monkeypatch.setattr(ManagementClient, "register", second)
        assert await run("register", archive, on=(instance,)) == 3
        assert [(each.name, each.version) for each in instance.models] == [("linear", "1.0")]
        err = capsys.readouterr().err
        assert "is already registered" in err
        assert err.endswith(". Nothing was changed\n")
        assert "undone" not in err

    async def test_a_new_version_stands_beside_the_default(self, start: Start, packed: Pack) -> None:
        instance = await start(FakeModel(), store=(packed("2.0"),))
        assert await run("register", packed("2.0"), on=(instance,)) == 0
        assert [(m.version, m.default) for m in instance.models] == [("1.0", True), ("2.0", False)]

    @pytest.mark.parametrize(
        ("arrange", "said"),
        [
            (lambda i: setattr(i, "model_api", False), "(405): Requested method is not allowed"),
            (lambda i: i.store.clear(), "Model not found at: linear.mar; a local archive must be a plain file name"),
            (lambda i: setattr(i.store["linear.mar"], "loads", False), "Failed to start workers for model linear"),
            (lambda i: setattr(i.store["linear.mar"], "ready", False), "linear 1.0: LOADING of 1 wanted after 0 s"),
            (lambda i: setattr(i.store["linear.mar"], "mute_describe", True), "Prediction failed"),
            (lambda i: setattr(i, "before_change", lambda change: LOST), "cannot reach the management address"),
            (lambda i: setattr(i, "after_change", lambda change: LOST), "cannot reach the management address"),
        ],
    )  # fmt: skip
    async def test_one_instance_cannot_and_the_others_are_as_before(
        self,
        start: Start,
        packed: Pack,
        capsys: pytest.CaptureFixture[str],
        arrange: Callable[[FakeTorchServe], None],
        said: str,
    ) -> None:
        archive = packed()
        fleet = (await start(store=(archive,)), await start(store=(archive,)))
        arrange(fleet[1])
        if said.startswith("cannot"):  # or the undoing would be lost too
            once(fleet[1])
        assert await run("register", archive, on=fleet) == 3
        assert served(*fleet) == [[], []]
        err = capsys.readouterr().err
        assert said in err
        assert err.splitlines()[-1].endswith("What was done is undone")

    async def test_an_instance_that_nobody_reaches(self, start: Start, packed: Pack) -> None:
        archive = packed()
        fleet = (await start(store=(archive,)), await start(store=(archive,)))
        await fleet[1].stop()
        assert await run("register", archive, on=fleet) == 3
        assert fleet[0].changes == []

    async def test_one_that_dies_on_the_way_is_named(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        archive = packed()
        fleet = (await start(store=(archive,)), await start(store=(archive,)))

        def die(change: str) -> Canned:
            fleet[1].managed = LOST
            return LOST

        fleet[1].before_change = die
        assert await run("register", archive, on=fleet) == 3
        assert served(fleet[0]) == [[]]
        assert (
            f"Not undone: unregister linear 1.0 on {fleet[1].management}, for cannot reach" in capsys.readouterr().err
        )

    async def test_over_tls(self, start: Start, packed: Pack, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "tls")
        instance = await start(store=(packed(),), tls=authority.serving())
        assert await run("register", packed(), on=(instance,)) == 3
        assert await run("register", packed(), "--tls-ca", authority.pem, on=(instance,)) == 0


def once(instance: FakeTorchServe) -> None:
    """Its next change only is disturbed."""
    for name in ("before_change", "after_change"):
        disturb = getattr(instance, name)

        def first(change: str, disturb: Any = disturb) -> Canned | None:
            return disturb(change) if len(instance.changes) == 1 else None

        setattr(instance, name, first)


class TestReplace:
    async def test_a_new_version(self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]) -> None:
        """At each instant every instance serves; one that has another default, or nothing yet, gets the same."""
        new = packed("2.0")
        fleet = (
            await start(FakeModel(workers=2, batch_size=4), store=(new,)),
            await start(FakeModel(), FakeModel(version="0.9", default=False), store=(new,)),
            await start(store=(new,)),
        )
        changes: list[tuple[int, str]] = []
        for number, instance in enumerate(fleet):
            instance.before_change = lambda change, number=number: changes.append((number, change))  # type: ignore[misc]
        assert await run("register", "--replace", new, on=fleet) == 0
        weights = read_archive(new).weights()
        assert served(*fleet) == [
            [("linear", "2.0", True, weights, 2, 4)],
            [("linear", "0.9", False, "sha256:f", 1, 1), ("linear", "2.0", True, weights, 1, 1)],
            [("linear", "2.0", True, weights, 1, 1)],
        ]
        assert [(number, change.partition("?")[0]) for number, change in changes] == [
            (0, "POST /models"), (1, "POST /models"), (2, "POST /models"),
            (0, "PUT /models/linear/2.0/set-default"), (1, "PUT /models/linear/2.0/set-default"),
            (0, "DELETE /models/linear/1.0"), (1, "DELETE /models/linear/1.0"),
        ]  # fmt: skip
        assert "waiting 0 s: by then every proxy has seen what was done" in capsys.readouterr().err

    async def test_the_same_version_with_other_content(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Loaded under another name on every instance first, then exchanged on one after another."""
        new = packed(weights=b"new")
        fleet = (await start(FakeModel(workers=2), store=(new,)), await start(FakeModel(batch_size=4), store=(new,)))
        changes: list[tuple[int, str]] = []
        for number, instance in enumerate(fleet):
            instance.before_change = lambda change, number=number: changes.append((number, change))  # type: ignore[misc]
        assert await run("register", "--replace", new, on=fleet) == 0
        weights = read_archive(new).weights()
        assert served(*fleet) == [[("linear", "1.0", True, weights, 2, 1)], [("linear", "1.0", True, weights, 1, 4)]]
        assert [(number, change.partition("?")[0]) for number, change in changes] == [
            (0, "POST /models"), (0, "DELETE /models/linear-ts-parity-trial/1.0"),
            (1, "POST /models"), (1, "DELETE /models/linear-ts-parity-trial/1.0"),
            (0, "DELETE /models/linear/1.0"), (0, "POST /models"),
            (1, "DELETE /models/linear/1.0"), (1, "POST /models"),
        ]  # fmt: skip
        assert capsys.readouterr().err.count("waiting") == 4, (
            "for proxies to use the other, and to see that each is gone"
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("fails", [FAILURE, LOST], ids=["refused", "no answer"])
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("version", ["1.0", "2.0"])
    @pytest.mark.parametrize("at", range(8))
    async def test_whatever_fails_half_way_is_undone(
        self, start: Start, packed: Pack, at: int, version: str, when: str, fails: Canned
    ) -> None:
        """At each change, whether it was carried out or not."""
        new, old = packed(version, b"new"), packed("1.0", file="old.mar")
        fleet = tuple([await start(store=(new, old)) for _ in range(2)])
        assert await run("register", old, "--workers", "2", on=fleet) == 0
        before, first_removal, seen = served(*fleet), [False], [0]

        def disturb(change: str) -> Canned | None:
            seen[0] += 1
            if seen[0] != at + 1:
                return None
            first_removal[0] = change == "DELETE /models/linear/1.0" and version == "2.0"
            return fails

        for instance in fleet:
            setattr(instance, f"{when}_change", disturb)
        code = await run("register", "--replace", new, on=fleet)
        assert code == (3 if seen[0] > at else 0)
        if code == 0:
            assert all(m.weights == read_archive(new).weights() for instance in fleet for m in instance.models)
        elif not first_removal[0]:
            assert served(*fleet) == before

    async def test_the_last_removals_are_not_undone_and_what_is_left_is_said(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new = packed("2.0")
        fleet = tuple([await start(FakeModel(), store=(new,)) for _ in range(2)])
        fleet[1].before_change = lambda change: FAILURE if change.startswith("DELETE") else None
        assert await run("register", "--replace", new, on=fleet) == 3
        assert [[m.version for m in instance.models if m.default] for instance in fleet] == [["2.0"], ["2.0"]]
        assert f"Still to do: {fleet[1].management}: unregister linear 1.0\n" in capsys.readouterr().err
        fleet[1].before_change = lambda change: None
        assert await run("unregister", "linear/1.0", on=fleet) == 0
        assert [[m.version for m in instance.models] for instance in fleet] == [["2.0"], ["2.0"]]

    async def test_one_that_does_not_load_costs_nothing(self, start: Start, packed: Pack) -> None:
        new = packed(weights=b"new")
        fleet = tuple([await start(FakeModel(), store=(new,)) for _ in range(2)])
        fleet[1].store["linear.mar"].loads = False
        assert await run("register", "--replace", new, on=fleet) == 3
        assert served(*fleet) == [[("linear", "1.0", True, "sha256:f", 1, 1)]] * 2
        assert not any(change == "DELETE /models/linear/1.0" for each in fleet for change in each.changes)

    async def test_a_trial_of_somebody_else_stays(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new = packed(weights=b"new")
        instance = await start(FakeModel(), FakeModel("linear-ts-parity-trial"), store=(new,))
        before = served(instance)
        assert await run("register", "--replace", new, on=(instance,)) == 3
        assert served(instance) == before
        err = capsys.readouterr().err
        assert "has linear-ts-parity-trial already: another rollout is at work there, or was killed" in err
        assert err.endswith(
            f"ts-parity unregister --management {instance.management} linear-ts-parity-trial. Nothing was changed\n"
        )

    async def test_what_torchserve_would_not_give_up(
        self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        instance = await start(FakeModel(), FakeModel(version="0.9", default=False), store=(packed(),))
        assert await run("register", "--replace", packed(), on=(instance,)) == 3
        assert instance.changes == []
        assert "linear 1.0 is the default beside 0.9" in capsys.readouterr().err
        instance.models[0].default, instance.models[1].default = False, True
        assert await run("register", "--replace", packed(), on=(instance,)) == 0
        assert [(m.version, m.default) for m in instance.models] == [("0.9", True), ("1.0", False)]

    async def test_what_is_not_known_cannot_replace(self, start: Start, packed: Pack) -> None:
        instance = await start(FakeModel(), store=(packed(file="there.mar"),))
        for given in ("there.mar", "http://127.0.0.1:1/there.mar"):
            assert await run("register", "--replace", given, on=(instance,)) == 2
        assert instance.changes == []

    @pytest.mark.parametrize("after", range(6))
    async def test_ctrl_c_undoes(self, start: Start, packed: Pack, after: int) -> None:
        new = packed("2.0")
        fleet = tuple([await start(FakeModel(), store=(new,)) for _ in range(2)])
        before, results = served(*fleet), [0]

        def said(text: str) -> None:
            results[0] += 1
            if results[0] == after + 1:
                raise KeyboardInterrupt

        def act() -> None:
            clients = {instance.management: ManagementClient(instance.management) for instance in fleet}
            steps = plan_registration(
                [look(client) for client in clients.values()],
                [ArchiveSource(new.name, read_archive(new))],
                RequestedOptions(),
                True,
            )
            assert len(steps) == 6
            with pytest.raises(KeyboardInterrupt):
                Rollout(clients, said, lambda text: None, pause=lambda seconds: None).carry_out(steps)

        await asyncio.to_thread(act)
        if after < 4:
            assert served(*fleet) == before
        else:
            assert all(m.default == (m.version == "2.0") for instance in fleet for m in instance.models)


class TestUnregister:
    async def test_where_it_is(self, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
        fleet = (await start(FakeModel(), FakeModel("other")), await start(FakeModel("other")))
        assert await run("unregister", "linear", on=fleet) == 0
        assert [[m.name for m in instance.models] for instance in fleet] == [["other"], ["other"]]
        out, err = capsys.readouterr()
        assert out == f'{fleet[0].management}: Model "linear" unregistered (version 1.0)\n'
        assert err == f"to do: {fleet[0].management}: unregister linear 1.0\n"
        assert await run("unregister", "linear", on=fleet) == 3
        assert "no instance has linear: there is other. Nothing was done" in capsys.readouterr().err

    async def test_versions(self, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
        versions = [FakeModel(), FakeModel(version="2.0", default=False), FakeModel(version="3.0", default=False)]
        instance = await start(*versions)
        for given, said in (
            ("linear", "has linear in versions 1.0, 2.0, 3.0: say which, as linear/1.0"),
            ("linear/1.0", "linear 1.0 is the default version, and TorchServe keeps that while there is 2.0"),
            ("linear/9", "no instance has linear 9: there is linear 1.0 and 2.0 and 3.0"),
        ):
            assert await run("unregister", given, on=(instance,)) == 3
            assert said in capsys.readouterr().err
        assert instance.changes == []
        assert await run("unregister", "linear/1.0", "linear/3.0", "linear/2.0", on=(instance,)) == 0
        assert instance.changes[-1] == "DELETE /models/linear/1.0", "the default goes last"
        assert instance.models == []

    async def test_it_goes_on_from_where_it_was_stopped(self, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
        fleet = tuple([await start(FakeModel()) for _ in range(3)])
        fleet[1].before_change = lambda change: FAILURE
        assert await run("unregister", "linear", on=fleet) == 3
        assert [len(instance.models) for instance in fleet] == [0, 1, 1]
        err = capsys.readouterr().err
        assert "What was done stays. Still to do: " in err
        assert err.count(f"{fleet[2].management}: unregister linear 1.0") == 2
        fleet[1].before_change = lambda change: None
        assert await run("unregister", "linear", on=fleet) == 0
        assert [len(instance.models) for instance in fleet] == [0, 0, 0]


class TestSayingItFirst:
    async def test_a_dry_run(self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]) -> None:
        new, same = packed("2.0"), packed(weights=b"new", file="same.mar")
        first, second = await start(FakeModel()), await start(FakeModel(version="1.5"))
        assert await run("register", "--replace", "--dry-run", new, on=(first, second)) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{first.management}: register linear 2.0 from linear.mar, 1 worker (beside 1.0)",
            f"{second.management}: register linear 2.0 from linear.mar, 1 worker (beside 1.5)",
            f"{first.management}: make linear 2.0 the default version (it was 1.0)",
            f"{second.management}: make linear 2.0 the default version (it was 1.5)",
            f"{first.management}: unregister linear 1.0",
            f"{second.management}: unregister linear 1.5",
        ]
        assert await run("register", "--replace", "--dry-run", same, on=(first,)) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{first.management}: load linear 1.0 from same.mar as linear-ts-parity-trial, to see whether it loads, "
            "and unload it",
            f"{first.management}: unregister linear 1.0 (no other instance given has it: nobody serves it meanwhile)",
            f"{first.management}: register linear 1.0 from same.mar, 1 worker",
        ]
        assert await run("unregister", "--dry-run", "linear", on=(first, second)) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{first.management}: unregister linear 1.0",
            f"{second.management}: unregister linear 1.5",
        ]
        assert first.changes == second.changes == []

    async def test_as_json(self, start: Start, packed: Pack, capsys: pytest.CaptureFixture[str]) -> None:
        archive = packed()
        fleet = (await start(store=(archive,)), await start(store=(archive,)))
        step = {
            "action": "register",
            "model": "linear",
            "version": "1.0",
            "archive": "linear.mar",
            "workers": 1,
            "note": "",
        }
        steps = [{"instance": instance.management, **step} for instance in fleet]
        for words, done, fails in (
            (["--dry-run"], [False, False], None),
            ([], [True, False], FAILURE),
            ([], [True] * 2, None),
        ):
            fleet[1].before_change = lambda change, fails=fails: fails  # type: ignore[misc]
            code = await run("register", "--json", *words, archive, on=fleet)
            told = json.loads(capsys.readouterr().out)
            assert code == (0 if fails is None else 3)
            assert told["steps"] == [{**each, "done": was} for each, was in zip(steps, done, strict=True)]
            assert (told["dry_run"], told["undone"]) == (words == ["--dry-run"], fails is not None)
            assert bool(told["error"]) == (fails is not None)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["register", "x.mar", "--management", "127.0.0.1:8081"], "must be like http://HOST:PORT"),
            (["register", "x.mar", "--management", "http://h:1", "--management", "http://h:1/"], "is given twice"),
            (["register", "x.mar", "x.mar", "--management", "http://h:1"], "have one name and version"),
            (["register", "x.mar", "--management", "http://h:1", "--tls-ca", "x"], "there is no file or folder 'x'"),
            (["register", "nowhere/x.mar", "--management", "http://h:1"], "there is no file nowhere/x.mar; one that"),
            (["unregister", "/1.0", "--management", "http://h:1"], "a model is NAME or NAME/VERSION"),
            (["unregister", "m/1/2", "--management", "http://h:1"], "a model is NAME or NAME/VERSION"),
        ],
    )  # fmt: skip
    def test_usage(self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 2
        assert said in capsys.readouterr().err


def test_what_a_proxy_has_seen() -> None:
    view = ProxyView({"http://a": 3.0, "http://b": 9.0}, {"m/1.0": frozenset({"http://b"})}, {})
    assert view.missing({"http://a": 90.0, "http://b": 90.0, "http://elsewhere": 99.0}, [], 100.0) == ""
    assert view.missing({"http://a": 97.5}, [], 100.0) == "what was changed on http://a"
    assert view.missing({}, [("http://b", "m/1.0"), ("http://elsewhere", "m/1.0")], 100.0) == ""
    assert view.missing({}, [("http://a", "m/1.0")], 100.0) == "that http://a serves m/1.0 again"


@pytest.mark.parametrize(
    ("fit", "others", "missing"),
    [
        ("a", "b", "that http://b serves m/1.0"),
        ("a", "bc", "that http://b or http://c serves m/1.0"),
        ("ab", "bc", ""),
        ("b", "bc", ""),
        ("", "b", ""),
        ("a", "", ""),
        ("a", "d", ""),
        ("ac", "b", ""),
    ],
    ids=[
        "alone",
        "alone of three",
        "one of the others",
        "not itself",
        "nobody",
        "no other has it",
        "not in the proxy",
        "one that was not given",
    ],
)
def test_who_must_answer_before_an_instance_goes(fit: str, others: str, missing: str) -> None:
    used = {name: frozenset(urls("abc")) for name in ("m/1.0", "m/2.0")}
    view = ProxyView(dict.fromkeys(urls("abc"), 3.0), used, {"m/1.0": frozenset(urls(fit))})
    assert view.alone("http://a", "m/1.0", urls(others)) == missing
    assert view.alone("http://a", "m/2.0", urls(others)) == ""


def urls(letters: str) -> list[str]:
    return [f"http://{letter}" for letter in letters]


def seen_by_a_proxy(*serving: str, ejected: Sequence[str] = ()) -> dict[str, Any]:
    """A part of its `/status`: its instances are a and b."""
    endpoints = [
        {"instance": each, "row": None, "health": "out" if each in ejected else "in"}
        for each in (*filter(None, serving), *ejected)
    ]
    return {
        "instances": [{"name": each, "management": f"http://{each}/", "seen_s": 0.0} for each in "ab"],
        "pools": {"m/1.0": {"endpoints": [*endpoints, {"instance": "b", "row": 0, "health": "in"}]}},
    }


class TestSeveralProxies:
    """Before the model goes from a, each proxy must have b in its place."""

    step = RolloutStep("http://a", StepAction.UNREGISTER, "m", "1.0", settled=True, others=("http://b",))

    def settle(
        self, monkeypatch: pytest.MonkeyPatch, says: Mapping[str, Callable[[float], dict[str, Any]]]
    ) -> tuple[float, list[str]]:
        """`says`: by proxy, what it has seen by then. -> how long was waited, and whom was asked, in order."""
        now, asked = [0.0], []

        def ask(url: str) -> dict[str, Any]:
            asked.append(url)
            return says[url.removesuffix("/status")](now[0])

        monkeypatch.setattr(rollout, "POLL_S", 1.0)
        monkeypatch.setattr(admin_client, "ask", ask)
        Rollout(
            {}, print, print, pause=lambda s: now.append(now.pop() + s), clock=lambda: now[0], admins=[*says]
        )._settle(self.step)
        return now[0], asked

    def test_the_last_of_them_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited, asked = self.settle(
            monkeypatch,
            {
                "http://p": lambda now: seen_by_a_proxy("a", "b"),
                "http://q": lambda now: seen_by_a_proxy("a", *(["b"] if now >= 3 else [])),
            },
        )
        assert waited == 3
        assert asked == ["http://p/status", "http://q/status"] * 4

    def test_an_instance_that_is_ejected_does_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited, _ = self.settle(
            monkeypatch,
            {"http://p": lambda now: seen_by_a_proxy("a", "b") if now >= 2 else seen_by_a_proxy("a", ejected="b")},
        )
        assert waited == 2
        waited, _ = self.settle(monkeypatch, {"http://p": lambda now: seen_by_a_proxy(ejected="ab")})
        assert waited == 0, "nobody answers there, and a does no more than b"
        waited, _ = self.settle(
            monkeypatch, {"http://p": lambda now: seen_by_a_proxy("b" if now >= 2 else "", ejected="a")}
        )
        assert waited == 2, "without a, the proxy would know no instance"

    def test_it_does_not_wait_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        says = {"http://p": lambda now: seen_by_a_proxy("a", "b"), "http://q": lambda now: seen_by_a_proxy("a")}
        with pytest.raises(ManagementError) as caught:
            self.settle(monkeypatch, says)
        assert str(caught.value) == (
            f"after {rollout.SEEN_S:g} s, the proxy at http://q has not seen that http://b serves m/1.0: name an "
            "instance that it does not use first"
        )


async def test_a_proxy_that_cannot_tell_is_told_before_anything_is_done(
    start: Start,
    packed: Pack,
    make_fleet: MakeFleet,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = packed("2.0")
    instance, other = await start(FakeModel(), store=(new,)), FakeTorchServe(FakeModel())
    elsewhere = (await make_fleet(other)).proxy.admin_url
    before = served(instance)
    for admin, told in (
        (elsewhere, f"has none of these instances, but {other.management}: give the addresses as it has them"),
        (instance.management, "is this the admin port of a proxy?"),
        ("http://127.0.0.1:1", "is the proxy running, and is this its admin port?"),
    ):
        assert await run("register", "--replace", new, "--admin", admin, on=(instance,)) == 3
        assert told in capsys.readouterr().err
    assert served(instance) == before


@pytest.mark.parametrize("key", ["agreement", "tolerance", "row_errors", "confidence"])
def test_what_training_wrote_is_compared_with_what_is_registered(key: str) -> None:
    """The same code of another training, whose other figures happen to be equal."""
    here = {"code": "sum", "k": 2, key: {"0,1": [[2.0]]}}
    archive = SimpleNamespace(section=here, weights=lambda: "w", path=Path("sum.mar"))

    def client(told: object) -> Any:
        described = SimpleNamespace(customized={"ts_parity": {**here, "weights": "w", key: told}})
        return SimpleNamespace(url="http://one", describe=lambda *_, **__: described)

    check_content(client({"0,1": [[2.0]]}), "linear", "1.0", archive)  # type: ignore[arg-type]
    with pytest.raises(ManagementError, match=key):
        check_content(client({"0,1": [[3.0]]}), "linear", "1.0", archive)  # type: ignore[arg-type]
