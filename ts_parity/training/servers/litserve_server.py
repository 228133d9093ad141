"""A student behind LitServe: `python server.py --port 8001`. Its answers look like those that were recorded.

Needs litserve, numpy and either onnxruntime or torch.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import litserve
import numpy as np

from ts_parity.training.servers.student_runtime import Student


class StudentAPI(litserve.LitAPI):
    def setup(self, device: Any) -> None:
        self.student = Student(Path(__file__).parent)

    # Without types on purpose: LitServe reads those of this method, and takes a request of another type for a form.
    def decode_request(self, request):
        """Raise ValueError or LookupError for what is not of the recorded form."""
        student = self.student
        if student.about["kind"] == "json":
            return [np.asarray(at(request, tensor["name"])) for tensor in student.inputs]
        named = {tensor["name"]: tensor for tensor in request["inputs"]}
        told = [named[tensor["name"]] for tensor in student.inputs]
        return [np.asarray(tensor["data"]).reshape(tensor["shape"]) for tensor in told]

    def predict(self, given: Any) -> Any:
        return self.student(given)

    def encode_response(self, said):
        about, student = self.student.about, self.student
        if about["kind"] == "json":
            return answer(about, said)
        outputs = [
            {
                "name": each["name"],
                "datatype": each["datatype"],
                "shape": list(array.shape),
                "data": array.ravel().tolist(),
            }
            for each, array in zip(student.outputs, said, strict=True)
        ]
        return {"model_name": about["name"], "model_version": "1", "outputs": outputs}


def answer(about: Any, said: Any) -> Any:
    """As the first answer that was recorded, with these outputs in it. Raise LookupError for a class never seen."""
    told = copy.deepcopy(about["answer"]["example"])
    for pointer in about["answer"]["unsaid"]:
        told = put(told, pointer, None)
    for pointer in about["answer"]["largest"]:
        told = put(told, pointer, float(said[0].max()))
    for pointer, table in about["answer"]["follows"].items():
        told = put(told, pointer, table[str(int(said[0].argmax()))])
    for output, array in zip(about["outputs"], said, strict=True):
        told = put(told, output["name"], array.tolist())
    return told


def parts(pointer: Any) -> Any:
    """Of a JSON pointer (RFC 6901)."""
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def at(value: Any, pointer: Any) -> Any:
    for part in parts(pointer):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def put(value: Any, pointer: Any, new: Any) -> Any:
    *above, last = parts(pointer) or [None]
    if last is None:
        return new
    inner = value
    for part in above:
        inner = inner[int(part)] if isinstance(inner, list) else inner[part]
    inner[int(last) if isinstance(inner, list) else last] = new
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--workers", type=int, default=1, help="processes, each of which answers one query at a time")
    args = parser.parse_args()
    api = StudentAPI(api_path=Student(Path(__file__).parent).about["path"])
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=args.workers)
    server.run(host=args.host, port=args.port, generate_client_file=False)


if __name__ == "__main__":
    main()
