"""Which variant of a model's weights is taken, by names alone."""

import pytest

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.storage.models.weight_files import WeightFiles, choose_weights, needed_files, single_model_files

D = "diffusion_pytorch_model"
FP32 = [f"{D}-00001-of-00002.safetensors", f"{D}-00002-of-00002.safetensors", f"{D}.safetensors.index.json"]
BF16 = [f"{D}.bf16-00001-of-00002.safetensors", f"{D}.bf16-00002-of-00002.safetensors"]
OLDER = [f"{D}-00001-of-00002.bf16.safetensors", f"{D}-00002-of-00002.bf16.safetensors"]
INDEXES = [
    f"{D}.safetensors.index.bf16.json",
    f"{D}.bf16.safetensors.index.json",
    f"{D}.safetensors.bf16.index.json",
    f"{D}.bf16.index.safetensors.json",
]


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("shards", [BF16, OLDER])
def test_the_variant_that_fits_is_taken_however_it_is_spelled(shards: list[str], index: str) -> None:
    names = [*FP32, *shards, index, "config.json"]
    assert choose_weights(names, "transformer", "bfloat16") == WeightFiles("bf16", tuple(shards), index)
    assert choose_weights(names, "transformer", "float32") == WeightFiles(None, tuple(FP32[:2]), FP32[2])


@pytest.mark.parametrize(
    ("names", "dtype", "taken"),
    [
        ([f"{D}.safetensors", f"{D}.bf16.safetensors"], "bfloat16", f"{D}.bf16.safetensors"),
        ([f"{D}.safetensors", f"{D}.bf16.safetensors"], "float32", f"{D}.safetensors"),
        ([f"{D}.safetensors"], "bfloat16", f"{D}.safetensors"),
        ([f"{D}.bf16.safetensors"], "float32", f"{D}.bf16.safetensors"),
        ([f"{D}.safetensors", f"{D}.fp32.safetensors"], "float32", f"{D}.fp32.safetensors"),
        ([f"{D}.fp16.safetensors", f"{D}.safetensors"], "bfloat16", f"{D}.safetensors"),
        ([f"{D}.ema.safetensors"], "bfloat16", f"{D}.ema.safetensors"),
        ([f"{D}.safetensors", f"{D}.bin", "model.safetensors", "dit.safetensors"], "bfloat16", f"{D}.safetensors"),
    ],
)
def test_a_single_file(names: list[str], dtype: DtypeName, taken: str) -> None:
    assert choose_weights(names, "vae", dtype).names == (taken,)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "no diffusion_pytorch_model.safetensors, .* its weights are none"),
        (["dit.safetensors"], "its weights are dit.safetensors"),
        ([f"{D}.bin"], rf"its weights are {D}\.bin"),
        ([*FP32[1:]], "lacks shard 00001"),
        ([*FP32[:1], FP32[2], *BF16, INDEXES[0]], "lacks shard 00002"),
        (FP32[:2], "lacks its index"),
        (FP32[2:], "lacks its shards"),
        ([*FP32, f"{D}-00003-of-00003.safetensors"], "more than one model"),
        ([f"{D}.ema.safetensors", f"{D}.fp8.safetensors"], "variants ema, fp8, none of which"),
    ],
)
def test_what_is_incomplete_is_refused_by_name(names: list[str], reason: str) -> None:
    with pytest.raises(PermanentError, match=reason) as caught:
        choose_weights(names, "vae", "float32")
    assert caught.value.code == "model_incomplete" and "vae/" in caught.value.message


def test_parts_may_compute_in_different_dtypes() -> None:
    own = [*FP32, *BF16, INDEXES[0]]
    names = [f"transformer/{name}" for name in own] + [f"vae/{name}" for name in own]
    dtypes: dict[str, DtypeName] = {"transformer": "bfloat16", "vae": "float32"}
    assert needed_files(names, ("transformer", "vae"), dtypes) == [
        *(f"transformer/{name}" for name in sorted([*BF16, INDEXES[0]])),
        *(f"vae/{name}" for name in sorted(FP32)),
    ]


def test_only_one_variant_of_a_part_is_needed() -> None:
    names = [
        "model_index.json",
        "SHA256SUMS",
        "README.md",
        "dit.safetensors",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer_config.json",
        "tokenizer/nested/file",
        *(f"transformer/{name}" for name in [*FP32, *BF16, INDEXES[0], f"{D}.bin", "config.json", ".gitkeep"]),
        f"vae/{D}.safetensors",
    ]
    assert needed_files(names, ("tokenizer", "transformer"), "bfloat16") == [
        "model_index.json",
        "SHA256SUMS",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        f"transformer/{BF16[0]}",
        f"transformer/{BF16[1]}",
        f"transformer/{INDEXES[0]}",
    ]


SINGLE = ["config.json", "vocab.txt", "tokenizer_config.json", "README.md", "pytorch_model.bin", ".gitattributes"]


@pytest.mark.parametrize(
    ("weights", "dtype", "taken"),
    [
        (["model.safetensors"], "float32", ["model.safetensors"]),
        (["model.safetensors", "model.bf16.safetensors"], "bfloat16", ["model.bf16.safetensors"]),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "model.fp16.safetensors",
            ],
            "float32",
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
        ),
    ],
)
def test_a_model_in_one_folder_is_its_weights_and_its_text(
    weights: list[str], dtype: DtypeName, taken: list[str]
) -> None:
    names = [*SINGLE, *weights, "onnx/model.onnx"]
    found = single_model_files(names, dtype, keep=lambda name: name.endswith((".json", ".txt")))
    assert found == [*taken, "config.json", "tokenizer_config.json", "vocab.txt"]


def test_a_model_in_one_folder_without_safetensors_is_refused() -> None:
    with pytest.raises(PermanentError, match=r"no model\.safetensors, .* its weights are pytorch_model\.bin"):
        single_model_files(SINGLE, "float32")
