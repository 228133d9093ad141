"""Bodies of every kind, small."""

import numpy as np
import pytest

from ts_parity.training import cost, sizing


@pytest.fixture(scope="package", autouse=True)
def a_few_rounds():
    """Groups that are timed, and bodies that are run five times: a hundred of each, job after job, was most of what
    these tests took.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cost, "ROUNDS", 8)
        patched.setattr("ts_parity.training.job.MOST", 24)
        yield


@pytest.fixture
def the_clock():
    """It says how wide a network may be whose multiplications cannot be counted."""


@pytest.fixture(autouse=True)
def no_clock(monkeypatch, request):
    """Else: such a network is as wide as the built-in one, however busy the machine is, and nothing pauses."""
    if "the_clock" not in request.fixturenames:
        monkeypatch.setattr(sizing, "by_the_clock", lambda make, *_: make(1.0) and 1.0)
        monkeypatch.setattr(sizing, "PAUSE_S", 0.0)


@pytest.fixture
def folder(tmp_path):
    for name in ("dog/b.jpg", "cat/a.png", "dog/c.txt", "dog/.hidden"):
        file = tmp_path / "bodies" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path / "bodies"


@pytest.fixture
def arrays(tmp_path):
    file = tmp_path / "set.npz"
    images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    np.savez(file, x=images, y=np.array([2, 0, 1]), boxes=np.eye(3, 4))
    return file


@pytest.fixture
def bodies(tmp_path):
    """Vectors of eight float32 numbers."""
    folder = tmp_path / "bodies"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(120):
        (folder / f"{number:03d}.bin").write_bytes(rng.normal(size=8).astype(np.float32).tobytes())
    return folder


@pytest.fixture
def json_bodies(tmp_path):
    """The same, as lines of JSON."""
    rng = np.random.default_rng(0)
    file = tmp_path / "bodies.jsonl"
    file.write_text("".join(f"{[round(float(x), 4) for x in rng.normal(size=8)]}\n" for _ in range(120)))
    return file
