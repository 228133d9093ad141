"""Networks of any width that fit the deployed model's shapes, and what is said of those that do not."""

import copy
import re

import numpy as np
import pytest
import torch

from ts_parity.errors import NotCodable, TrainingError
from ts_parity.training.architectures import (
    DEPLOYED,
    FRESH,
    CallAdapter,
    ReshapedNetwork,
    Shapes,
    folded,
    make_model,
    plain_call,
    usual_architecture,
)
from ts_parity.training.narrowing import narrowed
from ts_parity.training.sizing import NARROWEST, affordable_width, multiplications
from ts_parity.worker.watches import ModelCall

IMAGES = Shapes((1, 3, 32, 32), (1, 10))
VECTORS = Shapes((8,), (3,))


def call_of(shapes, *more, **named):
    return ModelCall("self.model", "__call__", (torch.zeros(shapes.input), *more), named)


def deployed(shapes=IMAGES):
    torch.manual_seed(0)
    flat = int(np.prod(shapes.one_input))
    return torch.nn.Sequential(torch.nn.Flatten(-len(shapes.one_input)), torch.nn.Linear(flat, shapes.one_output[0]))


@pytest.mark.parametrize("shapes", [IMAGES, Shapes((1, 1, 28, 28), (1, 10)), Shapes((1, 28, 28), (10,)), VECTORS])
@pytest.mark.parametrize("architecture", ["mlp", "cnn:0.5", "resnet18:0.06"])
def test_built_in_networks_have_the_deployed_models_shapes(shapes, architecture):
    if not shapes.is_image and architecture != "mlp":
        with pytest.raises(TrainingError, match="is for images"):
            make_model(architecture, deployed(shapes), call_of(shapes), shapes)
        return
    model = make_model(architecture, deployed(shapes), call_of(shapes), shapes).eval()
    inputs = torch.rand(4, *shapes.input)
    with torch.no_grad():
        said = model(inputs)
        one = model.network(inputs[0])
    assert said.shape == (4, *shapes.output)
    assert one.shape == shapes.output, "as the handler calls it, with a single query"
    torch.testing.assert_close(one, said[0], rtol=1e-3, atol=1e-4)


def test_what_is_the_same_in_every_call_is_no_input():
    """A mask or a graph that never changes: the network is not made for it, and may be given it."""
    call = call_of(IMAGES, mask=torch.ones(1))
    model = make_model("cnn", deployed(), call, IMAGES).eval()
    assert model(torch.rand(4, *IMAGES.input)).shape == (4, *IMAGES.output)
    assert model.network(*plain_call(call).args).shape == IMAGES.output


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_budget_is_kept_in_multiplications_and_used(k):
    big = ReshapedNetwork(torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1),
                                     torch.nn.Flatten(), torch.nn.Linear(64, 10)), IMAGES)  # fmt: skip
    one = multiplications(CallAdapter(big, call_of(IMAGES), IMAGES), IMAGES)
    assert one == 64 * 27 * 1024 + 640

    def student(width):
        return make_model("cnn", big, call_of(IMAGES), IMAGES, width)

    def width(budget):
        return affordable_width(
            student, CallAdapter(big, call_of(IMAGES), IMAGES), IMAGES, k, budget, torch.device("cpu")
        )

    assert 0.8 * 2.0 * one < k * multiplications(student(width(2.0)), IMAGES) <= 2.0 * one
    with pytest.raises(TrainingError, match=r"too small: .* in multiplications. Give --budget (\S+) or more") as error:
        width(1e-5)
    enough = float(re.search(r"--budget (\S+) or more", str(error.value))[1])
    assert width(enough) >= NARROWEST


def test_a_copy_of_the_deployed_model_learns_and_leaves_it_alone():
    original = deployed().requires_grad_(False)
    copied = make_model(DEPLOYED, original, call_of(IMAGES), IMAGES)
    fresh = make_model(FRESH, original, call_of(IMAGES), IMAGES)
    assert all(p.requires_grad for p in copied.parameters())
    assert not any(p.requires_grad for p in original.parameters())
    assert torch.equal(copied.network[1].weight, original[1].weight)
    assert not torch.equal(fresh.network[1].weight, original[1].weight)


