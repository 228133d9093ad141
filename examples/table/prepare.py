"""Fit the deployed models on scikit-learn's tables of wines and of diabetes patients, and write rows as request bodies.

    python prepare.py --out work

writes, for each of wine (three cultivars from 13 measurements) and diabetes (the disease's progression from 10),

    work/wine.joblib                 a random forest, its columns and its classes
    work/wine/logged/0000.json ...   2,000 requests to learn from, as a log would hold
    work/wine/test/0000.json ...     rows that no model has seen
    work/wine/labels.csv             file,label of those (for scoring only)

Everything is repeatable: the same files each time.
"""

import argparse
import csv
import json
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

SEED = 0
TEST = 0.25
LOGGED = 2000  # the tables are small; a log holds many rows that lie between theirs
TREES = {"n_estimators": 100, "min_samples_leaf": 2, "n_jobs": 1}


def write_rows(folder: Path, columns, rows) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        body = dict(zip(columns, (round(float(value), 4) for value in row), strict=True))
        (folder / f"{number:04d}.json").write_text(json.dumps(body))


def prepare(name: str, table, forest, classes, out: Path) -> float:
    dice = np.random.default_rng(SEED)
    order = dice.permutation(len(table.data))
    held = int(TEST * len(order))
    unseen, seen = order[:held], order[held:]
    forest.fit(table.data[seen], table.target[seen])
    saved = {"model": forest, "columns": list(table.feature_names), "classes": classes}
    joblib.dump(saved, out / f"{name}.joblib")
    one, other = table.data[dice.choice(seen, LOGGED)], table.data[dice.choice(seen, LOGGED)]
    share = dice.uniform(0, 0.5, (LOGGED, 1))
    write_rows(out / name / "logged", table.feature_names, (1 - share) * one + share * other)
    write_rows(out / name / "test", table.feature_names, table.data[unseen])
    with open(out / name / "labels.csv", "w", newline="") as file:
        rows = [(f"{number:04d}.json", table.target[row]) for number, row in enumerate(unseen)]
        csv.writer(file).writerows([("file", "label"), *rows])
    return round(float(forest.score(table.data[unseen], table.target[unseen])), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    wine, diabetes = load_wine(), load_diabetes(scaled=False)
    forests = (
        RandomForestClassifier(random_state=SEED, **TREES),
        RandomForestRegressor(random_state=SEED, **TREES),
    )
    cultivars = [str(name) for name in wine.target_names]
    figures = {
        "wine, accuracy": prepare("wine", wine, forests[0], cultivars, args.out),
        "diabetes, R2": prepare("diabetes", diabetes, forests[1], None, args.out),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
