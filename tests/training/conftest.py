"""Bodies of every kind, small."""

import numpy as np
import pytest


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
