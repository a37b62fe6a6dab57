"""A name for the model whose work an output is: equal wherever its replicas are, another for any other weights."""

import json
import shutil
from itertools import permutations
from pathlib import Path

import pytest

from deployments.dtypes import DtypeName, Dtypes
from deployments.errors import PermanentError
from deployments.messages import Stage
from deployments.settings import ModelSettings
from deployments.storage.models.weight_files import INDEX
from deployments.storage.object_store import Bucket
from deployments.storage.work_revision import work_revision
from tests.support.workers.fakes import SHAPES, worker_settings
from tests.support.workers.memory_store import MemoryStore
from tests.support.workers.pipeline import with_other_weights

NAMES: tuple[DtypeName, DtypeName] = ("bfloat16", "float32")
BUCKET = "s3://models/shapes"


def model(source: str | Path) -> ModelSettings:
    return worker_settings(Stage.SAMPLING).model.model_copy(update={"source": str(source)})


def no_bucket(name: str) -> Bucket:
    raise AssertionError(f"bucket {name} was opened")


def of_folder(folder: Path, dtypes: Dtypes = "float32", **changes: bool | str | None) -> tuple[str, str]:
    """Of the embeddings and of the latents."""
    settings = model(folder).model_copy(update=changes)
    stages = (Stage.ENCODING, Stage.SAMPLING)
    embeds, latents = (work_revision(settings, dtypes, folder, stage, no_bucket) for stage in stages)
    return embeds, latents


def test_each_output_has_the_name_of_the_parts_whose_work_it_is(tmp_path: Path) -> None:
    embeds, latents = of_folder(SHAPES)
    assert embeds != latents and len(embeds) == len(latents) == 16
    assert of_folder(with_other_weights(tmp_path, "vae")) == (embeds, latents)
    other_embeds, other_latents = of_folder(with_other_weights(tmp_path, "transformer"))
    assert other_embeds == embeds and other_latents != latents
    other_embeds, other_latents = of_folder(with_other_weights(tmp_path, "text_encoder"))
    assert other_embeds != embeds and other_latents != latents


def test_how_empty_prompts_are_encoded_is_part_of_it(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHAPES, tmp_path / "model"))
    assert of_folder(folder) == of_folder(SHAPES)
    index = folder / INDEX
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": True}))
    zeroed = of_folder(folder)
    assert all(one != other for one, other in zip(zeroed, of_folder(SHAPES), strict=True))
    assert of_folder(folder, zero_empty_prompt=True) == zeroed
    assert of_folder(folder, zero_empty_prompt=False) == of_folder(SHAPES)


def test_a_setting_says_it_where_the_model_does_not() -> None:
    unsaid = of_folder(SHAPES)
    assert of_folder(SHAPES, zero_empty_prompt=False) == unsaid
    assert all(one != other for one, other in zip(of_folder(SHAPES, zero_empty_prompt=True), unsaid, strict=True))


def test_what_the_parts_compute_in_is_part_of_it_where_they_differ() -> None:
    """Latents made with embeddings in bf16 are another model's; the dtype of a stage itself is on its work file, and
    what earlier releases made, whose parts had one dtype, is still used."""
    embeds, latents = of_folder(SHAPES)
    encoder, sampler = ({"text_encoder": a, "transformer": b} for a, b in permutations(NAMES))
    assert of_folder(SHAPES, dict.fromkeys(("text_encoder", "transformer"), "float32")) == (embeds, latents)
    mixed: list[Dtypes] = [encoder, sampler]
    assert [of_folder(SHAPES, other)[0] for other in mixed] == [embeds, embeds]
    assert len({latents, *(of_folder(SHAPES, other)[1] for other in mixed)}) == 3


def test_weights_of_8_bits_are_part_of_the_latents() -> None:
    embeds, latents = of_folder(SHAPES)
    int8, fp8 = (of_folder(SHAPES, weights=weights) for weights in ("int8", "fp8"))
    assert int8[0] == fp8[0] == embeds and len({latents, int8[1], fp8[1]}) == 3


def only(folder: Path, *parts: str) -> Path:
    """A folder with these parts alone, as a replica fetches them."""
    for part in parts:
        shutil.copytree(SHAPES / part, folder / part)
    shutil.copy(SHAPES / INDEX, folder / INDEX)
    return folder


def of_bucket(store: MemoryStore, folder: Path) -> str:
    def open_bucket(name: str) -> Bucket:
        assert name == "models"
        return store

    return work_revision(model(BUCKET), "float32", folder, Stage.ENCODING, open_bucket)


def test_replicas_with_other_parts_of_a_bucket_agree(tmp_path: Path) -> None:
    store = MemoryStore()
    for path in SHAPES.rglob("*"):
        if path.is_file():
            store.objects[f"shapes/{path.relative_to(SHAPES)}"] = path.read_bytes()
    encoder = only(tmp_path / "encoder", "tokenizer", "text_encoder")
    sampler = only(tmp_path / "sampler", "transformer")
    before = of_bucket(store, encoder)
    assert of_bucket(store, sampler) == before
    store.objects["shapes/transformer/config.json"] += b" "
    assert of_bucket(store, sampler) == before
    store.objects["shapes/text_encoder/model.safetensors"] = b"others"
    assert of_bucket(store, sampler) == of_bucket(store, encoder) != before


def test_replicas_with_other_parts_from_the_hub_agree(tmp_path: Path) -> None:
    names = [
        work_revision(
            model("genmo/mochi"),
            "float32",
            only(tmp_path / cache / "snapshots" / commit, part),
            Stage.ENCODING,
            no_bucket,
        )
        for cache, commit, part in [("a", "c1", "text_encoder"), ("b", "c1", "transformer"), ("c", "c2", "transformer")]
    ]
    assert names[0] == names[1] != names[2]


def test_a_folder_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="text_encoder"):
        of_folder(only(tmp_path / "part", "transformer"))
