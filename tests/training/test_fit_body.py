"""Where the body's weights come from and how they are adapted: pretrained, warm start, LoRA."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from polyhead.predictor import Predictor
from polyhead_training.config import LoraConfig
from polyhead_training.errors import ConfigError
from polyhead_training.fitting.checkpoint_writing import Fitted, write_unscored
from polyhead_training.model.layers import add_adapters, merge_adapters
from tests.tiny import SCHEMA, TEXTS, tiny_config, tiny_model, tiny_spec, tiny_tokenizer
from tests.training.tiny_run import metrics, run, trained, weights, write_run

WARM = "[warm_start]\nepochs = 3\nbatch_size = 2\nlearning_rate = 1e-2\n"


@pytest.mark.parametrize("architecture", ["base", "hidden_state_concat"])
def test_merged_adapters_answer_as_the_adapted_model(tmp_path: Path, architecture: str) -> None:
    """The engine's logits of the merged checkpoint equal those with adapters, and the keys are a plain GPT-2's."""
    spec = tiny_spec(architecture)  # type: ignore[arg-type]
    model = tiny_model(spec)
    keys = set(model.state_dict())
    plain = model(torch.tensor([[1, 2, 3]])).logits
    adapted = add_adapters(model, LoraConfig(r=4))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name or name.startswith("head.")), name
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # fresh adapters would change nothing
    model.eval()
    ids = [ids for encoded in tiny_tokenizer().encode_batch(TEXTS[:4]) if (ids := encoded.ids[: spec.max_length])]
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([row])).logits for row in ids])
        assert (model(torch.tensor([[1, 2, 3]])).logits - plain).abs().max() > 1e-2
    merge_adapters(model, adapted)
    assert set(model.state_dict()) == keys
    write_unscored(tmp_path / "out", Fitted(model, spec, SCHEMA, tiny_tokenizer()), TEXTS, rows=4, seed=0)
    logits = Predictor.load(tmp_path / "out")._engine.logits(ids)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=0)


def test_lora_trains_adapters_and_head_and_writes_plain_weights(tmp_path: Path) -> None:
    """Only head and adapted modules change, none in a frozen block; few parameters are trained."""
    before = weights(trained(write_run(tmp_path / "start", layers=2)))
    pretrained = f'pretrained = "{tmp_path / "start" / "out"}"'
    config = write_run(
        tmp_path / "lora", "freeze_layers = 1", pretrained, more='[lora]\nr = 2\ntarget_modules = ["c_attn"]'
    )
    result = run(config)
    assert result.exit_code == 0, result.output
    assert "M of them trained" in result.output
    after = weights(tmp_path / "lora" / "out")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"body_model.h.1.attn.c_attn.weight", "head.weight"}
    assert (
        metrics(tmp_path / "lora" / "out")["training"]["trained_parameters"]
        == 2 * (32 + 3 * 32) + before["head.weight"].numel()
    )


@pytest.mark.parametrize("names", [["q_proj"], ["c_attn", "cfc"], ["attn"], []])
def test_adapters_for_modules_that_are_not_there_are_an_error(names: list[str]) -> None:
    """Each name is looked for; the field is named, and what is there."""
    allowed = "attn.c_attn, attn.c_proj, c_attn, c_fc, c_proj, mlp.c_fc, mlp.c_proj"
    with pytest.raises(ConfigError) as error:
        add_adapters(tiny_model(tiny_spec()), LoraConfig(target_modules=names))
    assert str(error.value) == f"lora.target_modules: must be among {allowed}, got {names}"


def test_adapters_need_a_block_that_is_not_frozen(tmp_path: Path) -> None:
    """Found before anything is trained, a warm start included."""
    result = run(write_run(tmp_path, "freeze_layers = 1", more="[lora]\n" + WARM))
    assert result.exit_code == 2
    assert result.stderr == (
        "polyhead-train: training.freeze_layers: must be below n_layer (1) with [lora], got 1; "
        "frozen blocks get no adapters\n"
    )
    assert "warm start" not in result.output.replace(result.stderr, "")


def test_dropouts_of_a_pretrained_model_are_overridable(tmp_path: Path) -> None:
    """A language model's folder with files as a hub name gives them; the config that is written has the new dropout."""
    GPT2LMHeadModel(tiny_config(n_layer=1)).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save(str(tmp_path / "gpt2" / "tokenizer.json"))
    model = f'pretrained = "{tmp_path}/gpt2"\ngpt2 = {{ attn_pdrop = 0.33 }}'
    checkpoint = trained(write_run(tmp_path / "run", model=model))
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert (config["attn_pdrop"], config["resid_pdrop"], config["n_embd"]) == (0.33, 0.1, 32)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    """A folder with nothing but pytorch_model.bin is answered with the command that converts it."""
    GPT2LMHeadModel(tiny_config(n_layer=1)).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save(str(tmp_path / "gpt2" / "tokenizer.json"))
    (tmp_path / "gpt2" / "model.safetensors").rename(tmp_path / "gpt2" / "pytorch_model.bin")
    result = run(write_run(tmp_path / "run", model=f'pretrained = "{tmp_path}/gpt2"'), "--dry-run")
    assert result.exit_code == 2
    assert "pytorch_model.bin: is a pickle, which is not read; if you trust it, convert it" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_warm_start_learns_the_texts(tmp_path: Path) -> None:
    """Perplexity falls below that of guessing; more texts are more tokens; it is said and kept."""
    lines = [{"text": "birds fly well " * 40}, {"text": "\u0301"}]  # the second has no token
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    plain = metrics(trained(write_run(tmp_path / "plain", more=WARM)))["training"]["warm_start"]
    # Of these texts' rows nothing else is read: they have neither a topic nor stars.
    data = 'where = { topic = ["cats", "dogs"] }\nfilters = ["tests.user_functions:has_topic"]\n'
    data += 'upsample = [{ column = "topic", values = ["cats"], times = 2 }]\ntext_transforms = ["strip_accents"]'
    config = write_run(tmp_path / "more", data=data, more=WARM + f'texts = "{tmp_path}/more.jsonl"')
    result = run(config)
    assert result.exit_code == 0, result.output
    more = metrics(tmp_path / "more" / "out")["training"]["warm_start"]
    assert more["tokens"] > plain["tokens"]
    assert plain["perplexity"] == pytest.approx(math.exp(plain["loss"]))
    assert plain["perplexity"] < 200  # of about 300 tokens
    assert f"warm start: validation loss {more['loss']:.3f}, perplexity {more['perplexity']:.1f}" in result.output


