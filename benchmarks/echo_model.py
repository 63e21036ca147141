"""A Triton Python model that computes nothing: each text gets the same answer, so that only the client is measured."""

from __future__ import annotations

import json

import numpy as np
import triton_python_backend_utils as pb_utils

ANSWER = json.dumps(
    {
        "heads": {
            "section": {"kind": "single_label", "labels": ["libs"], "scores": [0.7321]},
            "role": {"kind": "single_label", "labels": ["shared-lib"], "scores": [0.9125]},
            "tags": {
                "kind": "multi_label",
                "labels": ["devel::library", "implemented-in::c"],
                "scores": [0.8411, 0.5512],
                "thresholds": [0.41, 0.33],
            },
        },
        "token_count": 103,
        "truncated": False,
    }
).encode()


class TritonPythonModel:
    """Gives each text the answer ANSWER."""

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """One response per request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        count = pb_utils.get_input_tensor_by_name(request, "TEXT").shape()[0]
        columns = {
            "PREDICTION": np.full((count, 1), ANSWER, dtype=np.object_),
            "SCORES": np.zeros((count, 1), dtype=np.float32),  # polyhead-serve's canary asks for them
        }
        asked = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, columns[name]) for name in columns if name in asked])
