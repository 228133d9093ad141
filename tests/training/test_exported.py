"""Archives whose model was made by torch.export: the program itself, and what AOTInductor compiles of it.

TorchServe's own BaseHandler loads a library (.so) made by AOTInductor, and no .pt2; a handler of one's own loads both.
"""

import shutil
import zipfile

import pytest
import requests
import torch

from tests.conftest import write_archive
from tests.worker.serving import split_tail
from ts_parity.torchserve.archive import extract_archive, read_archive, wrap_deployed
from ts_parity.training import TrainSettings, train
from ts_parity.wire import FRAME_TYPE, OP, RAW, Frame, Part, pack_frame, unpack_frame
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.verdict import VerdictState

pytestmark = pytest.mark.slow

STOCK = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Handler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row["body"] for row in data], dtype=torch.float32)
"""
OWN = """
import os
import torch
from ts.torch_handler.base_handler import BaseHandler

class Handler(BaseHandler):
    def initialize(self, context):
        file = os.path.join(context.system_properties["model_dir"], context.manifest["model"]["serializedFile"])
        self.model = {load}
        self.device = torch.device("cpu")
    def preprocess(self, data):
        return torch.tensor([row["body"] for row in data], dtype=torch.float32)
"""
HANDLERS = {
    "program": (OWN.format(load="torch.export.load(file).module()"), ".pt2", None),
    "one at a time": (OWN.format(load="torch.export.load(file).module()"), ".pt2", None),
    "package": (OWN.format(load="torch._inductor.aoti_load_package(file)"), ".pt2", None),
    "library": (STOCK, ".so", "pt2:\n  export:\n    aot_compile: true\n"),
}
compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor makes C++, and there is no g++")
KINDS = ["program", "one at a time", *(pytest.param(kind, marks=compiles) for kind in ("package", "library"))]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """`archive(kind)` -> an archive; what takes a compiler is compiled once."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval()
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def make(kind):
        rows = 1 if kind == "one at a time" else torch.export.Dim("rows", min=1, max=1024)
        shown = (torch.zeros(1 if rows == 1 else 2, 8),), {"dynamic_shapes": None if rows == 1 else ({0: rows},)}
        handler, suffix, config = HANDLERS[kind]
        file = folder / f"{kind}{suffix}"
        if kind == "library":
            # Of the package, which is a zip around it: compiling takes half a minute of processor time.
            get("package")
            with zipfile.ZipFile(folder / "package.pt2") as package:
                (library,) = (name for name in package.namelist() if name.endswith(".so"))
                file.write_bytes(package.read(library))
        elif kind == "package":
            program = torch.export.export(net, shown[0], **shown[1])
            # Nothing is to be fast but the compiler: headers compiled beforehand pay where there is more than one small
            # model, and which vectors this machine has would be found out by compiling.
            options = {
                "aot_inductor.precompile_headers": False,
                "aot_inductor.compile_wrapper_opt_level": "O0",
                "cpp.vec_isa_ok": False,
            }
            torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
        else:
            torch.export.save(torch.export.export(net, shown[0], **shown[1]), file)
        weights = file.read_bytes()
        path = folder / kind / "vec.mar"
        return write_archive(path, handler, name="vec", serialized=weights, suffix=suffix, config=config)

    def get(kind):
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    return get


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_protections_of_an_exported_model(archive, json_bodies, tmp_path, kind):
    """A program can be copied and learn, if it was exported for batches; a compiled one can only be asked."""
    source, out = archive(kind), tmp_path / "out"
    extract_archive(source, tmp_path / "x")
    with OfflineHandler(tmp_path / "x") as handler:
        lines = json_bodies.read_bytes().splitlines()[:2]
        verdict = handler.judge([handler.request(line, "application/json") for line in lines])
    assert verdict.state is VerdictState.CODABLE, verdict.reason
    codes = ("sum", "student", "exact")
    report = train(TrainSettings(source, json_bodies, out, codes=codes, steps=100, score=json_bodies, progress=False))
    made = {candidate["code"]: candidate for candidate in report["candidates"]}
    assert made["sum"]["architecture"] == ("deployed" if kind == "program" else "mlp")
    assert made["exact"]["agreement"] == 1.0
    assert min(made[code]["agreement"] for code in ("sum", "student")) > 0.4
    assert read_archive(out / made["student"]["archives"][0]).section["parity_model"], "beside it, as TorchScript"


@pytest.mark.long
@pytest.mark.torchserve
@pytest.mark.parametrize("kind", ["program", pytest.param("library", marks=compiles)])
def test_torchserve_serves_it_and_its_protections(archive, json_bodies, tmp_path, torchserve_factory, kind):
    """The library through TorchServe's own BaseHandler, the program through one of one's own."""
    source, out = archive(kind), tmp_path / "out"
    report = train(TrainSettings(source, json_bodies, out, codes=("sum", "exact"), steps=20, progress=False))
    parity, exact = (candidate["archives"][0] for candidate in report["candidates"])
    deployed = wrap_deployed(source, tmp_path, "wrapped")
    server = torchserve_factory([source, deployed, out / parity, out / exact], env={"PYTHONPATH": ""})
    lines = json_bodies.read_bytes().splitlines()[:4]
    asked = (
        Part((("content-type", "application/json"),), lines[0]),
        Part((("content-type", "application/json"),), lines[1]),
    )

    def post(model, body, **headers):
        answer = requests.post(f"{server.inference_url}/predictions/{model}", data=body, headers=headers, timeout=60)
        answer.raise_for_status()
        return answer

    kind = {"content-type": "application/json"}
    plain = post("vec", lines[0], **kind).content
    for line in lines[2:]:  # without samples, two live requests are watched first
        post("wrapped", line, **kind, **{OP: "raw"})
    raw = post("wrapped", lines[0], **kind, **{OP: "raw"})
    body, output = split_tail(raw.content, raw.headers[RAW])
    assert body == plain
    assert output.shape == (1, 3)
    group = {OP: "group", "content-type": FRAME_TYPE}
    answered = unpack_frame(post(exact.removesuffix(".mar"), pack_frame(Frame(asked)), **group).content)
    assert answered.slots[0].body == plain, "bit by bit"
    summed = unpack_frame(post(parity.removesuffix(".mar"), pack_frame(Frame(asked)), **group).content)
    assert summed.covers == {0, 1}
    assert summed.raw.shape == (1, 3)
