"""An ordinary TorchServe handler: a sentence in, the library whose documentation it is from out as JSON."""

import json
from pathlib import Path

import torch
from model import LIBRARIES, UNKNOWN, Librarian, tokens
from torch.nn.utils.rnn import pad_sequence
from ts.torch_handler.base_handler import BaseHandler


class LibrarianHandler(BaseHandler):
    def initialize(self, context):
        folder = Path(context.system_properties["model_dir"])
        words = json.loads((folder / "words.json").read_text())
        self.places = {word: place for place, word in enumerate(words)}
        self.model = Librarian(len(words))
        self.model.load_state_dict(torch.load(folder / context.manifest["model"]["serializedFile"]))
        self.model.eval()
        self.initialized = True

    def preprocess(self, data):
        ids = []
        for row in data:
            text = row.get("data") or row.get("body")
            if not isinstance(text, str):
                text = bytes(text).decode()
            ids.append(torch.tensor([self.places.get(token, UNKNOWN) for token in tokens(text)]))
        mask = [torch.ones_like(each) for each in ids]
        # Padded to the longest sentence of this batch: no two requests need have the same length.
        return pad_sequence(ids, batch_first=True), pad_sequence(mask, batch_first=True)

    def inference(self, batch):
        with torch.inference_mode():
            return self.model(*batch)

    def postprocess(self, scores):
        answers = []
        for probabilities in torch.softmax(scores, dim=1).tolist():
            best = max(probabilities)
            answers.append({"library": LIBRARIES[probabilities.index(best)], "probability": round(best, 4)})
        return answers
