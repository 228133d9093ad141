"""Models of token ids: students of them, of any length, with masks, offsets or neither; and what is refused."""

import json
import warnings

import numpy as np
import pytest
import torch

from tests.training import text_nets, texts
from tests.worker.serving import InProcess
from ts_parity.codes import make_code
from ts_parity.errors import NotCodable, TrainingError
from ts_parity.torchserve.archive import extract_archive, read_archive
from ts_parity.training import TrainSettings, train
from ts_parity.training.architectures import (
    BAG,
    DEPLOYED,
    TRANSFORMER,
    CallAdapter,
    DeployedModel,
    Shapes,
    make_model,
    plain_call,
    usual_architecture,
    widest,
)
from ts_parity.training.batching import BatchMode
from ts_parity.training.counting import counting
from ts_parity.training.data import not_encodable
from ts_parity.training.inputs import Calls, Writer, inputs_of, read_columns
from ts_parity.training.sizing import affordable_width, multiplications
from ts_parity.training.text_network import TextNetwork, parts_of
from ts_parity.wire import Part
from ts_parity.worker.watches import ModelCall

IDS = [[3, 4, 5, 6], [7, 8], [9, 3, 4, 5, 6, 7], [5, 4], [8, 8, 3]]


def seen(tmp_path, rows):
    """Calls as a job keeps them: `rows` are the tensors of each, by name."""
    writer = Writer(tmp_path / "seen")
    for number, row in enumerate(rows):
        writer.add(f"body {number}", row.items())
    return read_columns(tmp_path / "seen", writer.finish())


def kinds(columns, batched=True):
    return [part.kind.value for part in parts_of(columns, batched)]


def one(*numbers):
    return torch.tensor([[*numbers]])


def padded(rows, to=8):
    return [{"ids": one(*row, *[0] * (to - len(row)))} for row in rows]


CALLS = {
    "ids and a mask": ([{"input_ids": one(*r), "attention_mask": one(*[1] * len(r))} for r in IDS], "ids mask"),
    "a mask first, padded": (
        [{"mask": one(*[1] * len(r), *[0] * (8 - len(r))), **p} for r, p in zip(IDS, padded(IDS), strict=True)],
        "mask ids",
    ),
    "no names": ([{"args.0": one(*r), "args.1": one(*[1] * len(r))} for r in IDS], "ids mask"),
    "sentence types beside a mask": (
        [{"0": one(*r), "1": one(0, *[1] * (len(r) - 1)), "2": one(*[1] * len(r))} for r in IDS],
        "ids ids mask",
    ),
    "a mask that hides": (
        [
            {**p, "key_padding_mask": one(*[0] * len(r), *[1] * (8 - len(r))).bool()}
            for r, p in zip(IDS, padded(IDS), strict=True)
        ],
        "ids hides",
    ),
    "all in a row, with offsets": (
        [{"text": torch.tensor(r), "offsets": torch.tensor([0])} for r in IDS],
        "ids offsets",
    ),
    "offsets that end": ([{"0": torch.tensor(r), "1": torch.tensor([0, len(r)])} for r in IDS], "ids offsets"),
    "lengths": ([{"0": one(*r), "1": torch.tensor([len(r)])} for r in IDS], "ids lengths"),
    "lengths of padded texts": (
        [{**p, "n": torch.tensor([len(r)])} for r, p in zip(IDS, padded(IDS), strict=True)],
        "ids lengths",
    ),
    "a user and an item": (
        [{"user": torch.tensor([r[0]]), "item": torch.tensor([r[1] + 40])} for r in IDS],
        "ids ids",
    ),
    "numbers beside ids": ([{"0": one(*r), "1": torch.rand(1, 4)} for r in IDS], "ids numbers"),
    "a spectrum beside ids": ([{"0": one(*r), "1": torch.rand(1, 4) * (1 + 2j)} for r in IDS], "ids numbers"),
    "what never changes": ([{"0": one(*r), "graph": torch.eye(3)} for r in IDS], "ids nothing"),
}


@pytest.mark.parametrize("name", [*CALLS])
def test_what_each_tensor_is_shows(tmp_path, name):
    rows, expected = CALLS[name]
    assert " ".join(kinds(seen(tmp_path, rows))) == expected


