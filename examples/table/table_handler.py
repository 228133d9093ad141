"""An ordinary TorchServe handler for scikit-learn models of tables: one row as a JSON object in, what it means out.

It knows nothing of ts_parity. One archive has a classifier, another a regressor; the file says which, and its columns.
"""

import os

import joblib
import numpy as np


class TableHandler:
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        saved = joblib.load(os.path.join(folder, context.manifest["model"]["serializedFile"]))
        self.model = saved["model"]
        self.columns = saved["columns"]
        self.classes = saved["classes"]  # None: it predicts a number

    def handle(self, data, context):
        rows = [row.get("data") or row.get("body") for row in data]
        table = np.array([[row[column] for column in self.columns] for row in rows])
        if self.classes is None:
            return [{"progression": round(float(number), 1)} for number in self.model.predict(table)]
        return [
            {"class": self.classes[chances.argmax()], "probabilities": [round(float(p), 4) for p in chances]}
            for chances in self.model.predict_proba(table)
        ]
