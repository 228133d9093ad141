"""The management client, against real TorchServe: what it reads, and what each refusal tells the reader to do."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from tests.conftest import BROKEN_HANDLER, NO_TORCH, TorchServeFactory, scale, write_archive
from ts_parity.cli import parsed
from ts_parity.describe import ModelDescription, WorkerProcess
from ts_parity.errors import ConfigError, ManagementError
from ts_parity.testing import FakeModel, FakeTorchServe
from ts_parity.torchserve import commands
from ts_parity.torchserve.launcher import TorchServeInstance
from ts_parity.torchserve.management import ManagementClient

real = [pytest.mark.torchserve, pytest.mark.slow]


@pytest.fixture(scope="module")
def fleet(torchserve_factory: TorchServeFactory, tmp_path_factory: pytest.TempPathFactory) -> list[TorchServeInstance]:
    """Two instances with token authorization and the model API on."""
    tiny = write_archive(tmp_path_factory.mktemp("archives") / "tiny.mar")
    return torchserve_factory.fleet([[tiny], [tiny]], token_auth=True, model_api=True, env=NO_TORCH)


@pytest.fixture(scope="module")
def plain(torchserve_factory: TorchServeFactory, tmp_path_factory: pytest.TempPathFactory) -> TorchServeInstance:
    """The model API off, no tokens."""
    return torchserve_factory([write_archive(tmp_path_factory.mktemp("archives") / "tiny.mar")], env=NO_TORCH)


@pytest.fixture
def client(fleet: list[TorchServeInstance]) -> Iterator[ManagementClient]:
    with fleet[0].management() as client:
        yield client


class TestAgainstTorchServe:
    pytestmark = real

    def test_describe(self, fleet: list[TorchServeInstance], client: ManagementClient) -> None:
        described = client.describe("tiny")
        assert (described.name, described.version, described.url) == ("tiny", "1.0", "tiny.mar")
        assert described.ready
        assert described.customized is None
        assert [worker.pid for worker in described.workers] == fleet[0].worker_pids("tiny")

    def test_describe_customized_is_what_the_handler_says(self, client: ManagementClient) -> None:
        described = client.describe("tiny", customized=True)
        assert described.customized == {"tiny": {"pid": described.workers[0].pid}}

    def test_describe_customized_of_a_frozen_worker_times_out_and_plain_describe_does_not(
        self, fleet: list[TorchServeInstance], client: ManagementClient
    ) -> None:
        (pid,) = fleet[1].worker_pids("tiny")
        os.kill(pid, signal.SIGSTOP)
        try:
            with fleet[1].management() as frozen:
                assert frozen.describe("tiny").ready  # the status is the frontend's view
                with pytest.raises(ManagementError, match=r"did not answer .* within 0\.5 s"):
                    frozen.describe("tiny", customized=True, timeout_s=0.5)
        finally:
            os.kill(pid, signal.SIGCONT)

    def test_register_scale_default_unregister_and_paging(
        self, fleet: list[TorchServeInstance], client: ManagementClient, tmp_path: Path
    ) -> None:
        for version in ("1.0", "2.0"):
            archive = write_archive(tmp_path / f"more-{version}.mar", name="more", version=version)
            said = client.register(fleet[0].add_archive(archive), batch_size=2, max_batch_delay_ms=3)
            assert f'Model "more" Version: {version} registered with 1 initial workers' in said
        assert [d.version for d in client.describe_all("more")] == ["1.0", "2.0"]
        assert (client.describe("more").version, client.describe("more").batch_size) == ("1.0", 2)
        assert [model.name for model in client.models(page=1)] == ["more", "tiny"]
        client.set_default("more", "2.0")
        assert client.describe("more").version == "2.0"
        scale(fleet[0], "more", 2, "2.0")
        assert len(client.describe("more").workers) == 2
        with pytest.raises(ManagementError, match=r"\(403\).*set another version as the default first"):
            client.unregister("more", "2.0")
        client.unregister("more", "1.0")
        client.unregister("more")
        assert [model.name for model in client.models()] == ["tiny"]

    def test_refusals_say_what_to_do(
        self, fleet: list[TorchServeInstance], client: ManagementClient, tmp_path: Path
    ) -> None:
        broken = fleet[0].add_archive(write_archive(tmp_path / "bad.mar", BROKEN_HANDLER))
        with pytest.raises(ManagementError, match="traceback is in the instance's model log") as refused:
            client.register(broken)
        assert refused.value.upstream_status == 500
        assert [model.name for model in client.models()] == ["tiny"]
        for url in ("nowhere.mar", "/etc/nowhere.mar", "../nowhere.mar"):
            with pytest.raises(ManagementError, match="plain file name inside the instance's own model store"):
                client.register(url)
        with pytest.raises(ManagementError, match="--replace it, unregister it first"):
            client.register("tiny.mar")
        with pytest.raises(ManagementError, match="GET /models lists the models"):
            client.describe("nobody")
        with pytest.raises(ManagementError, match="does not exist"):
            client.set_default("tiny", "9.9")

    def test_each_instance_has_its_own_key(self, fleet: list[TorchServeInstance]) -> None:
        for token in (None, "wrong", fleet[1].token()):
            client = ManagementClient(fleet[0].management_url, token)
            with pytest.raises(ManagementError, match="this instance's own management key") as refused:
                client.models()
            assert refused.value.upstream_status == 400
        answer = requests.post(
            f"{fleet[0].inference_url}/predictions/tiny",
            data=b"x",
            headers={"Authorization": f"Bearer {fleet[0].token('inference')}"},
            timeout=60,
        )
        assert answer.content == b"x"

    def test_model_api_off_and_the_wrong_port(self, plain: TorchServeInstance) -> None:
        assert plain.token() is None
        with plain.management() as client:
            with pytest.raises(ManagementError, match="--enable-model-api") as refused:
                client.register("tiny.mar")
            assert refused.value.upstream_status == 405
            scale(plain, "tiny", 1)  # allowed all the same
        with pytest.raises(ManagementError, match="not a management address"):
            ManagementClient(plain.inference_url).describe("tiny")

    def test_the_register_command(
        self, fleet: list[TorchServeInstance], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Both instances, each with its own key."""
        archive = write_archive(tmp_path / "by_hand.mar")
        tokens = [part for instance in fleet for part in ("--token", str(instance.token()))]
        urls = [part for instance in fleet for part in ("--management", instance.management_url)]
        args = parsed(["register", "by_hand.mar", *urls, *tokens, "--batch-size", "2"])
        with pytest.raises(ManagementError, match=r"inside the instance's own model store. What was done is undone"):
            args.run(args)
        for instance in fleet:
            instance.add_archive(archive)
        assert args.run(args) == 0
        assert capsys.readouterr().out.count('Model "by_hand" Version: 1.0 registered') == 2
        for instance in fleet:
            with instance.management() as client:
                assert client.describe("by_hand").batch_size == 2
        args = parsed(["unregister", "by_hand", *urls, *tokens])
        assert args.run(args) == 0
        for instance in fleet:
            with instance.management() as client:
                assert [model.name for model in client.models()] == ["tiny"]

    async def test_the_fake_answers_as_torchserve_does(self, fleet: list[TorchServeInstance], tmp_path: Path) -> None:
        fake = FakeTorchServe()
        for version in ("1.0", "2.0"):
            archive = fleet[0].add_archive(
                write_archive(tmp_path / f"more-{version}.mar", name="more", version=version)
            )
            fake.store[archive] = FakeModel("more", version)
        broken = fleet[0].add_archive(write_archive(tmp_path / "broken.mar", BROKEN_HANDLER))
        fake.store[broken] = FakeModel("broken", loads=False)
        register = "/models?initial_workers=1&synchronous=true&url="
        requested = [
            ("POST", f"{register}more-1.0.mar"),
            ("POST", f"{register}more-1.0.mar"),
            ("POST", f"{register}more-1.0.mar&model_name=other"),
            ("POST", f"{register}nowhere.mar"),
            ("POST", f"{register}{broken}"),
            ("POST", f"{register}more-2.0.mar"),
            ("GET", "/models/more/9"),
            ("PUT", "/models/more/9/set-default"),
            ("PUT", "/models/nobody/9/set-default"),
            ("DELETE", "/models/more/1.0"),
            ("PUT", "/models/more/2.0/set-default"),
            ("DELETE", "/models/more/1.0"),
            ("DELETE", "/models/more/1.0"),
            ("DELETE", "/models/more"),
            ("DELETE", "/models/more"),
            ("DELETE", "/models/other/1.0"),
        ]
        async with fake:
            for method, path in requested:
                answers = [
                    await asyncio.to_thread(requests.request, method, url + path, headers=headers, timeout=60)
                    for url, headers in (
                        (fleet[0].management_url, {"Authorization": f"Bearer {fleet[0].token()}"}),
                        (fake.management, {}),
                    )
                ]
                real, ours = ((answer.status_code, answer.json()) for answer in answers)
                assert ours == real, (method, path)


