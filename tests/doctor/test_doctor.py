"""The command, against fake instances and a real proxy, as an operator gives it."""

from __future__ import annotations

import asyncio
import json
import tarfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.authority import Authority
from tests.proxy.conftest import MakeFleet, authority, make_fleet  # noqa: F401  (fixtures)
from ts_parity.cli import main
from ts_parity.config import Settings, parse_endpoint
from ts_parity.doctor.catalogue import CHECKS
from ts_parity.doctor.commands import admin_address
from ts_parity.doctor.gather import ask_proxy
from ts_parity.testing import FakeModel, FakeTorchServe, protection

Doctor = Callable[..., Awaitable[tuple[int, str]]]
OF_THE_MACHINE = {"TSP-101", "TSP-102"}
"""What these find depends on where the test runs."""


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Awaited with words, it gives exit code and standard output. In a thread, since it has a loop of its own."""

    async def run(*words: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["doctor", *words])
        return code, capsys.readouterr().out

    return run


def found(out: str) -> dict[str, list[str]]:
    return {r["id"]: r["findings"] for r in json.loads(out)["checks"] if r["result"] not in ("ok", "unknown")}


async def test_before_a_start(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One address is of another port, one instance wants keys, one takes only small requests."""
    monkeypatch.setenv("TS_PARITY_MAX_BODY_BYTES", "6000000")
    async with (
        FakeTorchServe(FakeModel(), protection(code="student"), max_request_size=10_000_000) as small,
        FakeTorchServe(FakeModel(), token="t", management_token="m") as locked,
        FakeTorchServe(FakeModel()) as swapped,
    ):
        code, out = await doctor(
            "--pre", "--json", "--endpoint", small.endpoint, "--endpoint", locked.endpoint,
            "--endpoint", f"{swapped.inference},management={swapped.inference}",
        )  # fmt: skip
        wrong = found(out)
        assert code == 2 == json.loads(out)["exit_code"]
        assert set(wrong) - OF_THE_MACHINE == {"TSP-202", "TSP-203", "TSP-204", "TSP-404", "TSP-405"}
        assert "the management port?" in wrong["TSP-202"][0]
        assert locked.inference.removeprefix("http://") in wrong["TSP-203"][0]
        assert "Token Authorization failed" in wrong["TSP-204"][0]
        assert "refuses a request of 12008192 bytes" in wrong["TSP-405"][0]

        keys = f"{locked.endpoint},token=t,management_token=m"
        code, out = await doctor("--pre", "--endpoint", keys, "--endpoint", small.endpoint)
        assert code == 0
        assert "TSP-203" not in out
        assert "TSP-405 warning" in out
        assert "what to do: Raise max_request_size" in " ".join(out.split())
        assert "see docs/doctor.md#tsp-405" in out
        assert "checks passed" in out.splitlines()[-1]
        assert (await doctor("--pre", "--strict", "--endpoint", keys, "--endpoint", small.endpoint))[0] == 2
        assert not any(request.method == "POST" for each in (small, locked) for request in each.received)


async def test_a_protected_fleet_with_defaults_is_no_warning_until_bodies_are_too_large(
    doctor: Doctor,
    make_fleet: MakeFleet,  # noqa: F811
) -> None:
    """TorchServe and proxy both allow 6,553,500 bytes by default, so k bodies of that size never fit; few send such."""

    async def said(*more: str) -> dict[str, Any]:
        _, out = await doctor("--json", *more)
        return {check["id"]: check for check in json.loads(out)["checks"]}["TSP-405"]

    instances = [FakeTorchServe(FakeModel(), protection(code="student"), max_request_size=20_000) for _ in range(2)]
    fleet = await make_fleet(*instances)
    admin = ("--admin", fleet.proxy.admin_url)
    assert (await said("--pre", "--endpoint", instances[0].endpoint))["result"] == "unknown"
    assert (await said(*admin))["result"] == "unknown"
    await fleet.post()
    assert (await said(*admin))["result"] == "ok"
    await fleet.post(x=b"[1, 2" + b" " * 8_000 + b"]")
    wrong = await said(*admin)
    assert wrong["result"] == "warning"
    assert "refuses a request of 24204 bytes" in wrong["findings"][0]


