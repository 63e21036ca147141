"""``polyhead-import``: an imported checkpoint of that_nlp_library answers as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from polyhead.heads import ConcatHeadExtended, ConcatHeadSimple
from polyhead.predictor import Predictor
from polyhead_training.errors import DataError
from polyhead_training.import_checkpoint import EXAMPLE, ImportConfig, app, import_checkpoint
from polyhead_training.model.modeling import (
    GPT2BaseForSequenceClassification,
    GPT2HiddenStateConcatForSequenceClassification,
)
from tests.tiny import TEXTS, tiny_config, tiny_tokenizer

BASE = 'architecture = "base"\nhead_class_sizes = [2, 1, 3]\nis_multihead = true'
HEADS = (
    '[[heads]]\nname = "a"\nlabels = ["x", "y"]\n[[heads]]\nname = "b"\n[[heads]]\nname = "c"\nlabels = ["1", "2", "3"]'
)


def write_library_checkpoint(folder: Path, model: Any) -> None:
    """The folder as that_nlp_library's trainer leaves it, with the causal masks that old versions saved."""
    folder.mkdir(parents=True)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["body_model.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.to_json_file(str(folder / "config.json"))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))


def run_import(tmp_path: Path, arguments: str, heads: str = HEADS) -> Result:
    """``polyhead-import`` with a config of these arguments and heads."""
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text, "a": "unknown"}) + "\n" for text in TEXTS), encoding="utf-8"
    )
    (tmp_path / "import.toml").write_text(
        f'{arguments}\nmax_length = 48\ntexts = "{tmp_path}/texts.jsonl"\n{heads}\n', encoding="utf-8"
    )
    options = ["--config", str(tmp_path / "import.toml"), "--output", str(tmp_path / "out")]
    return CliRunner().invoke(app, [str(tmp_path / "folder"), *options])


