"""A student for Triton's Python backend. It takes and answers the tensors that the deployed model does.

Requests that Triton hands over together run as one batch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ts_parity.training.servers.student_runtime import DTYPES, Student


class TritonPythonModel:
    def initialize(self, args: Any) -> None:
        self.student = Student(Path(args["model_repository"]) / str(args["model_version"]))
        self.fault: str | None = None
        self.looked = False

    def execute(self, requests: Any) -> Any:
        student, given, responses = self.student, [], []
        for request in requests:
            named = [pb_utils.get_input_tensor_by_name(request, tensor["name"]) for tensor in student.inputs]
            if not self.looked:
                self.fault, self.looked = _fault_of(named)
            given.append([tensor.as_numpy() for tensor in named])
        if self.fault is not None:
            return [self._failed(self.fault) for _ in requests]
        if student.batched and len(requests) > 1:
            try:
                said = student([np.concatenate(parts) for parts in zip(*given, strict=True)])
            except ValueError:  # one of them is of another shape: each gets its own answer
                pass
            else:
                ends = np.cumsum([len(arrays[0]) for arrays in given])[:-1]
                parts = zip(*(np.split(array, ends) for array in said), strict=True)
                return [self._response(each) for each in parts]
        for arrays in given:
            try:
                responses.append(self._response(student(arrays)))
            except ValueError as error:
                responses.append(self._failed(str(error)))
        return responses

    def _failed(self, why: str) -> Any:
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(why))

    def _response(self, said: Any) -> Any:
        tensors = [
            pb_utils.Tensor(tensor["name"], np.ascontiguousarray(array, DTYPES[tensor["datatype"]]))
            for tensor, array in zip(self.student.outputs, said, strict=True)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _fault_of(tensors: Any) -> tuple[str | None, bool]:
    """Why this numpy cannot be used here, and whether these tensors could show it. A backend that was built for numpy 1
    hands numpy 2 the first number of a tensor in all places, and takes none of its own, without a word. DLPack does not
    depend on how numpy's arrays are laid out.
    """
    shown = False
    for tensor in tensors:
        try:
            right = np.from_dlpack(tensor)
        except Exception:  # older than DLPack, or numbers that it does not have
            continue
        shown = shown or (right.size > 1 and bool((right.ravel() != right.ravel()[0]).any()))
        if right.tobytes() != tensor.as_numpy().tobytes():
            why = (
                f"this server's Python backend cannot read arrays with numpy {np.__version__}; install the numpy that "
                "it was built for into the Python that it runs, for one: pip install 'numpy<2'"
            )
            return why, True
    return None, shown
