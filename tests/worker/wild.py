"""Small handlers in the manner of public ones, of our own writing: what people do between a request and its answer.

Each is the text of a handler file. A body is eight float32 unless said otherwise; `net.py` lies beside it.
"""

NET = '''
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
import numpy as np
import torch

def linear(seed=0, inputs=8, outputs=5):
    torch.manual_seed(seed)
    return torch.nn.Linear(inputs, outputs).eval()

def vectors(data):
    bodies = [bytes(row.get("body") or row.get("file")) for row in data]
    return torch.from_numpy(np.stack([np.frombuffer(body, np.float32) for body in bodies]))

class Net(torch.nn.Module):
    """Layers behind a forward, and methods under names of the user's."""
    def __init__(self, seed=0):
        super().__init__()
        self.layers = torch.nn.Sequential(linear(seed, 8, 16), torch.nn.Tanh(), linear(seed + 1, 16, 5))
    def forward(self, x):
        return self.layers(x)
    def select_action(self, x):
        return self.layers(x)

@dataclass
class ModelOutput(OrderedDict):
    """A mapping that is a dataclass, as in transformers."""
    loss: torch.Tensor = None
    logits: torch.Tensor = None
    hidden_states: tuple = None
    def __post_init__(self):
        for name in ("loss", "logits", "hidden_states"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)

class Classifier(Net):
    """Answers with an object; with `hidden` it holds the layers' outputs as well."""
    hidden = False
    def forward(self, x=None, return_dict=True):
        states = (x, self.layers[0](x)) if self.hidden else None
        return ModelOutput(logits=self.layers(x), hidden_states=states)
'''

BASE = """
import os, time, json
import numpy as np
import torch
from net import *
from ts.torch_handler.base_handler import BaseHandler

class Base(BaseHandler):
    def initialize(self, context):
        self.context = context
        self.model = Net().eval()
        self.initialized = True
    def preprocess(self, data):
        return vectors(data)
    def inference(self, data):
        with torch.no_grad():
            return self.model(data)
    def postprocess(self, output):
        return output.tolist()
"""