def library_model(model_class: Any, **arguments: Any) -> Any:
    """Constructed as that library's users do, with weights large enough that texts differ."""
    torch.manual_seed(0)
    model = model_class(tiny_config(), **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


CASES = [
    (
        lambda: library_model(GPT2BaseForSequenceClassification, is_multihead=True, head_class_sizes=[2, 1, 3]),
        BASE,
        HEADS,
        ["single_label", "regression", "single_label"],
    ),
    (
        lambda: library_model(
            GPT2HiddenStateConcatForSequenceClassification,
            layer2concat=3,
            is_multilabel=True,
            head_class_sizes=[4],
            head_class=ConcatHeadExtended,
            last_hidden_size=8,
        ),
        'architecture = "hidden_state_concat"\nlayer2concat = 3\nis_multilabel = true\nhead_class_sizes = 4\n'
        'head_class = "ConcatHeadExtended"\nhead_args = { last_hidden_size = 8 }',
        '[[heads]]\nname = "all"\nlabels = ["p", "q", "r", "s"]',
        ["multi_label"],
    ),
    (
        lambda: library_model(
            GPT2HiddenStateConcatForSequenceClassification,
            layer2concat=4,  # of three layers: the embeddings too
            head_class_sizes=2,
            head_class=ConcatHeadSimple,
        ),
        'architecture = "hidden_state_concat"\nlayer2concat = 4\nhead_class_sizes = 2',
        '[[heads]]\nname = "yes"\nlabels = ["n", "y"]',
        ["single_label"],
    ),
]


def test_an_imported_model_can_read_in_windows(tmp_path: Path) -> None:
    """A text of 60 tokens: the logits of tokens 0 to 47 and of 36 to 59, in the shares 48 and 12 of 60."""
    model = library_model(GPT2BaseForSequenceClassification, is_multihead=True, head_class_sizes=[2, 1, 3])
    write_library_checkpoint(tmp_path / "folder", model)
    result = run_import(tmp_path, f'{BASE}\nlong_texts = "windows"\nmost_windows = 4')
    assert result.exit_code == 0, result.output
    predictor = Predictor.load(tmp_path / "out")
    ids = tiny_tokenizer().encode(" ".join(TEXTS)).ids[:60]
    with torch.inference_mode():
        first, second = (model(torch.tensor([part])).logits[0] for part in (ids[:48], ids[36:]))
    (answer,) = predictor.predict([tiny_tokenizer().decode(ids)])
    assert (answer["token_count"], answer["truncated"], predictor.max_length) == (60, False, 48 + 3 * 36)
    assert answer["heads"]["b"]["value"] == pytest.approx(float(0.8 * first[2] + 0.2 * second[2]), abs=1e-5)
    wrong = run_import(tmp_path, f'{BASE}\nlong_texts = "windows"\nwindow_overlap = 48')
    assert "window_overlap (48) must be smaller than max_length (48)" in wrong.output


@pytest.mark.parametrize(("model", "arguments", "heads", "kinds"), CASES, ids=["base", "concat", "concat-embeddings"])
def test_the_engine_answers_as_the_imported_model(
    tmp_path: Path, model: Any, arguments: str, heads: str, kinds: list[str]
) -> None:
    """Logits of texts within 1e-5, and the heads' kinds are what the constructor's arguments mean."""
    built = model()
    write_library_checkpoint(tmp_path / "folder", built)
    result = run_import(tmp_path, arguments, heads)
    assert result.exit_code == 0, result.output
    predictor = Predictor.load(tmp_path / "out")
    assert [head.kind for head in predictor.schema] == kinds
    assert {head.target_scale for head in predictor.schema} == {None}  # a regression answers its logit, as there
    ids = [text.token_ids for text in predictor.encode(TEXTS)]
    with torch.no_grad():
        expected = torch.cat([built(torch.tensor([row])).logits for row in ids])
    torch.testing.assert_close(torch.from_numpy(predictor._engine.logits(ids)), expected, atol=1e-5, rtol=0)


def test_a_template_is_kept(tmp_path: Path) -> None:
    """It is null unless the config gives one; then the texts are rendered with it and the model takes its fields."""
    model, arguments, heads, _ = CASES[0]
    write_library_checkpoint(tmp_path / "folder", model())
    assert run_import(tmp_path, arguments, heads).exit_code == 0
    assert Predictor.load(tmp_path / "out").template is None
    result = run_import(tmp_path, f"{arguments}\ntext_template = '[[{{a}}: ]]{{text}}'", heads)
    assert result.exit_code == 0, result.output
    predictor = Predictor.load(tmp_path / "out")
    assert predictor.template is not None
    assert predictor.template.fields == ("a", "text")
    golden = predictor.checkpoint.golden()
    assert {row.text for row in golden} == {f"unknown: {text}" for text in TEXTS}
    assert {tuple((row.fields or {}).values()) for row in golden} == {("unknown", text) for text in TEXTS}
    result = run_import(tmp_path, f"{arguments}\ntext_template = '{{a'", heads)
    assert result.exit_code == 2
    assert "text_template: character 1: expected '}'" in result.stderr


def test_texts_that_are_numbers(tmp_path: Path) -> None:
    """They are refused, and the key that accepts them is one of this config."""
    write_library_checkpoint(tmp_path / "folder", library_model(GPT2BaseForSequenceClassification, head_class_sizes=2))
    (tmp_path / "numbers.csv").write_text("text\n0.5\n2\n", encoding="utf-8")
    config = ImportConfig.model_validate({
        "architecture": "base", "head_class_sizes": 2, "max_length": 48, "texts": str(tmp_path / "numbers.csv"),
        "heads": [{"name": "a", "labels": ["x", "y"]}],
    })  # fmt: skip
    with pytest.raises(DataError, match="; any_text = true takes the column as it is"):
        import_checkpoint(tmp_path / "folder", config, tmp_path / "out")
    accepted = config.model_copy(update={"any_text": True})
    assert import_checkpoint(tmp_path / "folder", accepted, tmp_path / "out") < 1e-4


@pytest.mark.parametrize(
    ("arguments", "heads", "message"),
    [
        (BASE, HEADS.replace(', "3"', ""), "heads: 'c' is single_label of size 3 and needs 3 labels, got 2"),
        (BASE, HEADS.partition("\n[[heads]]\nname = \"c\"")[0], "mean 3 heads, got 2"),
        (BASE.replace("is_multihead = true", ""), HEADS, "[2, 1, 3] means several heads, but is_multihead is false"),
        (
            BASE.replace("base", "hidden_state_concat") + "\nlayer2concat = 5", HEADS,
            "layer2concat must lie in 1 to n_layer + 1 (4), got 5",
        ),
        (
            BASE.replace("base", "hidden_state_concat") + "\nlayer2concat = 2", HEADS,
            "tensor 'head.out_proj.bias' has shape none, it is missing, the arguments mean (6,)",
        ),
        (BASE + "\nlayers = 2", HEADS, "import.toml: unknown field 'layers'"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_one_line(tmp_path: Path, arguments: str, heads: str, message: str) -> None:
    """Exit code 2, and nothing is written."""
    write_library_checkpoint(tmp_path / "folder", CASES[0][0]())
    result = run_import(tmp_path, arguments, heads)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value", "tensor"),
    [
        ("n_layer", 10**9, "h.3.ln_1.weight"),
        ("vocab_size", 10**12, "wte.weight"),
        ("n_positions", 10**12, "wpe.weight"),
    ],
)
def test_a_config_is_compared_before_anything_is_built(tmp_path: Path, field: str, value: int, tensor: str) -> None:
    """A billion layers, or a matrix larger than the machine, are one line at once."""
    model = library_model(GPT2BaseForSequenceClassification, is_multihead=True, head_class_sizes=[2, 1, 3])
    write_library_checkpoint(tmp_path / "folder", model)
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {field: value}), encoding="utf-8")
    result = run_import(tmp_path, BASE)
    assert result.exit_code == 2
    assert f"model.safetensors: tensor 'body_model.{tensor}' has shape" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    """pytorch_model.bin is refused with the command that converts it."""
    write_library_checkpoint(tmp_path / "folder", CASES[0][0]())
    (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "folder" / "pytorch_model.bin")
    result = run_import(tmp_path, BASE)
    assert result.exit_code == 2
    assert "is a pickle, which is not read" in result.stderr
    assert "torch.load('pytorch_model.bin', weights_only=True)" in result.stderr


def test_the_example_is_a_config_but_for_its_files(tmp_path: Path) -> None:
    """--example prints one that is validated as it stands."""
    result = CliRunner().invoke(app, ["--example"])
    assert result.exit_code == 0
    assert result.output == EXAMPLE
    (tmp_path / "import.toml").write_text(EXAMPLE, encoding="utf-8")
    options = ["--config", str(tmp_path / "import.toml"), "--output", str(tmp_path / "out")]
    assert "model.safetensors: is missing" in CliRunner().invoke(app, [str(tmp_path), *options]).stderr
