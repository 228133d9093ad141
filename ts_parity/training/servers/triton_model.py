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

    def execute(self, requests: Any) -> Any:
        student, given, responses = self.student, [], []
        for request in requests:
            named = (pb_utils.get_input_tensor_by_name(request, tensor["name"]) for tensor in student.inputs)
            given.append([tensor.as_numpy() for tensor in named])
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
                failed = pb_utils.TritonError(str(error))
                responses.append(pb_utils.InferenceResponse(output_tensors=[], error=failed))
        return responses

    def _response(self, said: Any) -> Any:
        tensors = [
            pb_utils.Tensor(tensor["name"], np.ascontiguousarray(array, DTYPES[tensor["datatype"]]))
            for tensor, array in zip(self.student.outputs, said, strict=True)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)
