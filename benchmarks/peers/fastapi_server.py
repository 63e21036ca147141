"""FastAPI around transformers' text-classification pipeline, in its simplest form: POST /predict {"text": …}.

It has no batching: each request runs in its own thread, and a lock keeps requests from competing for the cores.
"""

from __future__ import annotations

import argparse
from threading import Lock
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class PredictRequest(BaseModel):
    """The body of a request."""

    text: str


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    classify = pipeline("text-classification", model=arguments.model, dtype=dtype, device=arguments.device, top_k=1)
    app, alone = FastAPI(), Lock()

    @app.post("/predict")  # type: ignore[untyped-decorator,unused-ignore]  # fastapi is not installed everywhere
    def predict(request: PredictRequest) -> list[Any]:
        """Classifies one text."""
        with alone:
            return classify(request.text, truncation=True)

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")
