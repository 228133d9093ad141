"""LitServe with the two models: `litserve_server.py PORT`."""

import sys

import litserve as ls
from emulated import DEPLOYED, STUDENT, EmulatedModel


class ServedModel(ls.LitAPI):
    model = ""

    def setup(self, device):
        self._served = EmulatedModel(self.model)

    def decode_request(self, request):
        return request["x"]

    def predict(self, x):
        return self._served.answer([x])[0]

    def encode_response(self, output):
        return {"scores": output}


class Deployed(ServedModel):
    model = DEPLOYED


class Student(ServedModel):
    model = STUDENT


if __name__ == "__main__":
    apis = [Deployed(api_path="/predict"), Student(api_path="/student")]
    server = ls.LitServer(apis, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False)
