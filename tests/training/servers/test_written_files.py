"""What is written for servers, run as they run it: by a stub of Triton's Python backend, and one of LitServe.

The files must stand alone, so they are run from where they were written, in a process that can import neither
ts_parity nor torch: numpy is enough for a network of plain layers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.training.pairs import binary, classes, inputs, json_pair, of_rows, open_inference, written
from ts_parity.training import PairSettings, train_from_pairs
from ts_parity.training.servers.student_runtime import Student

pytestmark = pytest.mark.slow

STUBS = {
    "triton_python_backend_utils.py": """
        import sys
        import numpy as np
        class Tensor:
            def __init__(self, name, array):
                self._name, self._array = name, array
            def name(self):
                return self._name
            def as_numpy(self):
                first = [*self._array.flat, 0][0]
                return self._array if "numpy 1" not in sys.argv else np.full_like(self._array, first)
            def __dlpack__(self, **how):
                return self._array.__dlpack__(**how)
            def __dlpack_device__(self):
                return self._array.__dlpack_device__()
        class TritonError:
            def __init__(self, message):
                self.text = message
            def message(self):
                return self.text
        class InferenceResponse:
            def __init__(self, output_tensors=(), error=None):
                self.tensors, self.failed = output_tensors, error
            def output_tensors(self):
                return self.tensors
            def has_error(self):
                return self.failed is not None
            def error(self):
                return self.failed
        class InferenceRequest:
            def __init__(self, tensors):
                self.tensors = tensors
        def get_input_tensor_by_name(request, name):
            return next((each for each in request.tensors if each.name() == name), None)
    """,
    "litserve.py": """
        class LitAPI:
            def __init__(self, api_path="/predict"):
                self.api_path = api_path
        class LitServer:
            def __init__(self, api, accelerator="auto", workers_per_device=1):
                print("SERVES", api.api_path, accelerator, workers_per_device)
            def run(self, host="0.0.0.0", port=8000, generate_client_file=True):
                print("RUNS", host, port, generate_client_file)
    """,
}


def ran(folder: Path, script: str, *arguments: str) -> Any:
    """The last that the script prints as JSON."""
    return lines(folder, script, *arguments)[-1]


def lines(folder: Path, script: str, *arguments: str) -> list[Any]:
    """What the script prints as JSON, with the stubs and without ts_parity."""
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    for name, text in STUBS.items():
        (stubs / name).write_text(textwrap.dedent(text))
    alone = "import sys\nsys.modules.update(ts_parity=None, torch=None, onnxruntime=None)\n"
    (folder / "script.py").write_text(alone + textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, "-P", str(folder / "script.py"), *arguments],
        env={"PYTHONPATH": str(stubs), "PATH": "", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] in '[{"']


def two_tensors(x: Any, y: Any) -> Any:
    """Of two inputs of different datatypes, and two outputs."""
    one = {"name": "x", "shape": list(x.shape), "datatype": "FP64", "data": x.ravel().tolist()}
    other = {"name": "n", "shape": [len(x), 1], "datatype": "INT32", "data": [int(10 * row[0]) for row in x]}
    sums = {"name": "sum", "shape": [len(x), 1], "datatype": "FP32", "data": x.sum(1).tolist()}
    probs = {"name": "probs", "shape": list(y.shape), "datatype": "FP32", "data": y.ravel().tolist()}
    return json_pair({"inputs": [one, other]}, {"outputs": [probs, sums]}, "/v2/models/two/infer", "two/3")


FORMS = {
    "open": lambda: of_rows(open_inference, 60, rows=(1, 2)),
    "binary": lambda: of_rows(binary, 60),
    "whole": lambda: of_rows(open_inference, 60, rows=(2,)),
    "two": lambda: of_rows(two_tensors, 60),
    "json": lambda: of_rows(
        lambda x, y: json_pair(
            {"input": {"x": x[0].tolist()}, "k": 1},
            {"probs": y[0].tolist(), "top": {"label": "abc"[y[0].argmax()], "score": float(y.max())}, "uuid": str(x)},
        ),
        80,
    ),
    "rows": lambda: of_rows(lambda x, y: json_pair({"instances": x.tolist()}, {"predictions": y.tolist()}), 60, (2, 1)),
}


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for form, pairs in FORMS.items():
        folder = tmp_path_factory.mktemp(form)
        output = ("/probs",) if form == "json" else ()
        settings = PairSettings(
            (written(folder / "pairs", pairs()),),
            folder / "out",
            output=output,
            steps=10,
            parameters=500,
            progress=False,
        )
        train_from_pairs(settings)
        made[form] = folder / "out"
    return made


ASKS_TRITON = """
    import json, numpy as np
    import triton_python_backend_utils as pb
    folder, asked = sys.argv[1], json.loads(sys.argv[2])
    sys.path.append(folder + "/1")
    from model import TritonPythonModel
    model = TritonPythonModel()
    model.initialize({"model_repository": folder, "model_version": "1", "model_name": "m"})
    requests = [
        pb.InferenceRequest([pb.Tensor(name, np.array(data, dtype)) for name, (dtype, data) in each.items()])
        for each in asked
    ]
    print(json.dumps([
        response.error().message() if response.has_error() else
        {t.name(): [str(t.as_numpy().dtype), t.as_numpy().tolist()] for t in response.output_tensors()}
        for response in model.execute(requests)
    ]))