@pytest.mark.parametrize("name", [*CALLS])
@pytest.mark.parametrize("blocks", [0, 2])
def test_a_built_in_network_reads_them_alone_together_and_traced(tmp_path, name, blocks):
    """And what is padding makes no difference, in training, alone on a worker, or in a batch of one's own handler."""
    columns = seen(tmp_path, CALLS[name][0])
    torch.manual_seed(0)
    calls, shapes = Calls(columns, np.arange(5)), Shapes((), (1, 3), calls=Calls(columns, np.arange(5)))
    model = make_model(f"{TRANSFORMER if blocks else BAG}:0.5", None, ModelCall("m", "__call__", (), {}), shapes).eval()
    with torch.no_grad():
        learned = model(calls)
        alone = torch.stack([model.network(*calls.tensors(row)) for row in range(5)])
        traced = torch.jit.trace(model.network, calls.tensors(2))
        torch.testing.assert_close(torch.stack([traced(*calls.tensors(row)) for row in range(5)]), alone)
    assert learned.shape == (5, 1, 3)
    torch.testing.assert_close(learned, alone, rtol=1e-4, atol=1e-5)
    assert learned.std(0).min() > 1e-4, "and they tell the calls apart"


def test_a_batch_padded_by_its_handler_is_read_as_its_texts_are(tmp_path):
    rows = [{"0": one(*row), "1": one(*[1] * len(row))} for row in IDS]
    batch = torch.nn.utils.rnn.pad_sequence([row["0"][0] for row in rows], True)
    mask = torch.nn.utils.rnn.pad_sequence([row["1"][0] for row in rows], True)
    ends = np.cumsum([0, *map(len, IDS)])
    flat = torch.tensor([number for row in IDS for number in row])
    torch.manual_seed(0)
    for blocks in (0, 1):
        network = TextNetwork(parts_of(seen(tmp_path / f"{blocks}", rows), True), (1, 3), 0.5, blocks).eval()
        bag = [{"0": torch.tensor(row), "1": torch.tensor([0])} for row in IDS]
        offsets = TextNetwork(parts_of(seen(tmp_path / f"bag{blocks}", bag), True), (1, 3), 0.5, blocks).eval()
        offsets.load_state_dict(network.state_dict())
        with torch.no_grad():
            alone = torch.cat([network(row["0"], row["1"]) for row in rows])
            torch.testing.assert_close(network(batch, mask), alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(network(batch.flip(1), mask.flip(1)).shape, alone.shape)
            torch.testing.assert_close(offsets(flat, torch.tensor(ends[:-1])), alone, rtol=1e-4, atol=1e-5)


def test_ids_never_seen_and_empty_texts_are_answered(tmp_path):
    network = TextNetwork(parts_of(seen(tmp_path, [{"0": one(*row)} for row in IDS]), True), (1, 3), 1.0, 1).eval()
    with torch.no_grad():
        for ids in (one(10**12, -7), torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 900, dtype=torch.int32)):
            assert bool(torch.isfinite(network(ids)).all())


def test_calls_that_cannot_be_learned_from_say_so(tmp_path):
    with pytest.raises(TrainingError, match="no tensor to learn from; use code exact"):
        seen(tmp_path, [{}])
    with pytest.raises(NotCodable, match="the same by every body"):
        parts_of(seen(tmp_path / "b", [{"0": one(1, 2)}] * 5), True)
    with pytest.raises(TrainingError, match=r"body 1 gives a model input of float32 \(1, 1\), body 0 one of int64"):
        seen(tmp_path / "c", [{"0": one(1)}, {"0": one(1.0)}])
    with pytest.raises(TrainingError, match="body 1 gives the model 0, 1, body 0 gives it 0"):
        seen(tmp_path / "d", [{"0": one(1)}, {"0": one(1), "1": one(1)}])


