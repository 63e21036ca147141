"""LitServe with dynamic batching around transformers' text-classification pipeline: POST /predict {"text": …}."""

from __future__ import annotations

import argparse
import os
from typing import Any

import litserve
import torch
from transformers import pipeline

BATCH_TIMEOUT_S = 0.01


class PipelineAPI(litserve.LitAPI):
    """One pipeline call a batch; LitServe joins requests to batches."""

    def __init__(self, model: str, dtype: str, **batching: Any) -> None:
        super().__init__(**batching)
        self.model, self.dtype = model, dtype

    def setup(self, device: str) -> None:
        """Loads the model in the worker, which may use all cores."""
        torch.set_num_threads(os.cpu_count() or 1)
        self.classify = pipeline(
            "text-classification", model=self.model, dtype=getattr(torch, self.dtype), device=device, top_k=1
        )

    def decode_request(self, request: dict[str, str]) -> str:
        """The text."""
        return request["text"]

    def predict(self, texts: list[str]) -> list[Any]:
        """One answer a text."""
        return self.classify(texts, batch_size=len(texts), truncation=True)

    def encode_response(self, output: Any) -> Any:
        """Is JSON already."""
        return output


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    api = PipelineAPI(arguments.model, arguments.dtype, max_batch_size=arguments.batch, batch_timeout=BATCH_TIMEOUT_S)
    server = litserve.LitServer(api, accelerator=arguments.device, devices=1, workers_per_device=1, timeout=600)
    server.run(host="127.0.0.1", port=arguments.port, generate_client_file=False, log_level="warning")
