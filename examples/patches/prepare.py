"""Cut two photographs into patches, write these as JPEG request bodies, and train the deployed model on them.

    python prepare.py --out work

writes  work/patches.pt                  the weights
        work/index_to_name.json          the names of the classes, for TorchServe
        work/train/petals/0000.jpg ...   request bodies to train protections on, a folder for each class
        work/test/petals/0000.jpg ...    request bodies no model has seen

The photographs come with scikit-learn (Creative Commons, by danielbuechele and vultilion). Each is divided into cells;
patches to test on come from cells of their own, so no pixel of theirs is in a patch to train on. One seed gives the
same files and weights. What is in a patch must be told from its greys: by colour it would be too easy.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from handler import MEAN, SPREAD
from model import PatchNet
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional

from ts_parity.arguments import count

SIDE, CELL = 32, 44  # pixels: of a patch, and of the cells that patches are cut from
REGIONS = {  # where in which photograph: left, top, right, bottom
    "foliage": [("china.jpg", 0, 352, 270, 427), ("china.jpg", 332, 332, 562, 427), ("china.jpg", 572, 200, 640, 427)],
    "leaves": [("flower.jpg", 0, 0, 160, 427), ("flower.jpg", 450, 0, 640, 380)],
    "pagoda": [("china.jpg", 98, 70, 318, 350)],
    "petals": [("flower.jpg", 208, 120, 408, 320)],
    "sky": [("china.jpg", 340, 0, 640, 180)],
}
TRAIN, TEST = 300, 60  # patches of each class
STEPS, BATCH, PEAK_RATE = 250, 64, 5e-3


def cells_of(boxes):
    """-> (cell, cell, 3) pieces of photographs."""
    cells = []
    for photograph, left, top, right, bottom in boxes:
        pixels = load_sample_image(photograph)
        for y in range(top, bottom - CELL + 1, CELL):
            cells += [pixels[y : y + CELL, x : x + CELL] for x in range(left, right - CELL + 1, CELL)]
    return cells


def patches(cells, count, dice):
    """(count, SIDE, SIDE, 3): anywhere in any of the cells, some of them mirrored."""
    cut = []
    for _ in range(count):
        cell = cells[dice.integers(len(cells))]
        x, y = dice.integers(0, CELL - SIDE + 1, 2)
        cut.append(cell[y : y + SIDE, x : x + SIDE][:, :: dice.choice([1, -1])])
    return np.stack(cut)


def write(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04d}.jpg", quality=90)


def read(folder):
    """As clients' requests will be read: what JPEG did to the patches included. -> images, classes."""
    files = sorted(folder.glob("*/*.jpg"))
    pixels = np.stack([np.asarray(Image.open(file).convert("L"), dtype=np.float32) / 255 for file in files])
    classes = [sorted(REGIONS).index(file.parent.name) for file in files]
    return (torch.from_numpy(pixels)[:, None] - MEAN) / SPREAD, torch.tensor(classes)


def train(images, classes, seed):
    torch.set_num_threads(1)  # more gain a small network little, and wait for each other on a busy machine
    torch.manual_seed(seed)
    net = PatchNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        picks = torch.randint(len(images), (BATCH,))
        loss = functional.cross_entropy(net(images[picks]), classes[picks], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=count(0), default=0)
    args = parser.parse_args()

    dice = np.random.default_rng(args.seed)
    for name, boxes in sorted(REGIONS.items()):
        cells = cells_of(boxes)
        order = dice.permutation(len(cells))
        held = max(2, len(cells) // 5)
        write(args.out / "test" / name, patches([cells[i] for i in order[:held]], TEST, dice))
        write(args.out / "train" / name, patches([cells[i] for i in order[held:]], TRAIN, dice))
    net = train(*read(args.out / "train"), args.seed)
    torch.save(net.state_dict(), args.out / "patches.pt")
    names = {str(number): name for number, name in enumerate(sorted(REGIONS))}
    (args.out / "index_to_name.json").write_text(json.dumps(names))
    images, classes = read(args.out / "test")
    with torch.inference_mode():
        accuracy = float((net(images).argmax(1) == classes).float().mean())
    print(json.dumps({"accuracy": round(accuracy, 4), "train": TRAIN * len(names), "test": TEST * len(names)}))


if __name__ == "__main__":
    main()