def test_one_floating_tensor_of_one_shape_is_all_there_is_to_most_models(tmp_path):
    rows = [{"mask": one(1, 1), "x": torch.full((1, 3), float(i))} for i in range(4)]
    inputs, column = inputs_of(seen(tmp_path, rows))
    assert column == 1
    assert torch.equal(inputs, torch.cat([row["x"] for row in rows]).unsqueeze(1))
    longer = [{"x": torch.rand(1, length)} for length in (3, 4)]
    assert isinstance(inputs_of(seen(tmp_path / "longer", longer))[0], Calls)


@pytest.fixture
def shapes_of(tmp_path):
    """`shapes_of(rows)`: of these calls, with three outputs."""
    return lambda rows: Shapes((), (1, 3), calls=Calls(seen(tmp_path, rows), np.arange(len(rows))))


def masked(rows=IDS):
    return [{"input_ids": one(*row), "attention_mask": one(*[1] * len(row))} for row in rows]


@pytest.mark.parametrize(
    ("name", "rows", "call", "mode"),
    [
        ("Mean", masked(), ((one(1), one(1)), {}), BatchMode.PADDED),
        ("Attends", masked(), ((), {"input_ids": one(1), "attention_mask": one(1)}), BatchMode.PADDED),
        ("Named", masked(), (({"input_ids": one(1), "attention_mask": one(1)},), {}), BatchMode.PADDED),
        ("Bag", [{"0": torch.tensor(r), "1": torch.tensor([0])} for r in IDS],
         ((torch.tensor([1]), torch.tensor([0])), {}), BatchMode.PADDED),
        ("Plain", [{"0": one(*row)} for row in IDS], ((one(1),), {}), BatchMode.ALIKE),
    ],
)  # fmt: skip
def test_a_copy_of_the_deployed_network_answers_many_as_it_answers_each(name, rows, call, mode, shapes_of):
    torch.manual_seed(0)
    shapes, deployed = shapes_of(rows), getattr(text_nets, name)().eval()
    model = make_model(DEPLOYED, deployed, ModelCall("m", "__call__", *call), shapes).eval()
    assert isinstance(model, CallAdapter)
    with torch.no_grad():
        together = model(shapes.calls)
        alone = torch.cat([model(shapes.calls[row : row + 1]) for row in range(5)])
    assert model._caller._batcher.mode is mode
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_network_that_takes_one_text_at_a_time_is_given_one(shapes_of):
    class Alone(text_nets.Plain):
        def forward(self, ids):
            assert len(ids) == 1
            return super().forward(ids)

    shapes = shapes_of([{"0": one(*row)} for row in IDS])
    model = make_model(DEPLOYED, Alone().eval(), ModelCall("m", "__call__", (one(1),), {}), shapes)
    assert model(shapes.calls).shape == (5, 1, 3)
    assert model._caller._batcher.mode is BatchMode.ALONE


def sized(architecture, deployed, call, shapes, k):
    """A student, a group of whom costs one deployed inference, and its share of that."""

    def make(width):
        return make_model(architecture, deployed, call, shapes, width)

    own = DeployedModel(deployed, call, shapes)
    width = affordable_width(make, own, shapes, k, 1.0, torch.device("cpu"), widest(architecture))
    return make(width), k * multiplications(make(width), shapes) / multiplications(own, shapes)


LENGTH, SIZE = 20, 32


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: torch.nn.Sequential(torch.nn.Embedding(500, SIZE), torch.nn.Linear(SIZE, 3)), LENGTH * SIZE * 3),
        (lambda: torch.nn.Sequential(torch.nn.EmbeddingBag(500, SIZE), torch.nn.Linear(SIZE, 3)), SIZE * 3),
        (lambda: torch.nn.Sequential(torch.nn.Embedding(500, SIZE), torch.nn.LSTM(SIZE, 16, batch_first=True)),
         LENGTH * 4 * 16 * (SIZE + 16)),
        (lambda: torch.nn.Sequential(torch.nn.Embedding(500, SIZE), torch.nn.TransformerEncoderLayer(
            SIZE, 4, 64, batch_first=True)), LENGTH * (4 * SIZE * SIZE + 2 * LENGTH * SIZE + 2 * SIZE * 64)),
    ],
    ids=["embedding", "embedding bag", "recurrent", "attention"],
)  # fmt: skip
@pytest.mark.parametrize("script", [False, True], ids=["eager", "script"])
def test_multiplications_are_counted_in_what_torch_fuses_too(made, expected, script):
    """Looking up takes none; attention and recurrent layers run as one operator when nothing is to be learned."""
    ids, model = torch.ones(1, LENGTH, dtype=torch.long), made().eval()
    with torch.no_grad():
        model = torch.jit.trace(model, ids, check_trace=False) if script else model
        with counting() as counter:
            model(ids)
    assert counter.get_total_flops() / 2 == expected


