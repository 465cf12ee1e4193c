"""Reading `config.pbtxt`, Triton's defaults, its JSON document, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from millpond.serve.kserve.raw import encode_bytes_tensor
from millpond.serve.repository.triton_config import config_from_json, parse_config_text, to_document
from millpond.serve.servables.config import Control, EnsembleStep, QueuePolicy, VersionPolicy
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import TensorSpec

MODELS = Path(__file__).parents[3] / "golden" / "triton-2.51" / "models"
SMALL = 'name: "m" backend: "python" '


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/config.pbtxt")), ids=lambda path: path.parent.name)
def test_the_document_of_a_configuration_reads_as_the_same_configuration(path: Path) -> None:
    config = parse_config_text(path.read_text(), path.parent.name)
    assert config.name == path.parent.name
    assert config.document is not None
    assert config_from_json(config.document) == config
    assert to_document(config) == config.document


def test_what_is_left_open_gets_tritons_defaults() -> None:
    config = parse_config_text(SMALL, "m/config.pbtxt")
    assert config.version_policy == VersionPolicy(latest=1)
    assert [(g.name, g.count, g.kind) for g in config.instance_groups] == [("m_0", 1, "cpu")]
    assert config.default_model_filename == "model.py"
    assert config.document is not None
    assert list(config.document) == [
        "name", "platform", "backend", "runtime", "version_policy", "max_batch_size", "input", "output", "batch_input",
        "batch_output", "optimization", "instance_group", "default_model_filename", "cc_model_filenames", "metric_tags",
        "parameters", "model_warmup",
    ]  # fmt: skip
    assert config.document["optimization"] == {
        "priority": "PRIORITY_DEFAULT",
        "input_pinned_memory": {"enable": True},
        "output_pinned_memory": {"enable": True},
        "gather_kernel_buffer_threshold": 0,
        "eager_batching": False,
    }


def test_batching_settings_are_read() -> None:
    batching = parse_config_text(
        SMALL + "max_batch_size: 8 dynamic_batching { preferred_batch_size: [2, 4] max_queue_delay_microseconds: 7 "
        "priority_levels: 2 default_priority_level: 1 default_queue_policy { timeout_action: DELAY max_queue_size: 3 } "
        "priority_queue_policy { key: 2 value { default_timeout_microseconds: 9 allow_timeout_override: true } } }",
        "m",
    ).dynamic_batching
    assert batching is not None
    assert (batching.preferred_sizes, batching.max_delay_us, batching.priority_levels) == ((2, 4), 7, 2)
    assert batching.queue_policy == QueuePolicy(on_timeout="delay", max_size=3)
    assert batching.level_policies == {2: QueuePolicy(default_timeout_us=9, allow_override=True)}


def test_sequence_settings_are_read() -> None:
    config = parse_config_text((MODELS / "simple_sequence" / "config.pbtxt").read_text(), "m")
    batching = config.sequence_batching
    assert batching is not None
    assert (batching.strategy, batching.max_idle_us, batching.max_candidates) == ("oldest", 5_000_000, 64)
    assert batching.controls == (
        Control("START", "start", "INT32", (0.0, 1.0)),
        Control("END", "end", "INT32", (0.0, 1.0)),
        Control("READY", "ready", "INT32", (0.0, 1.0)),
    )


def test_an_ensemble_has_steps_and_no_replicas_of_its_own() -> None:
    config = parse_config_text((MODELS / "ens" / "config.pbtxt").read_text(), "ens")
    assert config.backend == "ensemble"
    assert config.instance_groups == ()
    assert config.ensemble[1] == EnsembleStep(
        "simple", None, {"INPUT0": "mid", "INPUT1": "zero"}, {"OUTPUT0": "Y"}
    )


def test_files_of_the_folder_are_read_through_the_caller() -> None:
    files = {"labels.txt": b"cat\ndog\n", "warmup/rows": encode_bytes_tensor_of(b"ab", b"")}
    config = parse_config_text(
        SMALL + 'output { name: "Y" data_type: TYPE_FP32 dims: 2 label_filename: "labels.txt" } '
        'model_warmup { name: "w" batch_size: 1 inputs { key: "X" value { data_type: TYPE_STRING dims: 2 '
        'input_data_file: "rows" } } inputs { key: "Z" value { data_type: TYPE_FP32 dims: [1, 3] zero_data: true } } }',
        "m",
        read_file=files.__getitem__,
    )
    assert config.outputs == (TensorSpec("Y", "FP32", (2,), labels=("cat", "dog")),)
    text, zeros = config.warmup[0].inputs
    assert text.array.tolist() == [b"ab", b""]
    assert (zeros.name, zeros.array.shape, zeros.array.sum()) == ("Z", (1, 3), 0)


def encode_bytes_tensor_of(*elements: bytes) -> bytes:
    import numpy as np

    return encode_bytes_tensor(np.array(elements, dtype=object))


def test_what_a_back_end_filled_in_is_in_the_document() -> None:
    config = parse_config_text(SMALL + 'input { name: "X" data_type: TYPE_FP32 dims: 4 optional: true }', "m")
    spec = TensorSpec("Y", "BYTES", (-1, 2))
    document = to_document(dataclasses.replace(config, outputs=(spec,), max_batch_size=4, decoupled=True))
    assert document["max_batch_size"] == 4
    assert [(t["name"], t["data_type"], t["dims"]) for t in document["output"]] == [("Y", "TYPE_STRING", [-1, 2])]
    assert document["input"][0]["optional"] is True
    assert document["model_transaction_policy"] == {"decoupled": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nme: 1", "failed to read text proto from m"),
        ('input { name: "X" ', "failed to read text proto from m"),
        ('input { data_type: TYPE_FP32 dims: 1 }', "must specify 'name'"),
        ('input { name: "X" dims: 1 }', "must specify 'data_type'"),
        ('input { name: "X" data_type: TYPE_FP32 }', "must specify 'dims'"),
        ('input { name: "X" data_type: TYPE_FP32 dims: 0 }', "dimension must be integer >= 1"),
        ('input { name: "X" data_type: TYPE_FP32 dims: 6 reshape { shape: [2, 2] } }', "different size for dims"),
        ("max_batch_size: -1", "'max_batch_size' must be non-negative"),
        ("max_batch_size: 2 dynamic_batching { preferred_batch_size: 3 }", "must be <= max batch size"),
        ("dynamic_batching { priority_levels: 2 }", "default priority level must be in range [1, 2]"),
        ("instance_group { kind: KIND_GPU }", "KIND_GPU but no GPUs are available"),
        ("instance_group { count: 100000 }", "count of 1 to"),
        ('ensemble_scheduling { step { model_name: "x" } }', "platform is not 'ensemble'"),
        ('sequence_batching { control_input { name: "S" control { kind: CONTROL_SEQUENCE_END } } }', "exactly one of"),
        ('model_warmup { inputs { key: "X" value { data_type: TYPE_FP32 input_data_file: "f" } } }', "folder"),
        (
            'model_warmup { inputs { key: "X" value { data_type: TYPE_FP32 dims: [99999, 99999] zero_data: true } } }',
            "has more than",
        ),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(ServableError) as caught:
        parse_config_text(SMALL + text, "m")
    assert caught.value.code == "invalid_argument"
    assert words in caught.value.message


@pytest.mark.parametrize("document", [{"nme": 1}, {"max_batch_size": "x"}, {"input": {"a": 1}}])
def test_a_document_that_is_no_configuration_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ServableError, match="failed to parse the model configuration"):
        config_from_json(document)