def test_what_cannot_learn_says_why():
    scripted = torch.jit.script(deployed())
    make_model(DEPLOYED, scripted, call_of(IMAGES), IMAGES)
    with pytest.raises(NotCodable, match="cannot be made afresh"):
        make_model(FRESH, scripted, call_of(IMAGES), IMAGES)
    with pytest.raises(NotCodable, match="not a torch module"):
        make_model(DEPLOYED, lambda x: x, call_of(IMAGES), IMAGES)
    with pytest.raises(NotCodable, match="no parameters to learn"):
        make_model(DEPLOYED, torch.nn.ReLU(), call_of(IMAGES), IMAGES)


@pytest.mark.parametrize(
    ("architecture", "why"),
    [("vgg", "is unknown; there are deployed"), ("cnn:wide", "the width is a number"), ("none.py:make", "no file")],
)
def test_unknown_architectures(architecture, why):
    with pytest.raises(TrainingError, match=why):
        make_model(architecture, deployed(), call_of(IMAGES), IMAGES)


def test_the_users_own_function(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(
        "import torch\n"
        "def make(one_input, outputs, width):\n"
        "    assert one_input == (3, 32, 32)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, max(1, int(64 * width))),"
        " torch.nn.Linear(max(1, int(64 * width)), outputs))\n"
        "def wrong(one_input, outputs, width):\n"
        "    return 7\n"
    )
    wide, narrow = (make_model(f"{file}:make", deployed(), call_of(IMAGES), IMAGES, width) for width in (1.0, 0.1))
    assert multiplications(narrow, IMAGES) < multiplications(wide, IMAGES)
    with pytest.raises(TrainingError, match="returned an int, not a torch module"):
        make_model(f"{file}:wrong", deployed(), call_of(IMAGES), IMAGES)
    with pytest.raises(TrainingError, match="has no function other"):
        make_model(f"{file}:other", deployed(), call_of(IMAGES), IMAGES)


def test_a_narrower_network_begins_with_what_the_deployed_one_has_learned():
    """Where every other channel and unit says nothing, it says the same without them: flattening keeps them apart."""
    torch.manual_seed(0)
    nn = torch.nn
    wide = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 32),
        nn.ReLU(), nn.Linear(32, 5),
    )  # fmt: skip
    wide(torch.rand(64, 3, 8, 8))  # statistics of its own
    wide.eval()
    with torch.no_grad():
        wide[1].weight[::2] = 0.0  # a batch norm can silence a channel whatever its weights
        wide[1].bias[::2] = 0.0
        wide[5].weight[1::2] = 0.0
        wide[5].bias[1::2] = 0.0
    narrow = narrowed(wide, 0.5, frozenset({3, 5})).eval()
    torch.testing.assert_close(narrow[0].weight, wide[0].weight[1::2])
    torch.testing.assert_close(narrow[1].running_mean, wide[1].running_mean[1::2])
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(narrow(images), wide(images))


@pytest.mark.parametrize("architecture", ["cnn", "resnet18:0.06"])
def test_folded_networks_answer_the_same_without_batch_norms(architecture):
    model = make_model(architecture, deployed(), call_of(IMAGES), IMAGES)
    inputs = torch.rand(8, *IMAGES.input)
    model(inputs)  # moves the running means
    model.eval()
    slim = copy.deepcopy(model)
    folded(slim.network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in slim.modules())
    with torch.no_grad():
        torch.testing.assert_close(slim(inputs), model(inputs), rtol=1e-3, atol=1e-4)


def test_the_usual_student():
    assert usual_architecture(IMAGES) == "cnn"
    assert usual_architecture(VECTORS) == "mlp"
    assert usual_architecture(Shapes((1, 4, 4), (1, 2))) == "mlp"