"""


@pytest.mark.parametrize("form", ["open", "binary", "whole", "two"])
def test_tritons_python_backend_answers_as_the_student(students: dict[str, Path], tmp_path: Path, form: str) -> None:
    """Each request of a batch with its own rows; one of a wrong shape with an error, and the others all the same."""
    student = Student(students[form])
    name = student.about["name"]
    rows = [inputs(2, 5), inputs(2, 6)] if form == "whole" else [inputs(n, n) for n in (1, 3, 2)]
    given = [[x, (10 * x[:, :1]).astype("i4")] if form == "two" else [x.astype("f4")] for x in rows]
    dtypes = ["float64", "int32"] if form == "two" else ["float32"]
    asked = [
        {told["name"]: (dtype, x.tolist()) for told, dtype, x in zip(student.inputs, dtypes, each, strict=True)}
        for each in given
    ]
    told = ran(tmp_path, ASKS_TRITON, str(students[form] / "triton" / name), json.dumps(asked))
    assert len(told) == len(rows)
    for each, answer in zip(given, told, strict=True):
        for output, expected in zip(student.outputs, student(each), strict=True):
            dtype, data = answer[output["name"]]
            assert dtype == "float32"
            assert np.shape(data) == expected.shape
            np.testing.assert_allclose(data, expected, rtol=1e-4, atol=1e-5)
    wrong = [asked[0], {key: (dtype, [[1.0, 2.0]]) for key, (dtype, _) in asked[0].items()}]
    good, bad = ran(tmp_path, ASKS_TRITON, str(students[form] / "triton" / name), json.dumps(wrong))
    for output in student.outputs:
        np.testing.assert_allclose(good[output["name"]][1], told[0][output["name"]][1], rtol=1e-4, atol=1e-6)
    assert "must have the shape" in bad


def test_a_backend_that_cannot_read_arrays_of_this_numpy_says_so(students: dict[str, Path], tmp_path: Path) -> None:
    """It hands over the first number in all places: of no rows, or of zeros, nothing is to be seen yet."""
    name = Student(students["open"]).about["name"]
    folder = str(students["open"] / "triton" / name)
    several = (np.zeros((0, 4)), np.zeros((1, 4)), inputs(1, 1), np.zeros((1, 4)))
    asked = [[{"x": ("float32", rows.tolist())}] for rows in several]
    script = ASKS_TRITON.replace("json.loads(sys.argv[2])\n", "[]\n") + textwrap.dedent("""
        for asked in json.loads(sys.argv[2]):
            (each,) = asked
            (data,) = [np.array(rows, dtype).reshape(-1, 4) for dtype, rows in each.values()]
            request = pb.InferenceRequest([pb.Tensor("x", data)])
            (response,) = model.execute([request])
            print(json.dumps(response.error().message() if response.has_error() else "answered"))
    """).replace("\n", "\n    ")
    for how, expected in (
        ((), ["cannot reshape", *["answered"] * 3]),
        (("numpy 1",), ["cannot reshape", "answered", "cannot read arrays", "cannot read arrays"]),
    ):
        told = lines(tmp_path, script, folder, json.dumps(asked), *how)[-4:]
        assert [word in answer for word, answer in zip(expected, told, strict=True)] == [True] * 4, told


def test_tritons_configuration_says_what_was_recorded(students: dict[str, Path]) -> None:
    config = (students["open"] / "triton/big-student/config.pbtxt").read_text()
    assert config == (
        'name: "big-student"\nbackend: "python"\nmax_batch_size: 64\n'
        'input [\n\n  { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }\n]\n'
        'output [\n\n  { name: "probs" data_type: TYPE_FP32 dims: [ 3 ] }\n]\n'
        "dynamic_batching { }\ninstance_group [ { kind: KIND_CPU count: 1 } ]\n"
    )
    whole = (students["whole"] / "triton/big-student/config.pbtxt").read_text()
    assert "max_batch_size: 0\n" in whole
    assert "dims: [ 2, 4 ]" in whole
    assert "dynamic_batching" not in whole
    two = (students["two"] / "triton/two-student/config.pbtxt").read_text()
    assert 'name: "n" data_type: TYPE_INT32 dims: [ 1 ] }' in two
    assert not (students["json"] / "triton").exists()


@pytest.mark.parametrize("form", ["open", "whole", "two"])
def test_tritons_onnx_backend_has_the_same_tensors(students: dict[str, Path], form: str) -> None:
    student = Student(students[form])
    folder = students[form] / "triton-onnx" / student.about["name"]
    assert 'backend: "onnxruntime"' in (folder / "config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(str(folder / "1/model.onnx"), providers=["CPUExecutionProvider"])
    batch = ["batch"] if student.batched else []
    for told, side in ((student.inputs, session.get_inputs()), (student.outputs, session.get_outputs())):
        assert [(each.name, each.shape) for each in side] == [(t["name"], [*batch, *t["shape"]]) for t in told]


ASKS_LITSERVE = """
    import json
    sys.path.append(sys.argv[1])
    import server
    api = server.StudentAPI(api_path="/p")
    api.setup("cpu")
    import inspect
    assert inspect.signature(api.decode_request).parameters["request"].annotation is inspect.Parameter.empty
    answers = [api.encode_response(api.predict(api.decode_request(each))) for each in json.loads(sys.argv[2])]
    sys.argv = ["server.py", "--port", "1"]
    server.main()
    print(json.dumps(answers))
