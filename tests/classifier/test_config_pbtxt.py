"""Of a config.pbtxt, only the version policy and the name of the labels are read and written."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from polyhead.config_pbtxt import ConfigPbtxt, for_gpu
from polyhead.errors import RepositoryError

TEMPLATE = Path(__file__).resolve().parents[2] / "model_repository" / "gpt2_classifier" / "config.pbtxt"
POLICIES = {
    "": [7],
    "version_policy { latest { num_versions: 1 } }": [7],
    "version_policy: { latest: { num_versions: 2 } }": [3, 7],
    "version_policy <\n latest < num_versions : 1 >\n> # version_policy { all { } }": [7],
    "version_policy { specific { versions: [ 3 ] } }": [3],
    "version_policy { specific { versions: 3, versions: 1; } }": [1, 3],
    "version_policy: {specific {versions: [3,1]}};": [1, 3],
    "version_policy { all {} }": [1, 3, 7],
    'parameters { key: "version_policy" value { string_value: "all { # \\" }" } }': [7],
}


@pytest.mark.parametrize("text", POLICIES)
def test_policies(text: str) -> None:
    """Each spelling that Triton reads gives the versions that it serves; without a policy, the highest."""
    text_format.Parse(text, model_config_pb2.ModelConfig())  # the cases are valid
    assert ConfigPbtxt(text).served([1, 3, 7]) == POLICIES[text]


@pytest.mark.parametrize("text", [text for text, served in POLICIES.items() if len(served) == 1])
def test_only_policy_and_labels_change(text: str) -> None:
    """Pinned to a version, a config differs in these two only, as protobuf reads it; comments stay."""
    rest = """# label_filename: "labels.txt"
output [ { name: "SCORES", label_filename: "labels.txt" }, { name: "X" label_filename: 'my/labels.txt' } ]
max_batch_size: 64 # { [ "
"""
    before = text_format.Parse(rest + text, model_config_pb2.ModelConfig())
    pinned = ConfigPbtxt(rest + text).pinned_to(12)
    after = text_format.Parse(pinned, model_config_pb2.ModelConfig())
    assert list(after.version_policy.specific.versions) == [12]
    assert [output.label_filename for output in after.output] == ["12/labels.txt", "my/labels.txt"]
    assert '# label_filename: "labels.txt"' in pinned
    before.version_policy.CopyFrom(after.version_policy)
    before.output[0].label_filename = "12/labels.txt"
    assert after == before
    assert ConfigPbtxt(pinned).pinned_to(12) == pinned


def test_the_template_for_a_gpu() -> None:
    """It differs in three values, as protobuf reads it: texts per batch, instances, and how long `execute` waits."""
    text = TEMPLATE.read_text(encoding="utf-8")
    usual, gpu = (text_format.Parse(one, model_config_pb2.ModelConfig()) for one in (text, for_gpu(text)))
    assert (gpu.max_batch_size, gpu.instance_group[0].count) == (256, 2)
    assert gpu.parameters["at_once_s"].string_value == "0.002"
    gpu.max_batch_size, gpu.instance_group[0].count = 64, 1
    gpu.parameters["at_once_s"].string_value = "0.1"
    assert gpu == usual
    with pytest.raises(RepositoryError, match="'max_batch_size: 64' is not once in the template"):
        for_gpu(for_gpu(text))


def test_the_template_serves_version_1() -> None:
    """So an export to a checkout leaves the file as it is."""
    text = TEMPLATE.read_text(encoding="utf-8")
    assert ConfigPbtxt(text).served([]) == [1]
    assert ConfigPbtxt(text).pinned_to(1) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("version_policy { all { } }", "serves several versions"),
        ("version_policy { latest { num_versions: 2 } }", "serves several versions"),
        ("version_policy { specific { versions: [ 1, 2 ] } }", "serves several versions"),
        ("version_policy { latest { num_versions: 1 } } version_policy { all { } }", "occurs twice"),
        ("version_policy { newest { } }", "is not understood"),
        ("version_policy", "cannot be read"),
        ("output [ {", "braces do not match"),
        ("version_policy { specific { versions: [ 010 ] } }", "octal"),
        ("version_policy { specific { versions: 00 } }", "octal"),
        ("version_policy { specific { versions: [ 0x10 ] } }", "is not understood"),
        ("version_policy { specific { versions: [ -1 ] } }", "is not understood"),
    ],
)
def test_what_cannot_be_pinned(text: str, reason: str) -> None:
    """A config that serves several versions, or is not understood, is refused; no version is guessed."""
    with pytest.raises(RepositoryError, match=reason):
        ConfigPbtxt(text).pinned_to(1)
