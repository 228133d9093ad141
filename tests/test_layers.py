"""Lower rooms never import higher ones, heavy packages stay in their rooms, and importing the package is cheap."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ts_parity"

LEVELS = [
    {"engine"},
    {
        "admin_client",
        "arguments",
        "completion",
        "describe",
        "errors",
        "fingerprint",
        "keys",
        "output",
        "pages",
        "pairs",
        "startup",
        "tables",
    },
    {"wire", "config"},
    {"codes", "exclusion"},
    {"confidence"},
    {"proxy", "worker", "torchserve"},
    {"training"},
    {"doctor", "lab", "testing"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
HEAVY = {
    "torch": {"worker", "training"},
    "ts": {"worker", "lab"},
    "aiohttp": {"proxy", "lab", "testing"},
    "httptools": {"proxy"},
    "uvloop": {"proxy"},
    "lightning_fabric": {"training"},
    "matplotlib": {"lab"},
    "sklearn": {"training"},
    "prometheus_client": {"proxy"},
    "opentelemetry": {"proxy"},
    "requests": {"torchserve"},
}


@functools.cache
def imports_of(file, deferred=True):
    """Every module name that the file imports at its top and, `deferred`, inside functions."""
    return tuple(_imports_of(file, deferred))


def _imports_of(file, deferred):
    body = ast.parse(file.read_text()).body
    blocks = body if deferred else [node for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node in (inner for block in blocks for inner in ast.walk(block)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            if node.module == "ts_parity":
                yield from (f"ts_parity.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room_of(file):
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ("http", "fleet", "serving", "operations")
"""Of the proxy; each uses those before it. `app` puts them together."""


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_lower_never_imports_higher(file):
    room = room_of(file)
    if room == "__init__":
        assert not imports_of(file), "ts_parity/__init__.py imports nothing"
        return
    for module in imports_of(file):
        if not module.startswith("ts_parity."):
            continue
        other = module.split(".")[1]
        if other in (room, "__version__"):
            continue
        assert LEVEL[other] <= LEVEL[room], f"{room} imports {other}, which is higher"
        same_room_folder = LEVEL[other] == LEVEL[room] and (PACKAGE / room).is_dir()
        assert not same_room_folder, f"{room} and {other} are on one level and do not import each other"


def test_there_is_no_import_circle():
    """Not even for the type checker only: what knows each other stands in one file. What a function imports when it is
    called makes no circle.
    """
    names = {".".join(("ts_parity", *file.relative_to(PACKAGE).with_suffix("").parts)): file for file in FILES}
    imports = {
        name: {other for other in imports_of(file, deferred=False) if other in names} for name, file in names.items()
    }
    while leaves := [name for name, others in imports.items() if not others & imports.keys()]:
        for name in leaves:
            del imports[name]
    assert not imports, f"these import each other, or what does: {sorted(imports)}"


def test_a_class_name_occurs_once():
    """A name in an import, a traceback or a review means one thing."""
    files = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                files.setdefault(node.name, []).append(str(file.relative_to(PACKAGE)))
    assert {name: there for name, there in files.items() if len(there) > 1} == {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(file):
    for module in imports_of(file):
        allowed = HEAVY.get(module.split(".")[0])
        assert allowed is None or room_of(file) in allowed, f"{file} imports {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_the_proxy_use_only_those_before_them(room):
    files = sorted((PACKAGE / "proxy" / room).rglob("*.py"))
    assert len(files) > 2
    for file in files:
        for module in imports_of(file):
            other = module.removeprefix("ts_parity.proxy.").split(".")[0]
            later = ROOMS[ROOMS.index(room) + 1 :]
            assert not module.startswith("ts_parity.proxy.") or other not in later, f"{file} imports {module}"


def test_the_engine_needs_nothing_but_the_standard_library():
    for file in (PACKAGE / "engine").glob("*.py"):
        for module in imports_of(file):
            top = module.split(".")[0]
            inside = module.startswith("ts_parity.engine")
            assert inside or top in sys.stdlib_module_names, f"{file.name} imports {module}"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["-c", "import ts_parity"], ["-m", "ts_parity.cli", "--help"]])
def test_importing_and_asking_for_help_is_cheap(arguments):
    ran = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr[-2000:]
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in ran.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "aiohttp", "numpy", "requests", "matplotlib", "ts", "sklearn"}


@pytest.mark.slow
def test_bench_takes_no_more_than_the_proxys_packages(tmp_path):
    """Who measures first, as the README asks for, has installed `ts-parity[proxy]`."""
    (tmp_path / "body.json").write_text("{}")
    others = ["yaml", "torch", "psutil", "PIL", "requests", "sklearn", "ts", "lightning_fabric", "matplotlib"]
    code = f"import sys; sys.modules.update(dict.fromkeys({others})); from ts_parity.cli import main; sys.exit(main())"
    load = ["--target", "http://127.0.0.1:9/p", "--bodies", str(tmp_path), "--rate", "20", "--duration", "0.2s"]
    ran = subprocess.run([sys.executable, "-c", code, "bench", *load], capture_output=True, text=True, timeout=500)
    assert "no query of the warm-up was answered" in ran.stderr


@pytest.mark.slow
def test_a_wrong_command_line_is_exit_code_2():
    ran = subprocess.run(
        [sys.executable, "-m", "ts_parity.cli", "serve", "--endpoint", "nonsense"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 2
    assert "nonsense" in ran.stderr
