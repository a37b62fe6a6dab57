"""LoRAs against their merged weights, and what a transformer is when none is in place: what it was."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import full_size as fs
from deployments.errors import PermanentError
from deployments.messages import LoraChoice, VideoSpec
from deployments.mochi.block import run_block
from deployments.mochi.compiled_block import CompiledBlock
from deployments.mochi.denoise import Sample, denoise_step, initial_noise
from deployments.mochi.loras import Loras
from deployments.mochi.packed_weights import pack_projections, packed_weight, text_projections, video_projections
from deployments.mochi.weights.quantised_weights import quantise
from deployments.replica.host import one_thread
from deployments.sampler.denoiser import Denoiser
from deployments.sampler.state import SampleState
from deployments.storage.models.lora_files import LoraFiles
from tests.support.workers.loras import OUTSIDE, TARGETS, adapted, diffusers_lora, peft_lora, written

CPU = torch.device("cpu")
ALL = (*TARGETS, *OUTSIDE)
PROMPTS = fs.random_prompt(32, 5, 8, seed=1), fs.random_prompt(32, 1, 8)
VIDEO = fs.clip_spec(64, 48, 7, 4)
PATTERNS = {"rank_pattern": {"to_v": 2}, "alpha_pattern": {"to_q": 3}}


@pytest.fixture(autouse=True)
def without_grad() -> Iterator[None]:
    with one_thread(), torch.no_grad():
        yield


def tiny(dtype: torch.dtype = torch.float32, layers: int = 2) -> Any:
    """Each call gives the same weights."""
    return fs.random_transformer(CPU, dtype, **fs.TINY | {"num_layers": layers})


def final(transformer: Any, loras: Loras | None = None, choice: LoraChoice | None = None) -> Tensor:
    """The latents of the video, sampled by functions alone."""
    with (loras or Loras(transformer, {})).applied(choice):
        samples = [replace(fs.our_sample(transformer, VIDEO, *PROMPTS), lora=choice)]
        while not samples[0].done:
            samples = denoise_step(transformer, samples)
    return samples[0].latents


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


Write = Callable[..., LoraFiles]


@pytest.mark.parametrize("write", [peft_lora, diffusers_lora])
@pytest.mark.parametrize("how", [{}, {"targets": ALL, **PATTERNS}, {"use_rslora": True}], ids=["", "all", "rslora"])
def test_a_lora_beside_the_weights_equals_one_merged_into_them(
    write: Write, how: dict[str, Any], tmp_path: Path
) -> None:
    transformer = tiny()
    loras = Loras(transformer, {"ink": write(tmp_path, tiny(), 1, **how)})
    merged = adapted(tiny(), 1, **how).merge_and_unload()
    got = final(transformer, loras, LoraChoice("ink", 1.0))
    assert relative_error(got, final(merged)) <= 1e-5
    assert relative_error(got, final(tiny())) > 0.01


def test_the_scale_is_of_the_change(tmp_path: Path) -> None:
    transformer = tiny()
    loras = Loras(transformer, {"ink": peft_lora(tmp_path, tiny(), 1)})
    # Alpha is a factor of the change as the scale is.
    merged = adapted(tiny(), 1, lora_alpha=3).merge_and_unload()
    assert relative_error(final(transformer, loras, LoraChoice("ink", 0.5)), final(merged)) <= 1e-5


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model.", "base_model.model.transformer."])
def test_names_may_have_the_prefixes_that_libraries_write(prefix: str, tmp_path: Path) -> None:
    """Without a configuration alpha is the rank, so that the change is B A."""
    plain = load_file(peft_lora(tmp_path, tiny(), 1, r=4, lora_alpha=4).weights)
    names = {key.removeprefix("base_model.model."): tensor for key, tensor in plain.items()}
    transformer = tiny()
    named = written(tmp_path / "named", {f"{prefix}{key}": tensor for key, tensor in names.items()})
    merged = adapted(tiny(), 1, lora_alpha=4).merge_and_unload()
    got = final(transformer, Loras(transformer, {"ink": named}), LoraChoice("ink", 1.0))
    assert relative_error(got, final(merged)) <= 1e-5


def test_names_of_older_releases_of_diffusers(tmp_path: Path) -> None:
    plain = load_file(peft_lora(tmp_path, tiny(), 1).weights)
    old = {
        key.replace("base_model.model", "transformer").replace("lora_A", "lora.down").replace("lora_B", "lora.up"): each
        for key, each in plain.items()
    }
    transformer = tiny()
    loras = Loras(transformer, {"ink": written(tmp_path / "old", old)})
    merged = adapted(tiny(), 1, lora_alpha=4).merge_and_unload()
    assert relative_error(final(transformer, loras, LoraChoice("ink", 1.0)), final(merged)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_lora_the_transformer_is_what_it_was(dtype: torch.dtype, tmp_path: Path) -> None:
    transformer = tiny(dtype)
    modules = list(transformer.named_modules())
    tensors = {name: tensor.data_ptr() for name, tensor in transformer.state_dict().items()}
    before = final(transformer)
    loras = Loras(
        transformer, {name: peft_lora(tmp_path / name, tiny(), n, targets=ALL) for n, name in enumerate("ab")}
    )
    assert torch.equal(final(transformer, loras), before)
    changed = [final(transformer, loras, LoraChoice(name, 1.0)) for name in "abab"]
    assert torch.equal(changed[0], changed[2]) and torch.equal(changed[1], changed[3])
    assert relative_error(changed[0], changed[1]) > 0.01
    with pytest.raises(ZeroDivisionError), loras.applied(LoraChoice("a", 1.0)):
        _ = 1 / 0
    assert torch.equal(final(transformer, loras), before)
    assert list(transformer.named_modules()) == modules
    assert {name: tensor.data_ptr() for name, tensor in transformer.state_dict().items()} == tensors


def test_packed_weights_stay_packed_and_are_what_the_lora_is_beside(tmp_path: Path) -> None:
    transformer = tiny()
    files = peft_lora(tmp_path, tiny(), 1)
    wanted = final(transformer, Loras(transformer, {"ink": files}), LoraChoice("ink", 1.0))
    loras = Loras(transformer, {"ink": files})
    pack_projections(transformer)
    assert torch.equal(final(transformer, loras, LoraChoice("ink", 1.0)), wanted)
    for block in transformer.transformer_blocks:
        for layers in (video_projections, text_projections):
            assert packed_weight(layers(block.attn1)) is not None
            with loras.applied(LoraChoice("ink", 1.0)):
                assert packed_weight(layers(block.attn1)) is None


def test_a_lora_beside_weights_of_8_bits_changes_what_they_make(tmp_path: Path) -> None:
    """As much as it changes what the whole weights make, nearly; and without it they are what they were."""
    files = {"ink": peft_lora(tmp_path, tiny(), 1, targets=ALL)}
    whole, small = tiny(), tiny()
    quantise(small, "int8")
    before, modules = final(small), list(small.named_modules())
    got = final(small, Loras(small, files), LoraChoice("ink", 1.0))
    wanted = final(whole, Loras(whole, files), LoraChoice("ink", 1.0))
    assert relative_error(got, wanted) <= 0.02 < relative_error(got, before)
    assert torch.equal(final(small), before) and list(small.named_modules()) == modules


def test_layers_and_ranks_are_told_apart_and_weights_are_not(tmp_path: Path) -> None:
    how: list[dict[str, Any]] = [{}, {}, {"r": 2}, {"targets": ALL}]
    files = {f"{n}": peft_lora(tmp_path / f"{n}", tiny(), n, **each) for n, each in enumerate(how)}
    loras = Loras(tiny(), files)
    first, same, *others = (loras.layout(name) for name in files)
    assert first == same and len({first, *others}) == 3


def test_samples_of_different_loras_share_no_pass(tmp_path: Path) -> None:
    transformer = tiny()
    plain = fs.our_sample(transformer, VIDEO, *PROMPTS)
    half, whole = (replace(plain, lora=LoraChoice("ink", scale)) for scale in (0.5, 1.0))
    for batch in ([plain, half], [half, whole]):
        with pytest.raises(ValueError, match="the same LoRA, with the same scale"):
            denoise_step(transformer, batch)


def state(**changes: Any) -> SampleState:
    video = replace(VIDEO, **changes)
    embeds = {
        f"{name}_{what}": tensor
        for name, prompt in zip(("prompt", "negative"), PROMPTS, strict=True)
        for what, tensor in (("embeds", prompt.embeds), ("mask", prompt.mask))
    }
    return SampleState(video, "revision", "float32", 0, initial_noise(video), embeds)


def to_the_end(denoiser: Denoiser, **changes: Any) -> Tensor:
    sample = denoiser.prepare(state(**changes), [])
    while not sample.done:
        (stepped,) = denoiser.step([sample])
        assert isinstance(stepped, Sample)
        sample = stepped
    return sample.latents


def test_a_denoiser_puts_in_place_what_each_sample_asks_for(tmp_path: Path) -> None:
    transformer = tiny()
    before = to_the_end(Denoiser(transformer, 0))
    loras = Loras(
        transformer, {name: peft_lora(tmp_path / name, tiny(), n, targets=ALL) for n, name in enumerate("ab")}
    )
    denoiser = Denoiser(transformer, 0, loras=loras)
    for n, name in enumerate("ab"):
        merged = adapted(tiny(), n, targets=ALL).merge_and_unload()
        assert relative_error(to_the_end(denoiser, lora=name), to_the_end(Denoiser(merged, 0))) <= 1e-5
        assert torch.equal(to_the_end(denoiser), before)
        assert torch.equal(to_the_end(denoiser, lora=name, lora_scale=0.0), before)
    with pytest.raises(PermanentError, match="the LoRA gone is not served any more; served are a, b") as caught:
        denoiser.prepare(state(lora="gone"), [])
    assert caught.value.code == "lora_unknown"
    assert denoiser.prepare(state(lora="gone", lora_scale=0.0), []).lora is None


def test_passes_with_a_lora_compile_nothing_and_leave_the_graphs_alone(tmp_path: Path) -> None:
    dynamo.reset()
    transformer = tiny(layers=1)  # fewer graphs to make
    pack_projections(transformer)
    loras = Loras(transformer, {"ink": peft_lora(tmp_path, tiny(layers=1), 1)})
    block = CompiledBlock(8, backend="eager")
    denoiser = Denoiser(transformer, 0, block, loras=loras)
    before = to_the_end(denoiser)
    block.settle()
    graphs = block.graphs
    changed = [to_the_end(denoiser, lora="ink", lora_scale=scale) for scale in (1.0, 0.5, 1.5)]
    assert torch.equal(to_the_end(denoiser), before)
    assert block.graphs == graphs and denoiser.recompilations == 0 and denoiser.block is block
    eager = Denoiser(transformer, 0, loras=loras)
    assert eager.block is run_block
    assert torch.equal(to_the_end(eager, lora="ink"), changed[0])
    dynamo.reset()


def edited(tmp_path: Path, change: Callable[[dict[str, Tensor]], object]) -> LoraFiles:
    tensors = load_file(peft_lora(tmp_path, tiny(), 1).weights)
    tensors = {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}
    change(tensors)
    return written(tmp_path / "edited", tensors)


KEY = "transformer_blocks.1.attn1.to_q.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({KEY: torch.zeros(4, 48)}), rf"{KEY} is \[4, 48\]; this model's layer wants \[4, 32\]"),
        (lambda t: t.update({KEY: torch.zeros(5, 32)}), rf"{KEY} is \[5, 32\]; this model's layer wants \[4, 32\]"),
        (lambda t: t.pop(KEY), r"transformer_blocks.1.attn1.to_q has no two matrices lora_A and lora_B"),
        (lambda t: t[KEY].fill_(float("nan")), rf"{KEY} holds NaN or infinity"),
        (
            lambda t: t.update({"transformer_blocks.48.attn1.to_q.lora_A.weight": torch.zeros(4, 32)}),
            r"transformer_blocks.48.attn1.to_q is no linear layer of this MochiTransformer3DModel",
        ),
        (
            lambda t: t.update({"transformer_blocks.1.attn1.to_q.lora_magnitude_vector": torch.zeros(32)}),
            r"lora_magnitude_vector is none of a LoRA: only lora_A.weight and lora_B.weight are",
        ),
        (lambda t: t.clear(), "it holds no tensor"),
    ],
    ids=["width", "rank", "half", "nan", "no layer", "dora", "empty"],
)
def test_one_that_does_not_fit_is_told_in_a_line_with_its_name(
    change: Callable[[dict[str, Tensor]], object], said: str, tmp_path: Path
) -> None:
    transformer = tiny()
    modules = list(transformer.named_modules())
    with pytest.raises(PermanentError, match=said) as caught:
        Loras(transformer, {"ink": edited(tmp_path, change)})
    assert caught.value.code == "lora_unusable"
    assert caught.value.message.startswith(f"the LoRA ink cannot be used: {tmp_path}/edited/")
    assert "\n" not in caught.value.message
    assert list(transformer.named_modules()) == modules


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "its configuration has use_dora, which is not supported"),
        ({"peft_type": "LOHA"}, "it is a LOHA, and only LoRA is supported"),
        ({"r": 8}, "peft cannot load it: "),
        ([], "its configuration is no JSON object"),
    ],
)
def test_a_configuration_that_asks_for_something_else_is_refused(config: Any, said: str, tmp_path: Path) -> None:
    files = peft_lora(tmp_path, tiny(), 1)
    assert files.config is not None
    given = json.loads(files.config.read_text())
    files.config.write_text(json.dumps(given | config if config else config))
    transformer = tiny()
    modules = list(transformer.named_modules())
    with pytest.raises(PermanentError, match=said):
        Loras(transformer, {"ink": files})
    assert list(transformer.named_modules()) == modules


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(PermanentError, match=f"the LoRA ink cannot be used: {re.escape(str(path))}: it cannot be read"):
        Loras(tiny(), {"ink": LoraFiles(path, None, "digest")})


def test_a_video_says_which_lora_it_is_sampled_with() -> None:
    video: VideoSpec = replace(VIDEO, lora="ink", lora_scale=0.5)
    assert video.lora_choice == LoraChoice("ink", 0.5)
    assert replace(video, lora_scale=0.0).lora_choice is None and VIDEO.lora_choice is None
