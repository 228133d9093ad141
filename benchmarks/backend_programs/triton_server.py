"""NVIDIA's Triton, as PyTriton brings it, with the two models: `triton_server.py HTTP_PORT GRPC_PORT METRICS_PORT`.

The models run in this process; Triton's own processes only hand requests over.
"""

import sys

import numpy as np
from emulated import CLASSES, DEPLOYED, FEATURES, STUDENT, EmulatedModel
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MAX_BATCH_SIZE = 8


def served(name):
    model = EmulatedModel(name)

    @batch
    def infer(x):
        return {"scores": np.array(model.answer(x.tolist()), dtype=np.float32)}

    return infer


if __name__ == "__main__":
    http, grpc, metrics = map(int, sys.argv[1:4])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http,
        grpc_address="127.0.0.1",
        grpc_port=grpc,
        metrics_address="127.0.0.1",
        metrics_port=metrics,
    )
    with Triton(config=config) as triton:
        for name in (DEPLOYED, STUDENT):
            triton.bind(
                model_name=name,
                infer_func=served(name),
                inputs=[Tensor(name="x", dtype=np.float32, shape=(FEATURES,))],
                outputs=[Tensor(name="scores", dtype=np.float32, shape=(CLASSES,))],
                config=ModelConfig(max_batch_size=MAX_BATCH_SIZE, batcher=DynamicBatcher()),
            )
        triton.serve()
