"""Weights of 8 bits: how near they are, what they take, how they are loaded, and where they are refused."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor, nn

from benchmarks.common import full_size as fs
from deployments.dtypes import DtypeName, WeightsName
from deployments.errors import PermanentError
from deployments.mochi.compiled_block import CompiledBlock
from deployments.mochi.denoise import Sample, denoise_step
from deployments.mochi.packed_weights import pack_projections, packed_weight, text_projections, video_projections
from deployments.mochi.probe import probe_batches
from deployments.mochi.weights.loading import load_part, load_transformer
from deployments.mochi.weights.parts import TRANSFORMER
from deployments.mochi.weights.quantised_weights import LINEAR, fp8_problem, quantise, quantised
from deployments.mochi.weights.tensors import ReadOptions
from tests.support.workers.fakes import SHAPES

CPU = torch.device("cpu")
FORMS: tuple[WeightsName, ...] = ("int8", "fp8")
ERRORS: dict[WeightsName, float] = {"int8": 0.02, "fp8": 0.1}
"""Relative, of what a step adds to the latents, against fp32."""


@pytest.fixture(autouse=True)
def without_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def tiny() -> Any:
    return fs.random_transformer(CPU, torch.float32, **fs.TINY)


def sample(transformer: Any) -> Sample:
    prompts = [fs.random_prompt(transformer.config.text_embed_dim, n, 8, seed=n) for n in (6, 1)]
    return fs.our_sample(transformer, fs.clip_spec(64, 48, 13, 4), *prompts)


def held_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_near_that_of_fp32(form: WeightsName) -> None:
    transformer = tiny()
    before = sample(transformer)
    (wanted,) = denoise_step(transformer, [before])
    quantise(transformer, form)
    (got,) = denoise_step(transformer, [before])
    error = relative_error(got.latents - before.latents, wanted.latents - before.latents)
    assert 0 < error < ERRORS[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_multiplies_as_its_weight_says(form: WeightsName, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, tokens = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((48, 64), (2, 5, 64)))
    bias = nn.Parameter(torch.ones(48, dtype=dtype), False)
    weight[3] = 0  # a row without a scale of its own
    values, scale = quantised(weight, form)
    product = LINEAR[form](values, scale, bias)(tokens)
    assert product.shape == (2, 5, 48) and product.dtype == dtype
    wanted = tokens.double() @ (values.double() * scale.double()).T + 1
    assert relative_error(product.double(), wanted) < {"int8": 0.005, "fp8": 0.04}[form]
    assert bool((product[..., 3] == 1).all())


def test_of_int8_no_value_is_further_than_half_a_step() -> None:
    weight = torch.randn(7, 96, generator=torch.Generator().manual_seed(1))
    values, scale = quantised(weight, "int8")
    assert int(values.abs().amax()) == 127
    assert bool(((values * scale - weight).abs() <= scale / 2 * 1.001).all())


@pytest.mark.parametrize("form", FORMS)
def test_eight_bits_take_half_of_bf16(form: WeightsName) -> None:
    transformer = fs.random_transformer(CPU, torch.bfloat16, **fs.TINY)
    before, each = held_bytes(transformer), {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear):
            each[f"{name}.weight"] = layer.weight
    names = quantise(transformer, form)
    saved = sum(each[name].numel() - 4 * each[name].shape[0] for name in names)  # fp32 scales of the rows
    assert held_bytes(transformer) == before - saved


def test_int8_is_for_all_layers_of_blocks_and_fp8_for_those_of_video_tokens() -> None:
    names = {form: {n.split(".", 2)[2] for n in quantise(fs.meta_transformer(**fs.TINY), form)} for form in FORMS}
    video = {f"attn1.{layer}.weight" for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert names["fp8"] == video | {"ff.net.0.proj.weight", "ff.net.2.weight"}
    assert names["int8"] > names["fp8"] | {"norm1.linear.weight", "attn1.add_q_proj.weight", "ff_context.net.2.weight"}


@pytest.mark.parametrize("group_bytes", [1, 100_000, 1_000_000_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_is_loaded_so_is_the_one_that_is_brought_to_it_afterwards(
    dtype: DtypeName, group_bytes: int
) -> None:
    loaded = load_part(SHAPES, TRANSFORMER, dtype, CPU, ReadOptions(group_bytes=group_bytes), "int8")
    wanted = load_transformer(SHAPES, dtype, CPU)
    quantise(wanted, "int8")
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    tensors = loaded.state_dict()
    assert tensors.keys() == wanted.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in wanted.state_dict().items())
    assert load_transformer(SHAPES, dtype, CPU, "int8").dtype == wanted.dtype


def test_projections_of_8_bits_are_not_packed() -> None:
    int8, fp8 = tiny(), tiny()
    quantise(int8, "int8")
    quantise(fp8, "fp8")
    for transformer in (int8, fp8):
        pack_projections(transformer)
    attentions = [transformer.transformer_blocks[0].attn1 for transformer in (int8, fp8)]
    assert all(packed_weight(video_projections(attn)) is None for attn in attentions)
    assert [packed_weight(text_projections(attn)) is None for attn in attentions] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_compiled_blocks_have_as_few_graphs(form: WeightsName) -> None:
    dynamo.reset()
    transformer = tiny()
    quantise(transformer, form)
    pack_projections(transformer)
    block = CompiledBlock(8, backend="eager")
    for shape in ((12, 9, 8, 8), (12, 2, 4, 4)):
        for samples in probe_batches(transformer, shape, 8):
            got = denoise_step(transformer, samples, block)
            for one, other, before in zip(got, denoise_step(transformer, samples), samples, strict=True):
                assert relative_error(one.latents - before.latents, other.latents - before.latents) < 1e-5
    assert block.failure is None and block.graphs <= 4
    dynamo.reset()


def test_fp8_is_refused_without_a_gpu_that_can() -> None:
    with pytest.raises(PermanentError, match=r"compute capability 8\.9 .* here is no GPU; set int8") as caught:
        load_transformer(SHAPES, "bfloat16", CPU, "fp8")
    assert caught.value.code == "weights_unsupported" and "\n" not in caught.value.message
    assert "here is one of 8.0" in str(fp8_problem("bfloat16", (8, 0)))
    assert "set sampler.dtype to bfloat16" in str(fp8_problem("float32", (9, 0)))
    assert fp8_problem("bfloat16", (8, 9)) is fp8_problem("bfloat16", (12, 0)) is None
