"""FastAPI around transformers' text-classification pipeline, as one writes it first: POST /predict {"text": …}.

No batching: each request runs in the thread that FastAPI gives it; a lock keeps them from fighting for the cores.
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


class Question(BaseModel):
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

    @app.post("/predict")
    def predict(question: Question) -> list[Any]:
        """One answer."""
        with alone:
            return classify(question.text, truncation=True)

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")