CODED = {
    "sigmoid, the five best, a label map": """
class Handler(Base):
    def postprocess(self, output):
        values, indices = torch.sigmoid(output).topk(3, dim=1)
        return [dict(zip([f"label {i}" for i in row], v)) for row, v in zip(indices.tolist(), values.tolist())]
""",
    "a singleton behind a function, errors answered with 200": """
class Service:
    def __init__(self):
        self.model = None
        self.transform = lambda row: np.frombuffer(bytes(row["body"]), np.float32)
    def initialize(self, context):
        self.model = Net().eval()
    def handle(self, data, context):
        try:
            tensors = [torch.from_numpy(self.transform(row).copy()) for row in data if row]
            with torch.no_grad():
                return torch.softmax(self.model(torch.stack(tensors)), dim=1).tolist()
        except Exception as error:
            return [{"error": str(error)}] * len(data)

_service = Service()

def handle(data, context):
    if _service.model is None:
        _service.initialize(context)
    return None if data is None else _service.handle(data, context)
""",
    "initialised in handle if a flag is unset": """
class Handler(Base):
    def initialize(self, context):
        self.context = context
    def load(self):
        super().initialize(self.context)
        self.initialised = True
    def handle(self, data, context):
        if not getattr(self, "initialised", False):
            self.load()
        return self.postprocess(self.inference(self.preprocess(data)))
""",
    "unwraps .logits if there is one": """
class Handler(Base):
    def initialize(self, context):
        super().initialize(context)
        self.model = Classifier().eval()
    def inference(self, data):
        with torch.no_grad():
            output = self.model(data)
        return output.logits if hasattr(output, "logits") else output
""",
    "an object with one tensor": """
class Wrapper(Net):
    def forward(self, x):
        return SimpleNamespace(logits=super().forward(x), steps=12, name="net")
class Handler(Base):
    def initialize(self, context):
        self.model = Wrapper().eval()
    def postprocess(self, output):
        return output.logits.softmax(1).tolist()
""",
    "a timing decorator on the steps": """
def timed(function):
    def wrapper(self, *args):
        began = time.time()
        result = function(self, *args)
        self.context.metrics.add_time(function.__name__, (time.time() - began) * 1000, None, "ms")
        return result
    return wrapper
class Handler(Base):
    preprocess, inference, postprocess = timed(Base.preprocess), timed(Base.inference), timed(Base.postprocess)
    def handle(self, data, context):
        self.context = context
        return super().handle(data, context)
""",
    "one request without a batch axis": """
class Handler(Base):
    def preprocess(self, data):
        return vectors(data)[0]
    def postprocess(self, output):
        return [int(output.argmax(0))]
""",
    "a mapping of one tensor, moved, called with **": """
class Batch(dict):
    def to(self, device):
        return Batch({name: value.to(device) for name, value in self.items()})
class Handler(Base):
    def preprocess(self, data):
        return Batch(x=vectors(data)).to("cpu")
    def inference(self, data):
        with torch.no_grad():
            return self.model(**data)
""",
    "statistics of its inputs, and an error code of its own": """
from ts.utils.util import PredictionException
class Handler(Base):
    def initialize(self, context):
        super().initialize(context)
        self.mean = 0.0
    def preprocess(self, data):
        x = vectors(data)[0]
        if not torch.isfinite(x).all():
            raise PredictionException("bad input", 513)
        self.mean = 0.9 * self.mean + 0.1 * float(x.mean())
        return x
    def postprocess(self, output):
        return [float(output.max())]
""",
    "a plain class that calls .forward in handle": """
class Model:
    def __init__(self):
        self.net = None
    def initialize(self, context):
        self.net = Net().eval()
    def postprocess(self, scores):
        return {"best": int(scores.argmax()), "scores": scores.tolist()}
    def handle(self, data, context):
        tensor = torch.tensor(np.frombuffer(bytes(data[0]["body"]), np.float32).copy())
        return [self.postprocess(self.net.forward(tensor.unsqueeze(0))[0].detach())]
""",
    "a decoy singleton beside the object that is served": """
class Handler(Base):
    def preprocess(self, data):
        return vectors(data)[0]
    def postprocess(self, output):
        return [["setosa", "versicolor", "virginica", "fourth", "fifth"][int(output.argmax())]]
_service = Handler()
_service.model = linear(9)
""",
    "a label made in inference by .forward": """
class Handler(Base):
    def inference(self, data):
        with torch.no_grad():
            return [f"class {self.model.forward(data).argmax(1)[0].item()}"]
    def postprocess(self, answer):
        return answer
""",
    "a step of another name, the three best, a part called file": """
class Handler(Base):
    def infer(self, data):
        with torch.no_grad():
            return dict(zip(("values", "classes"), torch.topk(self.model(data), 3)))
    def handle(self, data, context):
        best = self.infer(self.preprocess(data))
        return [{"scores": v, "classes": c} for v, c in zip(best["values"].tolist(), best["classes"].tolist())]
""",
    "probabilities and a class index": """
class Handler(Base):
    def inference(self, data):
        with torch.no_grad():
            probabilities = self.model(data).softmax(1)
        return probabilities, probabilities.argmax(1)
    def postprocess(self, output):
        return [{"class": int(i), "scores": p} for p, i in zip(output[0].tolist(), output[1])]
""",
    "the model answers with integers beside its scores, which are not looked at": """
class Best(Net):
    def forward(self, x):
        scores = super().forward(x)
        return scores, scores.argmax(1), "net"
class Handler(Base):
    def initialize(self, context):
        self.model = Best().eval()
    def inference(self, data):
        with torch.no_grad():
            scores, _, _ = self.model(data)
        return scores
""",
    "the model in a helper object that prepares for it": """
class Predictor:
    def __init__(self):
        self.parts = {"en": [Net().eval()]}
        self.scale = lambda x: x / 2
    def predict(self, rows):
        with torch.no_grad():
            return self.parts["en"][0](self.scale(vectors(rows))).softmax(1)
class Handler(Base):
    def initialize(self, context):
        self.predictor = Predictor()
    def handle(self, data, context):
        return self.predictor.predict(data).tolist()
""",
    "a model in a tuple with what it needs": """
class Handler(Base):
    def initialize(self, context):
        self.served = (Net().eval(), {"en": ["a", "b", "c", "d", "e"]}, 0.5)
    def handle(self, data, context):
        model, names, scale = self.served
        with torch.no_grad():
            return [dict(zip(names["en"], row)) for row in model(vectors(data) * scale).tolist()]
""",
    "a model in a named tuple, in a read-only mapping": """
from types import MappingProxyType
from typing import NamedTuple
class Served(NamedTuple):
    model: object
    names: tuple
class Handler(Base):
    def initialize(self, context):
        self.served = MappingProxyType({"en": Served(Net().eval(), ("a", "b", "c", "d", "e"))})
    def handle(self, data, context):
        served = self.served["en"]
        with torch.no_grad():
            return [dict(zip(served.names, row)) for row in served.model(vectors(data)).tolist()]
""",
    "models that wait in a queue for their turn": """
import queue
class Handler(Base):
    def initialize(self, context):
        self.pool = queue.Queue()
        self.pool.put(Net().eval())
    def handle(self, data, context):
        model = self.pool.get()
        try:
            with torch.no_grad():
                return model(vectors(data)).tolist()
        finally:
            self.pool.put(model)
""",
    "a function that loads the model and remembers it": """
import functools
@functools.lru_cache(maxsize=1)
def load():
    return torch.nn.Tanh(), Net().eval()
class Handler(Base):
    def initialize(self, context):
        self.context = context
    def handle(self, data, context):
        bend, model = load()
        with torch.no_grad():
            return bend(model(vectors(data))).tolist()
""",
    "methods that load models and remember them": """
import functools
class Models:
    @staticmethod
    @functools.cache
    def seeds():
        return {"en": 0, "de": 4}
    @functools.lru_cache(maxsize=None)
    def model(self, language):
        return Net(self.seeds()[language]).eval()
class Handler(Base):
    def initialize(self, context):
        self.models = Models()
    def handle(self, data, context):
        with torch.no_grad():
            return self.models.model("en")(vectors(data)).tolist()
""",
    "a model behind a weak reference": """
import weakref
KEPT = []
class Handler(Base):
    def initialize(self, context):
        KEPT.append(Net().eval())
        self.model = weakref.ref(KEPT[0])
    def inference(self, data):
        with torch.no_grad():
            return self.model()(data)
""",
    "a model behind a weak reference to its method": """
import weakref
KEPT = []
class Handler(Base):
    def initialize(self, context):
        KEPT.append(Net().eval())
        self.run = weakref.WeakMethod(KEPT[0].forward)
    def inference(self, data):
        with torch.no_grad():
            return self.run()(data)
""",
    "a helper behind a weak proxy, beside one that is gone": """
import sys, weakref
class Helper:
    def __init__(self):
        self.net = Net().eval()
class Handler(Base):
    def initialize(self, context):
        helper = sys.modules["net"].helper = Helper()
        self.helper, self.gone, self.ended = weakref.proxy(helper), weakref.proxy(Helper()), weakref.ref(Helper())
    def inference(self, data):
        with torch.no_grad():
            return self.helper.net(data)
""",
    "models that are held weakly by name, and looked up by themselves": """
import weakref
KEPT = []
class Handler(Base):
    def initialize(self, context):
        KEPT.append(Net().eval())
        self.models = weakref.WeakValueDictionary(en=KEPT[0])
        self.scales = weakref.WeakKeyDictionary({KEPT[0]: 2.0})
    def inference(self, data):
        model = self.models["en"]
        with torch.no_grad():
            return model(data) * self.scales[model]
""",
    "a weak reference that is made in a request and kept": """
import weakref
class Handler(Base):
    def initialize(self, context):
        super().initialize(context)
        self.known = None
    def inference(self, data):
        if self.known is None:
            self.known = weakref.ref(self.model)
        with torch.no_grad():
            return self.known()(data)
""",
    "a function that remembers in a request what it was given": """
import functools
class Handler:
    def initialize(self, context):
        import pickle
        with open(os.path.join(context.system_properties["model_dir"], "model.pkl"), "rb") as file:
            self.model = pickle.load(file)
    @functools.cache
    def loaded(self):
        return self.model
    def handle(self, data, context):
        return self.loaded().predict_proba(vectors(data).numpy()).tolist()
""",
    "a helper that leads back to the handler": """
class Step:
    def __init__(self, owner):
        self.owner = owner
    def run(self, data):
        with torch.no_grad():
            return self.owner.model(data)
class Handler(Base):
    def initialize(self, context):
        super().initialize(context)
        self.step = Step(self)
    def inference(self, data):
        return self.step.run(data)
""",
    "a model with an argument of its own, beside itself": """
import functools
class Scaled(Net):
    def forward(self, x, scale=1.0):
        return super().forward(x) * scale
class Handler(Base):
    def initialize(self, context):
        self.model = Scaled().eval()
        self.run = functools.partial(self.model, scale=2.0)
    def inference(self, data):
        with torch.no_grad():
            return self.run(data)
""",
    "functions that are given the model beforehand": """
import functools
def features(model, rows):
    return model(rows)
def scores(rows, of=None):
    with torch.no_grad():
        return of(rows).softmax(1)
class Handler(Base):
    def initialize(self, context):
        self.run = functools.partial(scores, of=functools.partial(features, Net().eval()))
    def inference(self, data):
        return self.run(data)
""",
    "an entry point that is given the model beforehand": """
import functools
def answer(model, data, context):
    if data is None:
        return None
    with torch.no_grad():
        return model(vectors(data)).tolist()
handle = functools.partial(answer, Net().eval())
""",
    "models in a ModuleDict, and in a ModuleList": """
class Handler(Base):
    def initialize(self, context):
        self.models = torch.nn.ModuleDict({"en": torch.nn.ModuleList([Net()]), "de": Net(4)}).eval()
    def inference(self, data):
        with torch.no_grad():
            return self.models["en"][0](data)
""",
    "a service that is a class and never an object": """
class Service:
    model = None
    @classmethod
    def get_model(cls):
        if cls.model is None:
            cls.model = Net().eval()
        return cls.model
    @classmethod
    def predict(cls, batch):
        with torch.no_grad():
            return cls.get_model()(batch)
class Handler(Base):
    def initialize(self, context):
        self.context = context
    def handle(self, data, context):
        return Service.predict(vectors(data)).tolist()
""",
    "the model in another module, behind its functions": """
from service import load, predict
class Handler(Base):
    def initialize(self, context):
        load()
    def handle(self, data, context):
        return predict(vectors(data)).tolist()
""",
    "the model in another module, by its name": """
import service
class Handler(Base):
    def initialize(self, context):
        service.load()
    def handle(self, data, context):
        with torch.no_grad():
            return service.MODEL(vectors(data)).tolist()
""",
    "a compiled function around the model": """
class Handler(Base):
    def initialize(self, context):
        model = Net().eval()
        self.fast = torch.compile(lambda batch: model(batch).softmax(1), backend="eager")
    def handle(self, data, context):
        with torch.no_grad():
            return self.fast(vectors(data)).tolist()
""",
    "a function of another module gets the model": """
from library import recommend
class Handler(Base):
    def handle(self, data, context):
        return recommend(self.model, vectors(data), 3)
""",
    "functions of an adapter: input, prediction, output": """
def model_fn(folder):
    return Net().eval()
def predict_fn(data, model):
    with torch.no_grad():
        return model(data)
class Transformer:
    def __init__(self):
        self._model = None
        self._predict_fn = predict_fn
        self._output_fn = lambda prediction: prediction.tolist()
    def transform(self, data, context):
        if self._model is None:
            self._model = model_fn(".")
        return self._output_fn(self._predict_fn(vectors(data), self._model))
class Service:
    def __init__(self):
        self._transformer = Transformer()
    def initialize(self, context):
        self.context = context
    def handle(self, data, context):
        return self._transformer.transform(data, context)
""",
    "a pickled classifier in a dictionary": """
import pickle
class Handler:
    def initialize(self, context):
        with open(os.path.join(context.system_properties["model_dir"], "model.pkl"), "rb") as file:
            self.artifacts = {"model": pickle.load(file), "names": ["a", "b", "c"]}
    def handle(self, data, context):
        rows = [np.frombuffer(bytes(row["body"]), np.float32).tolist() for row in data]
        probabilities = self.artifacts["model"].predict_proba(rows)
        return [dict(zip(self.artifacts["names"], row.tolist())) for row in probabilities]
""",
    "an ONNX session, and the step after it with two arguments": """
import onnxruntime
class Topics:
    def __init__(self):
        self.initialized, self.session = False, None
    def initialize(self, context):
        self.session = onnxruntime.InferenceSession(os.path.join(context.system_properties["model_dir"], "model.onnx"))
        self.initialized = True
    def preprocess(self, data):
        return {self.session.get_inputs()[0].name: vectors(data).numpy()}
    def inference(self, inputs):
        return self.session.run([self.session.get_outputs()[0].name], inputs), len(inputs)
    def postprocess(self, outputs, count):
        return [{"topic": int(row.argmax()), "of": count} for row in outputs[0]]
_service = Topics()
def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.postprocess(*_service.inference(_service.preprocess(data)))
""",
    "boosters in the manner of XGBoost": """
class Booster:
    def __init__(self):
        self.matrix = linear().weight.detach().numpy()
    def predict(self, rows):
        return 1 / (1 + np.exp(-(np.asarray(rows) @ self.matrix.T)))
class Handler:
    def initialize(self, context):
        self.booster = Booster()
    def handle(self, data, context):
        return self.booster.predict(vectors(data).numpy()).tolist()
""",
}
"""No declaration: these are coded as they are."""

