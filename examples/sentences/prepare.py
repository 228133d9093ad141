"""Collect sentences from the documentation that Python and five libraries bring along, and train the deployed model.

    python prepare.py --out work

writes  work/librarian.pt      the weights
        work/words.json        the vocabulary, an archive's extra file
        work/train/0000.txt    request bodies to train a student on
        work/test/0000.txt     request bodies that neither model has seen
        work/labels.csv        file,label for all of them (for scoring only)

The sentences are first sentences of docstrings, read from the source files that are installed; nothing is downloaded
and nothing is copied into this repository. Everything is repeatable: the same installation gives the same files.
"""

import argparse
import ast
import csv
import json
import re
import sysconfig
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from model import LIBRARIES, UNKNOWN, Librarian, tokens
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

SEED = 0
EACH = 700  # sentences of each library
TEST = 100  # of these
SHORTEST, LONGEST = 4, 60  # words
LEFT_OUT = {"site-packages", "tests", "test", "testing", "idlelib"}  # folders
WORDS = 8000
EPOCHS = 4
BATCH = 64
PEAK_RATE = 4e-3  # of a one-cycle schedule


def folder_of(library: str) -> Path:
    if library == "python":
        return Path(sysconfig.get_path("stdlib"))
    return Path(find_spec(library).submodule_search_locations[0])


def sentences_of(library: str, dice: np.random.Generator) -> list[str]:
    """First sentences of docstrings, each once, from source files drawn until there are enough."""
    top, found = folder_of(library), {}
    files = [file for file in sorted(top.rglob("*.py")) if not LEFT_OUT & set(file.relative_to(top).parts)]
    for place in dice.permutation(len(files)):
        try:
            tree = ast.parse(files[place].read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                first = re.split(r"\n\s*\n|(?<=[a-z)`])\.(?:\s|$)", text, maxsplit=1)[0]
                sentence = " ".join(first.split())
                if SHORTEST <= len(sentence.split()) <= LONGEST:
                    found[sentence] = None
        if len(found) >= EACH:
            break
    return list(found)[:EACH]


def train(ids: list, labels: torch.Tensor, words: int) -> Librarian:
    torch.set_num_threads(1)  # more gain a small network little, and wait for each other on a busy machine
    torch.manual_seed(SEED)
    net = Librarian(words)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE)
    steps = EPOCHS * (len(ids) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(ids))
        for picks in order.split(BATCH)[: len(ids) // BATCH]:
            scores = net(*padded([ids[i] for i in picks]))
            loss = functional.cross_entropy(scores, labels[picks])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def padded(ids: list):
    mask = pad_sequence([torch.ones(len(each), dtype=torch.long) for each in ids], batch_first=True)
    return pad_sequence([torch.tensor(each) for each in ids], batch_first=True), mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    dice = np.random.default_rng(SEED)
    texts, labels = [], []
    for label, library in enumerate(LIBRARIES):
        found = sentences_of(library, dice)
        texts += found
        labels += [label] * len(found)
    order = dice.permutation(len(texts))
    unseen, seen = order[: TEST * len(LIBRARIES)], order[TEST * len(LIBRARIES) :]
    counts = Counter(token for i in seen for token in tokens(texts[i]))
    words = ["<pad>", "<unknown>", *(word for word, _ in counts.most_common(WORDS - 2))]
    places = {word: place for place, word in enumerate(words)}
    ids = [[places.get(token, UNKNOWN) for token in tokens(text)] for text in texts]
    truth = torch.tensor(labels)

    net = train([ids[i] for i in seen], truth[seen], len(words))
    with torch.inference_mode():
        right = [int(net(*padded([ids[i]])).argmax()) == labels[i] for i in unseen]

    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), args.out / "librarian.pt")
    (args.out / "words.json").write_text(json.dumps(words))
    with open(args.out / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "label"))
        for folder, chosen in (("train", seen), ("test", unseen)):
            (args.out / folder).mkdir(exist_ok=True)
            for number, i in enumerate(chosen):
                name = f"{folder}/{number:04d}.txt"
                (args.out / name).write_text(texts[i], encoding="utf-8")
                table.writerow((name, labels[i]))
    print(json.dumps({"accuracy": round(float(np.mean(right)), 4), "train": len(seen), "test": len(unseen)}))


if __name__ == "__main__":
    main()
