"""What is said of a model before anything is started: a folder is looked into, of the rest only the form counts."""

from pathlib import Path

import pytest

from deployments.messages import Stage
from deployments.settings import LoraSettings, ModelSettings
from serve_app.errors import ConfigError
from serve_app.local.model_source import check_model_source
from tests.support.workers.fakes import SHAPES, worker_settings
from tests.support.workers.published_model import published_model


def model(source: object) -> ModelSettings:
    return worker_settings(Stage.SAMPLING).model.model_copy(update={"source": str(source)})


@pytest.mark.parametrize("source", ["genmo/mochi-1-preview", "s3://bucket/models/x", SHAPES])
def test_each_form_of_a_source_may_be_served(source: object) -> None:
    check_model_source(model(source), "float32")


def test_the_published_layout_may_be_served(tmp_path: Path) -> None:
    check_model_source(model(published_model(tmp_path)), "float32")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nope", r"model.source '/nope': no such folder"),
        ("s3://bucket", "lacks a bucket or a prefix"),
        ("a model!/x", "is not understood"),
    ],
)
def test_a_source_that_is_none_is_told(source: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_model_source(model(source), "float32")


def test_what_lies_in_a_folder_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mochi-Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError) as caught:
        check_model_source(model(tmp_path), "float32")
    assert str(caught.value) == (
        f"{tmp_path} holds a GGUF model (mochi-Q8_0.gguf) and no model_index.json; expected is a folder that "
        "`MochiPipeline.save_pretrained` wrote: model_index.json and scheduler, tokenizer, text_encoder, transformer, "
        "vae beside it"
    )
    with pytest.raises(ConfigError, match=r"gguf cannot be read as a folder \(Not a directory\)"):
        check_model_source(model(tmp_path / "mochi-Q8_0.gguf"), "float32")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nope", r"^model\.loras\.ink\.source '/nope': no such folder"),
        ("s3://bucket", r"^model\.loras\.ink\.source .* lacks a bucket or a prefix"),
        (SHAPES, r"^model\.loras\.ink: .*/shapes has no file that is known by its name; it has no \.safetensors"),
    ],
)
def test_a_lora_that_is_not_there_is_told_with_its_name(source: object, reason: str) -> None:
    loras = {"ink": LoraSettings(source=str(source))}
    with pytest.raises(ConfigError, match=reason):
        check_model_source(model(SHAPES).model_copy(update={"loras": loras}), "float32")


def test_a_lora_may_lie_wherever_a_model_may(tmp_path: Path) -> None:
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    sources = (str(tmp_path), "someone/mochi-ink", "s3://models/loras/ink")
    loras = {f"lora-{number}": LoraSettings(source=source) for number, source in enumerate(sources)}
    check_model_source(model(SHAPES).model_copy(update={"loras": loras}), "float32")