async def test_certificates_are_read_whether_or_not_they_are_trusted(doctor: Doctor, authority: Authority) -> None:  # noqa: F811
    """The instance's ended yesterday, so no proxy would talk to it; that is the cause, and it is told."""
    async with FakeTorchServe(FakeModel(), tls=authority.serving(expired=True)) as ended:
        words = ("--pre", "--json", "--endpoint", f"{ended.endpoint},tls_ca={authority.pem}")
        code, out = await doctor(*words)
    wrong = found(out)
    assert code == 3
    assert wrong["TSP-103"] == [
        f"the certificate of {url} expired 1 day ago" for url in (ended.inference, ended.management)
    ]
    assert "certificate has expired" in wrong["TSP-201"][0]


@pytest.mark.parametrize(
    ("given", "asked"),
    [({}, "http://127.0.0.1:8090"), ({"admin_host": "0.0.0.0"}, "http://127.0.0.1:8090"),
     ({"admin_host": "::", "admin_port": 9000}, "http://[::1]:9000"), ({"admin_host": "h"}, "http://h:8090")],
)  # fmt: skip
def test_the_proxy_is_asked_where_the_configuration_has_it(given: dict[str, Any], asked: str) -> None:
    assert admin_address(replace(Settings(), **given)) == asked


@pytest.mark.parametrize("said", [{}, {"pools": 3}, {"instances": [3]}], ids=str)
def test_what_is_no_status_is_told_as_such(said: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program at that port, or a proxy of another version."""
    monkeypatch.setattr("ts_parity.doctor.gather.ask", lambda url: said)
    status, why = ask_proxy("http://h:8090")
    assert status is None
    assert "no status of a proxy of this version" in why


async def test_an_instance_that_is_not_there_is_something_outside(doctor: Doctor) -> None:
    async with FakeTorchServe(FakeModel()) as gone:
        address = gone.endpoint
    code, out = await doctor("--pre", "--endpoint", address)
    assert code == 3
    assert "TSP-201 ERROR" in out
    assert "TSP-303" not in out, "what cannot be told is not printed"
    assert "TSP-303 not known" in (await doctor("--pre", "--all", "--endpoint", address))[1]


async def test_beside_a_running_proxy(doctor: Doctor, make_fleet: MakeFleet, tmp_path: Path) -> None:  # noqa: F811
    """Its instances are those that it tells. Then with the keys of its configuration, and a bundle without them."""
    secret = "only-the-proxy-knows"
    locked = FakeTorchServe(FakeModel(), token=secret, management_token=secret)
    async with FakeTorchServe(FakeModel()) as other, locked:
        keyed = f"{locked.endpoint},token={secret},management_token={secret}"
        given = (parse_endpoint(other.endpoint), parse_endpoint(keyed))
        fleet = await make_fleet(given=given)
        admin = ("--admin", fleet.proxy.admin_url)

        code, out = await doctor("--json", *admin)
        told = {r["id"]: r for r in json.loads(out)["checks"]}
        assert code == 0
        assert [told[id]["result"] for id in ("TSP-203", "TSP-204", "TSP-501", "TSP-502")] == ["unknown"] * 2 + [
            "ok"
        ] * 2
        assert [r["id"] for r in told.values()] == [check.id for check in CHECKS]

        file = tmp_path / "report.tar.gz"
        words = (*admin, "--endpoint", keyed, "--bundle", str(file))
        code, out = await doctor("--json", *words)
        wrong = found(out)
        assert code == 0
        assert wrong["TSP-503"][0].endswith("is known to the running proxy, and not configured")
        assert wrong["TSP-402"] == ["linear/1.0: no protection for it was found"]
        with tarfile.open(file) as bundle:
            names = {name.partition("/")[2]: bundle.extractfile(name).read() for name in bundle.getnames()}  # type: ignore[union-attr]
        assert set(names) == {
            "versions.json", "checks.json", "settings.json", "instances.json", "problems.json", "status.json",
            "metrics.txt",
        }  # fmt: skip
        assert json.loads(names["settings.json"])["instances"][0]["token"] == "[given]"
        assert json.loads(names["status.json"])["instances"]
        assert b"ts_parity_" in names["metrics.txt"]
        assert not any(secret.encode() in content for content in names.values())
        assert (await doctor(*words))[0] == 2, "a bundle that is there is not overwritten"
