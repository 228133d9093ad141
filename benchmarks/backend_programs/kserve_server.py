"""KServe's server with the two models: `kserve_server.py PORT`.

`predict` is a plain function, as in most of KServe's examples, so it holds the one event loop while it runs.
"""

import sys

import kserve
import numpy as np
import uvicorn
from emulated import DEPLOYED, STUDENT, EmulatedModel


class ServedModel(kserve.Model):
    def __init__(self, name):
        super().__init__(name)
        self._served = EmulatedModel(name)
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        rows = payload.inputs[0].as_numpy().tolist()
        answers = self._served.answer(rows)
        output = kserve.InferOutput("scores", [len(answers), len(answers[0])], "FP32")
        output.set_data_from_numpy(np.array(answers, dtype=np.float32), binary_data=False)
        # As its users write it: without an id in the request it fails (500).
        return kserve.InferResponse(payload.id, self.name, [output])


class LoopbackConfig(uvicorn.Config):
    """KServe has no setting for its address, and would listen on all there are."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **{**settings, "host": "127.0.0.1"})


if __name__ == "__main__":
    uvicorn.Config = LoopbackConfig
    models = [ServedModel(DEPLOYED), ServedModel(STUDENT)]
    kserve.ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1).start(models)