def test_a_finished_warm_start_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped after it resumes with its body, and ends with an unbroken run's weights."""
    head = 'head_class = "tests.signal_head:SignalHead"'
    unbroken = weights(trained(write_run(tmp_path / "unbroken", model=head, more=WARM)))
    config = write_run(tmp_path / "stopped", model=head, more=WARM)
    monkeypatch.setenv("POLYHEAD_TEST_SIGNAL", f"{int(signal.SIGINT)}@2")
    assert run(config).exit_code == 130
    monkeypatch.delenv("POLYHEAD_TEST_SIGNAL")
    result = run(config, "--resume")
    assert result.exit_code == 0, result.output
    assert "blocks of" not in result.output
    resumed = weights(tmp_path / "stopped" / "out")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in unbroken.items())


def test_too_few_texts_for_a_warm_start_are_an_error(tmp_path: Path) -> None:
    """A block needs max_length tokens."""
    config = write_run(tmp_path, more=WARM)
    text = config.read_text(encoding="utf-8").replace("max_length = 12", "max_length = 500")
    config.write_text(text, encoding="utf-8")
    result = run(config)
    assert result.exit_code == 2
    assert "warm_start: all training texts together are shorter than max_length (500) tokens" in result.stderr


def test_a_warm_start_that_diverges_leaves_nothing_to_decide(tmp_path: Path) -> None:
    """The message names the rate and says that the run is gone, and so it is."""
    result = run(write_run(tmp_path, more=WARM.replace("1e-2", "1e30")))
    assert result.exit_code == 2, result.output
    assert result.stderr.endswith(
        "polyhead-train: warm_start.learning_rate: the language model diverged; lower it (is 1e+30); "
        "the unfinished run is removed\n"
    )
    assert not (tmp_path / "out.training").exists()


def test_a_run_that_diverges_leaves_its_logs(tmp_path: Path) -> None:
    """The message says that the unfinished run is removed with its finished warm start."""
    config = write_run(tmp_path, 'report_to = ["tensorboard"]', more=WARM)
    config.write_text(
        config.read_text(encoding="utf-8").replace("learning_rate = 5e-3", "learning_rate = 1e30"), "utf-8"
    )
    result = run(config)
    assert result.exit_code == 2, result.output
    assert result.stderr.endswith("lower it (is 1e+30); the unfinished run is removed with its finished warm start\n")
    assert [path.name for path in (tmp_path / "out.training").iterdir()] == ["logs"]
