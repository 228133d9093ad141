"""Handlers of token ids as people write them, and texts for them: short, real enough, and of many lengths."""

import io
import json
from pathlib import Path

import numpy as np
import torch

from tests.conftest import write_archive
from tests.training import text_nets

TOPICS = {
    "sea": ["ship", "harbour", "wave", "anchor", "sail", "captain", "tide", "gull", "island", "storm"],
    "kitchen": ["pan", "butter", "onion", "knife", "oven", "salt", "flour", "spoon", "recipe", "soup"],
    "garden": ["seed", "soil", "rose", "spade", "hedge", "bloom", "worm", "lawn", "pot", "rain"],
}
COMMON = ["the", "a", "of", "and", "with", "in", "on", "to", "is", "was", "by", "from", "it", "my", "we", "that"]
WORDS = ["<pad>", *sorted({*COMMON, *(word for words in TOPICS.values() for word in words)})]
CLASSES = [*TOPICS]

NETS = Path(text_nets.__file__).read_text()

HANDLER = """
import json
import os
import torch
import nets


class Handler:
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        self.words = {word: i for i, word in enumerate(json.load(open(os.path.join(folder, "words.json"))))}
        file = os.path.join(folder, context.manifest["model"]["serializedFile"])
        LOAD
        self.model.eval()

    def ids(self, row):
        text = row.get("data") or row.get("body")
        text = text if isinstance(text, str) else bytes(text).decode()
        return [self.words.get(word, len(self.words) - 1) for word in text.split()]

    def handle(self, data, context):
        texts = [self.ids(row) for row in data]
        with torch.no_grad():
            out = CALL
        return [{"topic": int(row.argmax()), "scores": row.tolist()} for row in torch.softmax(out, 1)]

    def padded(self, texts, to=0):
        length = max([to, *map(len, texts)])
        ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
        return ids, mask

    def pooled(self, ids, mask):
        marked = mask.unsqueeze(-1)
        return (self.model(input_ids=ids, attention_mask=mask) * marked).sum(1) / marked.sum(1)
"""
CALLS = {
    "Mean": "self.model(*self.padded(texts))",
    "Named": 'self.model(dict(zip(("input_ids", "attention_mask"), self.padded(texts, 16))))["logits"]',
    "Attends": 'self.model(**dict(zip(("input_ids", "attention_mask"), self.padded(texts))))',
    "Bag": "self.model(torch.tensor(sum(texts, [])),"
    " torch.tensor([sum(map(len, texts[:i])) for i in range(len(texts))]))",
    "Plain": "torch.cat([self.model(torch.tensor([text])) for text in texts])",
    "Pooled": "self.pooled(*self.padded(texts))",
}


def sentences(count, seed=0):
    """(text, class) each: words of one topic among common ones, four to twenty-four."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        length = int(rng.integers(4, 25))
        topical = rng.random(length) < 0.35
        topical[rng.integers(length)] = True
        own = TOPICS[CLASSES[label]]
        words = [str(rng.choice(own if of_topic else COMMON)) for of_topic in topical]
        made.append((" ".join(words), label))
    return made


def net(name, seed=0):
    """Trained for a second: what it says follows the words."""
    torch.manual_seed(seed)
    made = getattr(text_nets, name)()
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    texts = sentences(512, seed=9)
    labels = torch.tensor([label for _, label in texts])
    places = {word: i for i, word in enumerate(WORDS)}
    rows = [[places[word] for word in text.split()] for text, _ in texts]
    for _ in range(30):
        out = _answers(name, made, rows)
        loss = torch.nn.functional.cross_entropy(out, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval()


def _answers(name, made, rows):
    if name == "Bag":
        starts = np.cumsum([0, *map(len, rows[:-1])])
        return made(torch.tensor([place for row in rows for place in row]), torch.tensor(starts))
    if name == "Plain":
        alike: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(len(row), []).append(place)
        out = torch.cat([made(torch.tensor([rows[place] for place in places])) for places in alike.values()])
        return out[torch.tensor([place for places in alike.values() for place in places]).argsort()]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = (ids != 0).long()
    out = made({"input_ids": ids, "attention_mask": mask}) if name == "Named" else made(ids, mask)
    if name == "Pooled":
        return (out * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    return out["logits"] if name == "Named" else out


def _traced(name, made):
    ids, mask = torch.ones(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.long)
    given = {"Named": {"input_ids": ids, "attention_mask": mask}, "Bag": (ids[0], torch.zeros(1, dtype=torch.long))}
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return torch.jit.trace(made, given.get(name, ids if name == "Plain" else (ids, mask)), strict=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def archive(folder: Path, name: str, script: bool = False) -> Path:
    made, buffer = net(name), io.BytesIO()
    if script:
        torch.jit.save(_traced(name, made), buffer)
    else:
        torch.save(made.state_dict(), buffer)
    load = (
        "self.model = torch.jit.load(file)"
        if script
        else (f"self.model = nets.{name}(); self.model.load_state_dict(torch.load(file))")
    )
    files = {"nets.py": NETS, "words.json": json.dumps(WORDS)}
    handler = HANDLER.replace("LOAD", load).replace("CALL", CALLS[name])
    return write_archive(folder / "topics.mar", handler, name="topics", serialized=buffer.getvalue(), files=files)


def bodies(folder: Path, count: int = 300, seed: int = 0) -> Path:
    folder.mkdir()
    for number, (text, _) in enumerate(sentences(count, seed)):
        (folder / f"{number:04d}.txt").write_text(text)
    return folder