DECLARED = {
    "the second of two floating outputs": (
        """
class Two(Net):
    def forward(self, x):
        return self.layers[0](x), self.layers(x)
class Handler(Base):
    def initialize(self, context):
        self.model = Two().eval()
    def inference(self, data):
        with torch.no_grad():
            return [f"{p:.4f}" for p in torch.sigmoid(self.model(data)[1]).max(1).values.tolist()]
    def postprocess(self, answer):
        return answer
""",
        {"output": 1},
    ),
    "logits beside hidden states": (
        """
class Handler(Base):
    def initialize(self, context):
        self.model = Classifier().eval()
        self.model.hidden = True
    def postprocess(self, output):
        return output.logits.tolist()
""",
        {"output": "logits"},
    ),
    "hidden states beside logits": (
        """
class Handler(Base):
    def initialize(self, context):
        self.model = Classifier().eval()
        self.model.hidden = True
    def postprocess(self, output):
        return output["hidden_states"][1].tolist()
""",
        {"output": "hidden_states.1"},
    ),
    "a method of another name": (
        """
class Handler(Base):
    def inference(self, data):
        with torch.no_grad():
            return self.model.select_action(data)
""",
        {"call": "select_action"},
    ),
    "an encoder of texts": (
        """
class Embedder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(256, 4)
    def encode(self, texts):
        with torch.no_grad():
            return np.stack([self.table(torch.tensor(list(text))).mean(0).numpy() for text in texts])
class Service:
    def initialize(self, context):
        torch.manual_seed(0)
        self.embedder = Embedder().eval()
    def handle(self, data, context):
        return self.embedder.encode([bytes(row["body"]) for row in data]).tolist()
""",
        {"call": "encode"},
    ),
    "a part of the model is called": (
        """
class Handler(Base):
    def inference(self, data):
        with torch.no_grad():
            return self.model.layers(data)
""",
        {"model": "model.layers"},
    ),
    "an item of the model is called": (
        """
class Handler(Base):
    def initialize(self, context):
        self.model = torch.nn.Sequential(linear(), torch.nn.Softmax(1)).eval()
    def inference(self, data):
        with torch.no_grad():
            return self.model[0](data)
""",
        {"model": "model.0"},
    ),
    "an engine with a method of its own": (
        """
class Engine:
    def __init__(self):
        self._matrix = linear().weight.detach().numpy()
    def infer(self, batch):
        return batch @ self._matrix.T
class Handler(Base):
    def initialize(self, context):
        self.engine = Engine()
    def handle(self, data, context):
        return self.engine.infer(vectors(data).numpy()).tolist()
""",
        {"model": "engine", "call": "infer"},
    ),
    "labels and probabilities of one classifier": (
        """
import pickle
class Handler:
    def initialize(self, context):
        with open(os.path.join(context.system_properties["model_dir"], "model.pkl"), "rb") as file:
            self.model = pickle.load(file)
    def handle(self, data, context):
        rows = vectors(data).numpy()
        labels = self.model.predict(rows)
        return [{"label": int(l), "p": p} for l, p in zip(labels, self.model.predict_proba(rows).tolist())]
""",
        {"call": "predict_proba"},
    ),
    "two models in a row": (
        """
class Handler(Base):
    def initialize(self, context):
        self.features, self.classifiers = linear(3, 8, 8), {"en": [Net().eval()]}
    def inference(self, data):
        with torch.no_grad():
            return self.classifiers["en"][0](torch.tanh(self.features(data)))
""",
        {"model": "classifiers.en.0"},
    ),
    "the last step of a pipeline": (
        """
import pickle
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
class Handler:
    def initialize(self, context):
        with open(os.path.join(context.system_properties["model_dir"], "model.pkl"), "rb") as file:
            self.model = make_pipeline(FunctionTransformer(), pickle.load(file))
    def handle(self, data, context):
        return self.model[-1].predict_proba(self.model[:-1].transform(vectors(data).numpy())).tolist()
""",
        {"model": "model.-1", "call": "predict_proba"},
    ),
    "a method of another name that answers with several parts": (
        """
class Features(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Net(3).layers
    def get_features(self, x):
        states = self.layers[0](x)
        return ModelOutput(hidden_states=(states, self.layers(x)))
class Handler(Base):
    def initialize(self, context):
        self.model = Features().eval()
    def inference(self, data):
        with torch.no_grad():
            return self.model.get_features(data)["hidden_states"][1]
""",
        {"call": "get_features", "output": "hidden_states.1"},
    ),
    "a model of several parts, and one after it": (
        """
class Handler(Base):
    def initialize(self, context):
        self.model, self.head = Classifier().eval(), linear(7, 5, 5)
        self.model.hidden = True
    def inference(self, data):
        with torch.no_grad():
            return self.head(self.model(data).logits)
""",
        {"model": "head"},
    ),
    "distances to centres": (
        """
class Centres:
    def __init__(self):
        self._centres = linear().weight.detach().numpy()
    def transform(self, rows):
        return np.linalg.norm(np.asarray(rows)[:, None] - self._centres, axis=2)
    def predict(self, rows):
        return self.transform(rows).argmin(1)
class Handler(Base):
    def initialize(self, context):
        self.model = Centres()
    def handle(self, data, context):
        return self.model.transform(vectors(data).numpy()).tolist()
""",
        {"call": "transform"},
    ),
    "a committee of models in a helper": (
        """
class Committee:
    def __init__(self):
        self.members = [Net(seed).eval() for seed in range(3)]
    def predict(self, batch):
        with torch.no_grad():
            return sum(member(batch) for member in self.members).numpy()
class Handler(Base):
    def initialize(self, context):
        self.committee = Committee()
    def handle(self, data, context):
        return self.committee.predict(vectors(data)).tolist()
""",
        {"model": "committee", "call": "predict"},
    ),
}
"""A declaration is needed: what it must be."""

