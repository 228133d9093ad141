"""The networks that handlers of token ids have, each with another way of being called."""

from torch import nn


class Mean(nn.Module):
    """Ids and a mask, as for a BERT."""

    def __init__(self, words=47, size=32, classes=3):
        super().__init__()
        self.embed = nn.Embedding(words, size, padding_idx=0)
        self.head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, classes))

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids) * attention_mask.unsqueeze(-1)
        return self.head(x.sum(1) / attention_mask.sum(1, keepdim=True).clamp(min=1))


class Named(Mean):
    """Takes a dictionary and gives one."""

    def forward(self, inputs):
        return {"logits": super().forward(inputs["input_ids"], inputs["attention_mask"])}


class Attends(nn.Module):
    def __init__(self, words=47, size=32, classes=3):
        super().__init__()
        self.embed = nn.Embedding(words, size)
        layer = nn.TransformerEncoderLayer(size, 4, 64, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(size, classes)

    def forward(self, input_ids, attention_mask):
        hidden = attention_mask == 0
        x = self.layers(self.embed(input_ids), src_key_padding_mask=hidden)
        return self.head(x.masked_fill(hidden.unsqueeze(-1), 0).sum(1) / attention_mask.sum(1, keepdim=True))


class Pooled(Attends):
    """An output for each token, of which the handler makes one for the text, as for a BERT without a head."""

    def forward(self, input_ids, attention_mask):
        return self.head(self.layers(self.embed(input_ids), src_key_padding_mask=attention_mask == 0))


class Bag(nn.Module):
    """PyTorch's tutorial: all ids in a row, and where each text begins."""

    def __init__(self, words=47, size=32, classes=3):
        super().__init__()
        self.embed = nn.EmbeddingBag(words, size)
        self.head = nn.Linear(size, classes)

    def forward(self, text, offsets):
        return self.head(self.embed(text, offsets))


class Plain(nn.Module):
    """Ids of any length, and no mask."""

    def __init__(self, words=47, size=32, classes=3):
        super().__init__()
        self.embed = nn.Embedding(words, size)
        self.recurrent = nn.GRU(size, size, batch_first=True)
        self.head = nn.Linear(size, classes)

    def forward(self, ids):
        return self.head(self.recurrent(self.embed(ids))[0][:, -1])