def test_register_wants_a_token_for_each_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    two = ["register", "x.mar", "--management", "http://127.0.0.1:1", "--management", "http://127.0.0.1:2"]
    args = parsed([*two, "--token", "one"])
    with pytest.raises(ConfigError, match="2 --management and 1 --token"):
        args.run(args)
    monkeypatch.setenv(commands.TOKEN_VARIABLE, "one")
    args = parsed(two)
    with pytest.raises(ConfigError, match="is for one instance"):
        args.run(args)


@pytest.mark.parametrize("key", ["plain", "-dash", "--workers", "-"])
def test_a_key_may_begin_with_a_dash(key: str) -> None:
    """One in 64 does: TorchServe makes them of 64 characters, and the dash is one of them."""
    args = parsed(["register", "x.mar", "--token", key, "--management", "http://127.0.0.1:1", f"--token={key}"])
    assert args.token == [key, key]
    assert args.management == ["http://127.0.0.1:1"]
    assert args.archives == ["x.mar"]


def test_nobody_there() -> None:
    with pytest.raises(ManagementError, match=r"cannot reach .*Connection refused"):
        ManagementClient("http://127.0.0.1:1").models()


class _Odd(BaseHTTPRequestHandler):
    answers: tuple[int, bytes] = (200, b"")

    def do_GET(self) -> None:
        status, body = self.answers
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "with no JSON"),
        (200, b"[]", "described no version"),
        (200, b'[{"modelName": 1}]', "in a shape unknown here"),
        (200, b'{"a": 1}', "in a shape unknown here"),
        (502, b"bad gateway", r"\(502\): bad gateway"),
        (500, b"", r"\(500\): no message"),
        (500, b"[1]", r"\(500\): \[1\]"),
    ],
)
def test_answers_of_something_else(status: int, body: bytes, said: str) -> None:
    """Whatever sits at that address, the answer is a ManagementError."""
    server = HTTPServer(("127.0.0.1", 0), type("Odd", (_Odd,), {"answers": (status, body)}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with pytest.raises(ManagementError, match=said):
            ManagementClient(f"http://127.0.0.1:{server.server_port}").describe("tiny")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_model_is_ready_with_all_its_workers_only() -> None:
    def described(*statuses: str) -> ModelDescription:
        workers = tuple(WorkerProcess(str(i), status, 10 + i, False, "") for i, status in enumerate(statuses))
        return ModelDescription("m", "1.0", "m.mar", 2, 2, 1, 100, 120, workers, 0, 100)

    assert described("READY", "READY").ready
    assert not described("READY", "LOADING").ready
    assert not described("READY").ready
    assert not described().ready