REFUSED = {
    "a sequence of words": (
        """
class Writer(Net):
    def generate(self, x):
        return self.layers(x).argsort(1)
class Handler(Base):
    def initialize(self, context):
        self.model = Writer().eval()
    def inference(self, data):
        with torch.no_grad():
            return self.model.generate(data)
""",
        "the handler calls self.model.generate, and the model's output holds an int64 tensor",
    ),
    "a session that reads and writes buffers": (
        """
import onnxruntime
class Handler(Base):
    def initialize(self, context):
        self.session = onnxruntime.InferenceSession(os.path.join(context.system_properties["model_dir"], "model.onnx"))
    def handle(self, data, context):
        binding = self.session.io_binding()
        binding.bind_cpu_input("x", vectors(data).numpy())
        binding.bind_output("scores")
        self.session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0].tolist()
""",
        "the handler calls self.session.run_with_iobinding, and it returns nothing: what it computes cannot be taken "
        "from where it lies; use code exact",
    ),
    "an answer made from two outputs": (
        """
class Two(Net):
    def forward(self, x):
        return self.layers[0](x), self.layers(x)
class Handler(Base):
    def initialize(self, context):
        self.model = Two().eval()
    def postprocess(self, output):
        return [{"states": s, "scores": o} for s, o in zip(output[0].tolist(), output[1].tolist())]
""",
        "and the handler's answer is made from several of them",
    ),
}
"""No line helps: what the reason says, beside no line."""

LOOKS_AT_ITS_MODEL = """
class Handler(Base):
    def inference(self, data):
        assert type(self.model) is Net
        with torch.no_grad():
            return self.model(data)
"""
"""A stand-in is not of its model's class, though it says so."""

GRAPH = """
class Graph(Net):
    def forward(self, x, adjacency):
        return super().forward(x) @ adjacency
class Handler(Base):
    def initialize(self, context):
        self.model = Graph().eval()
        self.adjacency = torch.eye(5) + 0.1
    def inference(self, data):
        with torch.no_grad():
            return self.model(data, self.adjacency)
"""
"""Two floating inputs, one of which is the same for all requests."""

SERVICE = """
from net import Net
import torch
MODEL = None

def load():
    global MODEL
    MODEL = Net().eval()

@torch.inference_mode()
def predict(x):
    return MODEL(x)
"""

LIBRARY = """
import torch

def recommend(model, x, count):
    with torch.no_grad():
        return [row.topk(count).indices.tolist() for row in model(x)]
"""