"""


def test_litserves_answers_look_as_the_recorded_ones(students: dict[str, Path], tmp_path: Path) -> None:
    student, x = Student(students["json"]), inputs(5, 3)
    asked = [{"input": {"x": row.tolist()}, "k": 1} for row in x]
    told = ran(tmp_path, ASKS_LITSERVE, str(students["json"] / "litserve"), json.dumps(asked))
    for row, answer in zip(x, told, strict=True):
        [probs] = student([row])
        np.testing.assert_allclose(answer["probs"], probs, atol=1e-6)
        assert answer["top"]["label"] == "abc"[probs.argmax()]
        assert answer["top"]["score"] == pytest.approx(float(probs.max()), abs=1e-6)
        assert (answer["uuid"], list(answer)) == (None, ["probs", "top", "uuid"])


def test_litserves_answers_to_several_queries_in_one(students: dict[str, Path], tmp_path: Path) -> None:
    student = Student(students["rows"])
    asked = [{"instances": inputs(n, n).tolist()} for n in (1, 3)]
    told = ran(tmp_path, ASKS_LITSERVE, str(students["rows"] / "litserve"), json.dumps(asked))
    for each, answer in zip(asked, told, strict=True):
        np.testing.assert_allclose(answer["predictions"], student([np.array(each["instances"])])[0], atol=1e-6)


def test_litserve_answers_the_protocol_too(students: dict[str, Path], tmp_path: Path) -> None:
    x = inputs(2, 8)
    asked = json.loads(open_inference(x, classes(x)).body)
    [told] = ran(tmp_path, ASKS_LITSERVE, str(students["open"] / "litserve"), json.dumps([asked]))
    [output] = told["outputs"]
    assert (told["model_name"], output["name"], output["datatype"], output["shape"]) == (
        "big-student", "probs", "FP32", [2, 3]
    )  # fmt: skip
    np.testing.assert_allclose(output["data"], Student(students["open"])([x])[0].ravel(), atol=1e-6)
