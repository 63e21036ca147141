"""What the benchmark of the tail compares model.py with: `execute` computes its batch and returns all responses.

It has no queue, refuses nothing and reads only the options. It replaces model.py in a copy of the repository.
"""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import triton_python_backend_utils as pb_utils

from polyhead.decode import DecodeOptions
from polyhead.machine import usable_cores
from polyhead.predictor import Predictor


class TritonPythonModel:
    """One instance of the model on the CPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the checkpoint beside this file."""
        torch.set_num_threads(usable_cores())
        self.predictor = Predictor.load(Path(args["model_repository"]) / args["model_version"] / "checkpoint")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers the requests in order."""
        texts = [pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()[:, 0].tolist() for request in requests]
        encoded = self.predictor.encode([text for rows in texts for text in rows])
        scores = self.predictor.score(encoded)
        rest = iter(zip(encoded, scores, strict=True))
        return [
            self.respond(request, list(islice(rest, len(rows)))) for request, rows in zip(requests, texts, strict=True)
        ]

    def respond(self, request: Any, rows: list[Any]) -> Any:
        """Builds the outputs that the request asked for."""
        encoded, scores = [row[0] for row in rows], np.stack([row[1] for row in rows])
        outputs = set(request.requested_output_names())
        tensors = []
        if "PREDICTION" in outputs:
            options = DecodeOptions.from_parameters(json.loads(request.parameters() or "{}"))
            answers = self.predictor.decode(encoded, scores, options)
            array = np.empty((len(answers), 1), dtype=np.object_)
            array[:, 0] = [orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY) for answer in answers]
            tensors.append(pb_utils.Tensor("PREDICTION", array))
        if "SCORES" in outputs:
            tensors.append(pb_utils.Tensor("SCORES", scores))
        return pb_utils.InferenceResponse(output_tensors=tensors)