def test_counting_says_nothing():
    """It is the first thing that `train` does: a warning of torch about its own flags would be all that a user sees."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with counting() as counter:
            torch.ones(2, 2) @ torch.ones(2, 2)
    assert counter.get_total_flops() == 16


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [BAG, TRANSFORMER])
@pytest.mark.parametrize("k", [2, 4])
def test_a_budget_is_kept_over_all_lengths_and_used(architecture, k, shapes_of):
    torch.manual_seed(0)
    rows = masked([[*range(1, length)] for length in range(2, 40)])
    shapes, deployed = shapes_of(rows), text_nets.Attends().eval()
    call = ModelCall("m", "__call__", (one(1), one(1)), {})
    _, share = sized(architecture, deployed, call, shapes, k)
    assert (0.5 if architecture == TRANSFORMER else 0) < share <= 1
    assert usual_architecture(shapes) == BAG


def test_a_student_may_do_nothing_but_look_up(shapes_of):
    """As an embedding bag of scores does, whose price only the clock can tell."""
    shapes = shapes_of([{"0": torch.tensor(row), "1": torch.tensor([0])} for row in IDS])
    call = ModelCall("m", "__call__", (torch.tensor([1]), torch.tensor([0])), {})
    assert multiplications(DeployedModel(torch.nn.EmbeddingBag(20, 3), call, shapes), shapes) is None
    student = make_model(f"{BAG}:0.016", None, call, shapes)
    assert multiplications(student, shapes) == 0
    assert student(shapes.calls).shape == (5, 1, 3)


def test_networks_for_one_floating_input_are_not_for_ids(shapes_of):
    shapes, call = shapes_of(masked()), ModelCall("m", "__call__", (one(1), one(1)), {})
    with pytest.raises(TrainingError, match="is given input_ids, attention_mask: try bag, transformer, deployed"):
        make_model("mlp", text_nets.Mean(), call, shapes)
    with pytest.raises(TrainingError, match="bag is for ids"):
        make_model(BAG, None, ModelCall("m", "__call__", (torch.rand(1, 8),), {}), Shapes((1, 8), (1, 3)))


def test_the_users_own_network_is_told_what_it_is_given(tmp_path, shapes_of):
    file = tmp_path / "nets.py"
    file.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, rows, outputs, size):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = torch.nn.Embedding(rows, size), torch.nn.Linear(size, outputs)\n"
        "    def forward(self, ids, mask):\n"
        "        return self.head((self.embed(ids) * mask.unsqueeze(-1)).sum(1))\n"
        "def make(given, outputs, width):\n"
        "    ids, mask = given\n"
        "    assert (ids.name, ids.shape, ids.largest, mask.dtype) == ('input_ids', (1, None), 9, torch.int64)\n"
        "    return Net(int(ids.largest) + 1, outputs, max(1, int(64 * width)))\n"
    )
    shapes, call = shapes_of(masked()), ModelCall("m", "__call__", (), {"input_ids": one(1), "attention_mask": one(1)})
    deployed = text_nets.Attends().eval()
    model, share = sized(f"{file}:make", deployed, call, shapes, 4)
    assert share <= 1
    assert model(shapes.calls).shape == (5, 1, 3)
    assert model.network(*plain_call(call).args).shape == (1, 3)


NARROWED = {
    "Mean": (masked(), ((one(1), one(1)), {})),
    "Attends": (masked(), ((one(1), one(1)), {})),
    "Bag": (
        [{"0": torch.tensor(r), "1": torch.tensor([0])} for r in IDS],
        ((torch.tensor([1]), torch.tensor([0])), {}),
    ),
    "Plain": ([{"0": one(*row)} for row in IDS], ((one(1),), {})),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NARROWED])
def test_the_deployed_class_is_made_as_narrow_as_the_budget_needs(shapes_of, name):
    rows, (args, kwargs) = NARROWED[name]
    torch.manual_seed(0)
    shapes, deployed, call = (
        shapes_of(rows),
        getattr(text_nets, name)().eval(),
        ModelCall("m", "__call__", args, kwargs),
    )
    student, share = sized("narrower", deployed, call, shapes, 2)
    assert type(student.network) is type(deployed)
    assert 0.1 < share <= 1
    assert student(shapes.calls).shape == (5, 1, 3)
    with pytest.raises(NotCodable, match="TorchScript cannot be made narrower"):
        make_model("narrower", torch.jit.trace(deployed, args, check_trace=False), call, shapes)


def test_a_class_that_has_its_sizes_written_down_elsewhere_says_so():
    class Views(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size = size
            self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32))
            self.scale = torch.nn.Parameter(torch.ones(32))
            self.head = torch.nn.Linear(32, 3)

        def forward(self, x):
            return self.head(self.layers(x).reshape(-1, self.size() if callable(self.size) else self.size) * self.scale)

    shapes, call = Shapes((1, 8), (1, 3)), ModelCall("m", "__call__", (torch.rand(1, 8),), {})
    narrow = make_model("narrower:0.25", Views(32), call, shapes)
    assert narrow.network.head.in_features == 8
    assert narrow(torch.rand(4, 1, 8)).shape == (4, 1, 3)
    with pytest.raises(NotCodable, match=r"does not run with narrower layers .* file\.py:function"):
        make_model("narrower:0.25", Views(lambda: 32), call, shapes)
    with pytest.raises(NotCodable, match="no inner layers that could be made narrower"):
        make_model("narrower", torch.nn.Linear(8, 3), call, shapes)


@pytest.mark.parametrize("code", ["sum", "concat"])
def test_what_no_encoder_takes_is_refused_with_the_remedy(code):
    ids = [ModelCall("m", "__call__", (one(*row),), {}) for row in IDS]
    lengths = [ModelCall("m", "__call__", (torch.rand(1, 4, 8, n),), {}) for n in (4, 6)]
    why = not_encodable(make_code(code, 2), ids)
    assert why.startswith(f"code {code} with k = 2: the model was called with a tensor of torch.int64 at args.0")
    assert "use code student or exact" in why
    assert "lengths differ from request to request; use code student or exact" in not_encodable(
        make_code(code, 2), lengths
    )
    assert not_encodable(make_code(code, 2), lengths[:1]) is None


def run(archive, bodies, tmp_path, **more):
    settings = {"steps": 150, "progress": False, "out": tmp_path / "out", "codes": ("student",), **more}
    return train(TrainSettings(archive=archive, inputs=bodies, **settings))


def test_sum_of_ids_is_refused_before_work_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("ts_parity.training.job.check_repeatable", None)  # whoever gets there has begun
    archive, bodies = texts.archive(tmp_path, "Mean"), texts.bodies(tmp_path / "bodies", 30)
    with pytest.raises(
        NotCodable, match=r"code sum with k = 2: .* integers .* never added.* use code student or exact"
    ):
        run(archive, bodies, tmp_path, codes=("sum",))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_output_for_each_token_cannot_be_learned_and_the_reason_says_what_can_be_done(tmp_path, monkeypatch):
    """Not that all bodies are the same, which one body alone seems to say."""
    monkeypatch.setattr("ts_parity.training.job.prepare", None)  # whoever gets there has begun to observe
    archive, bodies = texts.archive(tmp_path, "Pooled"), texts.bodies(tmp_path / "bodies", 30)
    with pytest.raises(
        TrainingError,
        match=r"raw output of \(1, \d+, 3\), 0000.txt one of \(1, \d+, 3\): .* let the model do that, or pad all "
        "bodies to one length; else use code exact",
    ):
        run(archive, bodies, tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_outputs_of_texts_padded_to_one_length_are_learned_before_the_handler_pools_them(tmp_path, monkeypatch):
    monkeypatch.setitem(texts.CALLS, "Pooled", "self.pooled(*self.padded(texts, 24))")
    archive, bodies = texts.archive(tmp_path, "Pooled"), texts.bodies(tmp_path / "bodies", 60)
    [student] = run(archive, bodies, tmp_path, steps=2)["candidates"]
    assert student["architecture"] == "bag"


@pytest.mark.slow
def test_bodies_that_are_the_same_at_first_do_not_decide_what_the_others_are(tmp_path):
    """As in logs of a probe: the first look may see nothing else."""
    made = texts.bodies(tmp_path / "bodies", 60)
    for file in sorted(made.iterdir())[:24]:
        file.write_text("the ship in a storm")
    [student] = run(texts.archive(tmp_path, "Mean"), made, tmp_path, steps=2)["candidates"]
    assert student["architecture"] == "bag"


def test_a_model_of_complex_numbers_is_learned_from(tmp_path, shapes_of):
    torch.manual_seed(0)
    rows = [{"0": torch.randn(1, 6, dtype=torch.complex64)} for _ in range(5)]
    shapes, call = shapes_of(rows), ModelCall("m", "__call__", (rows[0]["0"],), {})
    student = make_model(BAG, None, call, shapes)
    with torch.no_grad():
        assert student(shapes.calls).std(0).min() > 1e-4
        traced = torch.jit.trace(student.network, shapes.calls.tensors(0))
        torch.testing.assert_close(traced(*shapes.calls.tensors(1)), student.network(*shapes.calls.tensors(1)))
    with pytest.raises(TrainingError, match="transformer is for ids, and this model is given numbers only; try bag"):
        make_model(TRANSFORMER, None, call, shapes)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "script"), [("Mean", False), ("Named", True), ("Attends", False), ("Bag", True), ("Plain", False)]
)
def test_a_student_of_token_ids_answers_on_the_worker_as_it_was_trained(tmp_path, name, script):
    """Of any length, whatever way the handler calls its model, in the archive's own form or beside it."""
    archive, bodies = texts.archive(tmp_path, name, script), texts.bodies(tmp_path / "bodies", 160)
    report = run(archive, bodies, tmp_path, codes=("sum", "student", "exact"))
    student, exact = report["candidates"]
    assert [refused.split(":")[0] for refused in report["refused"]] == ["code sum with k = 2"]
    assert (student["architecture"], exact["agreement"]) == ("bag", 1.0)
    assert student["agreement"] > 0.8
    assert student["multiplications"] <= 1.0
    packed = read_archive(tmp_path / "out" / student["archives"][0])
    assert ("parity_model" in packed.section) == (not (script and name == "Bag"))
    asked = [Part((("content-type", "text/plain"),), text.encode()) for text, _ in texts.sentences(6, seed=5)]
    extract_archive(tmp_path / "out" / student["archives"][0], tmp_path / "packed")
    with InProcess(tmp_path / "packed") as worker:
        assert worker.describe()["ts_parity"]["verdict"] == "codable"
        alone = [json.loads(worker.ask(part.body, content_type="text/plain").body) for part in asked]
        groups = [worker.group(*asked[first : first + 2]).frame for first in (0, 2, 4)]
    slots = [json.loads(part.body) for frame in groups for part in frame.slots if part is not None]
    assert [slot["topic"] for slot in slots] == [each["topic"] for each in alone]
    assert len({len(part.body.split()) for part in asked}) > 3, "of many lengths"
    truth = [label for _, label in texts.sentences(6, seed=5)]
    assert sum(slot["topic"] == label for slot, label in zip(slots, truth, strict=True)) >= 4


@pytest.mark.slow
def test_exact_alone_is_scored_on_ids_and_packed_where_it_cannot_be(tmp_path):
    archive, bodies = texts.archive(tmp_path, "Mean"), texts.bodies(tmp_path / "bodies", 40)
    report = run(archive, bodies, tmp_path, codes=("exact",), score=bodies)
    assert report["candidates"][0]["agreement"] == 1.0
    assert report["candidates"][0]["cost"] > 0
