"""The compiled block against the eager one: its graphs, its numbers, and its failures.

torch's compiler takes minutes of two cores for the included model's four graphs. So graphs are counted with a backend
that runs them as they are, and torch's real compiler makes those of a single block of a tiny model; the rest is slow.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.common import full_size as fs
from deployments.messages import VideoSpec
from deployments.mochi.block import RunBlock, run_block
from deployments.mochi.compiled_block import CompiledBlock, attend
from deployments.mochi.denoise import Sample, denoise_step
from deployments.mochi.packed_weights import pack_projections
from deployments.mochi.probe import probe_batches
from deployments.mochi.weights.loading import load_transformer
from deployments.replica.host import one_thread
from deployments.step_rules import StepRules
from tests.support.workers.fakes import SHAPES, captured

CPU = torch.device("cpu")
TEXT_TOKENS = 12
SIZES = ((32, 32, 7), (48, 32, 13), (32, 64, 19))
MAX_GRAPHS = 12

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs g++")


@pytest.fixture(autouse=True)
def without_grad() -> Iterator[None]:
    """One thread: which is what was compiled for."""
    with one_thread(), torch.no_grad():
        yield


class Compiled:
    """A transformer and its compiled block, warmed up as a sampler does it."""

    def __init__(self, transformer: Any, backend: str) -> None:
        self.transformer = transformer
        pack_projections(transformer)
        self.block = CompiledBlock(TEXT_TOKENS, backend)

    def warm_up(self) -> None:
        for shape in ((12, 9, 8, 8), (12, 2, 4, 4)):
            for samples in probe_batches(self.transformer, shape, TEXT_TOKENS):
                denoise_step(self.transformer, samples, self.block)
        self.block.settle()

    def sample(self, size: tuple[int, int, int], length: int, guidance: float = 3.0, negative: int = 1) -> Sample:
        """Before its first of 4 steps. length, negative: of the prompts, in tokens."""
        width, height, frames = size
        video = VideoSpec("", "", width, height, frames, 24, 4, guidance, seed=length)
        dim = self.transformer.config.text_embed_dim
        prompts = [fs.random_prompt(dim, n, TEXT_TOKENS, seed=n) for n in (length, negative)]
        return fs.our_sample(self.transformer, video, *prompts)


@pytest.fixture(scope="module", params=["eager", pytest.param("inductor", marks=[needs_compiler, pytest.mark.slow])])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiled]:
    """The included model by torch's compiler, or a tiny one by a backend that runs the graphs as they are."""
    real = request.param == "inductor"
    transformer = load_transformer(SHAPES, "float32", CPU) if real else tiny(num_layers=2)
    with warmed_up(transformer, request.param, tmp_path_factory) as made:
        yield made


@contextmanager
def warmed_up(transformer: Any, backend: str, folders: pytest.TempPathFactory) -> Iterator[Compiled]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCHINDUCTOR_CACHE_DIR", str(folders.mktemp("kernels")))
        dynamo.reset()
        made = Compiled(transformer, backend)
        with one_thread(), torch.no_grad():
            made.warm_up()
        yield made
        dynamo.reset()


def update_error(got: Sequence[Sample], wanted: Sequence[Sample], before: Sequence[Sample]) -> float:
    """The largest relative error of what a step, or several, added to the latents."""
    return max(
        float((a.latents - b.latents).norm() / (b.latents - c.latents).norm())
        for a, b, c in zip(got, wanted, before, strict=True)
    )


def rows_of(compiled: Compiled, size: tuple[int, int, int], length: int) -> list[list[Sample]]:
    """Batches of 1, 2 and 5 rows, in which the prompt of this length is the first."""
    guided, unguided = compiled.sample(size, length), compiled.sample(size, length, guidance=1.0)
    others = [compiled.sample(size, TEXT_TOKENS - length, negative=0), compiled.sample(size, 4)]
    return [[unguided], [guided], [unguided, *others]]


def test_a_handful_of_graphs_serves_every_prompt_length_row_count_and_shape(compiled: Compiled) -> None:
    graphs = compiled.block.graphs
    assert compiled.block.failure is None
    for size in SIZES:
        for length in range(1, TEXT_TOKENS + 1):
            for samples in rows_of(compiled, size, length):
                got = denoise_step(compiled.transformer, samples, compiled.block)
                wanted = denoise_step(compiled.transformer, samples)
                assert update_error(got, wanted, samples) <= 1e-5
    assert compiled.block.graphs == graphs <= MAX_GRAPHS
    assert compiled.block.recompilations == 0


def to_the_end(transformer: Any, samples: Sequence[Sample], block: RunBlock) -> Sequence[Sample]:
    while not samples[0].done:
        samples = denoise_step(transformer, samples, block)
    return samples


def test_a_whole_sample_equals_the_eager_one(compiled: Compiled) -> None:
    samples = [compiled.sample((64, 64, 13), 7)]
    got = to_the_end(compiled.transformer, samples, compiled.block)
    wanted = to_the_end(compiled.transformer, samples, run_block)
    assert float((got[0].latents - wanted[0].latents).norm() / wanted[0].latents.norm()) <= 1e-5


def test_a_sample_in_company_is_what_it_is_alone(compiled: Compiled) -> None:
    samples = [compiled.sample((48, 32, 13), 3), compiled.sample((48, 32, 13), 11, negative=0)]
    together = to_the_end(compiled.transformer, samples, compiled.block)
    alone = [to_the_end(compiled.transformer, [sample], compiled.block)[0] for sample in samples]
    assert update_error(together, alone, samples) <= 1e-5


@needs_compiler
def test_a_graph_of_torchs_compiler_computes_what_the_eager_block_does(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The least of it: the last block in two rows. All graphs, and another start, take minutes: the next test."""
    transformer = tiny()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        dynamo.reset()
        block = CompiledBlock(TEXT_TOKENS)
        for frames in (7, 13):
            samples = [tiny_sample(transformer, frames)]
            got = denoise_step(transformer, samples, block)
            assert update_error(got, denoise_step(transformer, samples), samples) <= 1e-5
        assert (block.failure, block.graphs) == (None, 1)
        dynamo.reset()


@needs_compiler
@pytest.mark.slow
def test_torchs_compiler_computes_what_the_eager_block_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One block, in one and in two rows; then another start, which takes the kernels from the disk."""
    with warmed_up(tiny(), "inductor", tmp_path_factory) as compiled:
        assert (compiled.block.failure, compiled.block.graphs) == (None, 2)
        batches = [batch for size in SIZES[:2] for batch in rows_of(compiled, size, 7)]
        kept = [denoise_step(compiled.transformer, batch, compiled.block) for batch in batches]
        for got, batch in zip(kept, batches, strict=True):
            assert update_error(got, denoise_step(compiled.transformer, batch), batch) <= 1e-5
        assert (compiled.block.graphs, compiled.block.recompilations) == (2, 0)
        dynamo.reset()
        counters.clear()
        compiled.block = CompiledBlock(TEXT_TOKENS)
        compiled.warm_up()
        assert counters["aot_autograd"]["autograd_cache_hit"] == compiled.block.graphs == 2
        assert counters["aot_autograd"]["autograd_cache_miss"] == 0
        for before, batch in zip(kept, batches, strict=True):
            after = denoise_step(compiled.transformer, batch, compiled.block)
            assert all(torch.equal(a.latents, b.latents) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("lengths", [[40, 43, 52], [52, 52, 40], [41, 41, 41]])
def test_attention_is_each_rows_own(lengths: list[int]) -> None:
    query, key, value = torch.randn(3, len(lengths), 52, 4, 8)
    of_video, of_text = attend(query, key, value, torch.tensor([(length, 0) for length in lengths]), 40)
    for row, length in enumerate(lengths):
        own = [part[row : row + 1, :length].transpose(1, 2) for part in (query, key, value)]
        wanted = F.scaled_dot_product_attention(*own)[0].transpose(0, 1)
        torch.testing.assert_close(torch.cat([of_video[row], of_text[row, : length - 40]]), wanted)
        assert not of_text[row, length - 40 :].any()


def test_rows_in_8_bits_are_their_own_and_change_no_other(compiled: Compiled) -> None:
    graphs = compiled.block.graphs
    plain, other = compiled.sample((48, 32, 13), 3), compiled.sample((48, 32, 13), 7, negative=0)
    rounded = replace(plain, rules=StepRules(attention="fp8"))
    alone, of_other = (denoise_step(compiled.transformer, [each], compiled.block) for each in (rounded, other))
    together = denoise_step(compiled.transformer, [rounded, other], compiled.block)
    assert update_error(together[1:], of_other, [other]) <= 1e-5
    assert update_error(together[:1], alone, [rounded]) <= 1e-2
    assert update_error(alone, denoise_step(compiled.transformer, [rounded]), [rounded]) <= 1e-2
    assert 1e-4 < update_error(alone, denoise_step(compiled.transformer, [plain]), [plain]) < 0.1
    assert compiled.block.graphs == graphs


def test_attention_is_an_operator_that_the_compiler_may_believe() -> None:
    """torch's own checks, of shapes told before and real ones and of what it may change."""
    tensors = torch.randn(3, 2, 20, 2, 4).unbind()
    told = torch.tensor([(16, 0), (19, 1)])
    torch.library.opcheck(attend, (*tensors, told, 16), test_utils=("test_schema", "test_faketensor"))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the product has logged: torch tells much more."""
    return [record.getMessage() for record in caplog.records if record.name == "ray.serve"]


def tiny(**changes: int) -> Any:
    """One block, so that each test compiles no more than it must."""
    return fs.random_transformer(CPU, torch.float32, **fs.TINY | {"num_layers": 1} | changes)


def tiny_sample(transformer: Any, frames: int = 7, length: int = 5, guidance: float = 4.5) -> Sample:
    video = replace(fs.clip_spec(64, 48, frames, 4), guidance_scale=guidance)
    return fs.our_sample(transformer, video, fs.random_prompt(32, length, 8, seed=1), fs.random_prompt(32, 1, 8))


@pytest.fixture
def fresh() -> Iterator[None]:
    dynamo.reset()
    yield
    dynamo.reset()


def test_packed_and_separate_weights_give_the_same(fresh: None) -> None:
    transformer = tiny()
    samples = [tiny_sample(transformer)]
    block = CompiledBlock(8, backend="eager")
    separate = denoise_step(transformer, samples, block)
    pack_projections(transformer)
    packed = denoise_step(transformer, samples, block)
    assert update_error(packed, separate, samples) <= 1e-6
    assert block.graphs == 2


class Doubled(nn.Linear):
    """As an adapted layer is: another class, and another function."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_an_adapted_layer_is_called_as_it_is(fresh: None) -> None:
    transformer = tiny()
    pack_projections(transformer)
    attn = transformer.transformer_blocks[0].attn1
    doubled = Doubled(32, 32, bias=False).requires_grad_(False)
    doubled.weight = attn.to_v.weight
    attn.to_v = doubled
    samples = [tiny_sample(transformer)]
    got = denoise_step(transformer, samples, CompiledBlock(8, backend="eager"))
    assert update_error(got, denoise_step(transformer, samples), samples) <= 1e-6


def test_a_recompilation_is_counted_and_logged_with_its_reason(fresh: None, caplog: pytest.LogCaptureFixture) -> None:
    transformer = tiny()
    block = CompiledBlock(8, backend="eager")
    denoise_step(transformer, [tiny_sample(transformer)], block)
    block.settle()
    with captured(caplog):
        denoise_step(transformer, [tiny_sample(transformer, frames=13, length=2)], block)
        assert (block.graphs, block.recompilations, told(caplog)) == (1, 0, [])
        denoise_step(transformer, [tiny_sample(transformer, guidance=1.0)], block)  # one row: not warmed up
    assert (block.graphs, block.recompilations) == (2, 1)
    (line,) = told(caplog)
    assert "compiled again" in line and "2 <= activated.size()[0]" in line


Backend = Callable[[Any, Any], Any]


def failing(error: Exception) -> str:
    """The name of a backend that raises this."""
    name = f"failing_{type(error).__name__.lower()}"

    def backend(graph: Any, inputs: Any) -> Any:
        raise error

    if name not in dynamo.list_backends(exclude_tags=()):
        dynamo.register_backend(backend, name=name)
    return name


@pytest.fixture(scope="module")
def own_process() -> Iterator[ProcessPoolExecutor]:
    """After a compilation that failed, torch goes on to look at each call of Python in its process: tensors that a
    caller hands over live longer then, which tests of memory see."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


class Lines(logging.Handler):
    """What the product logs."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


def step_where_compiling_fails(settled: bool) -> tuple[float, str | None, list[str]]:
    """The error of its step against the eager block, why the compiler failed, and what was logged."""
    lines = Lines()
    logging.getLogger("ray.serve").addHandler(lines)
    dynamo.reset()
    with one_thread(), torch.no_grad():
        transformer = tiny()
        samples = [tiny_sample(transformer), tiny_sample(transformer, length=2)]
        block = CompiledBlock(8, backend=failing(RuntimeError("No working C++ compiler found\nin detail")))
        if settled:
            block.settle()
        got = denoise_step(transformer, samples, block)
        error = update_error(got, denoise_step(transformer, samples), samples)
    logging.getLogger("ray.serve").removeHandler(lines)
    return error, block.failure, lines.told


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.slow
def test_where_the_compiler_fails_the_block_goes_on_without(own_process: ProcessPoolExecutor, settled: bool) -> None:
    error, failure, told = own_process.submit(step_where_compiling_fails, settled).result()
    assert error <= 1e-6
    assert failure == "RuntimeError: No working C++ compiler found"
    assert ["cannot be compiled here" in line for line in told] == [True]


def step_where_memory_runs_out() -> tuple[str, str | None]:
    """What was raised, and what is held against the compiler."""
    with one_thread(), torch.no_grad():
        transformer = tiny()
        block = CompiledBlock(8, backend=failing(torch.OutOfMemoryError("tried to allocate 3 GiB")))
        try:
            denoise_step(transformer, [tiny_sample(transformer)], block)
        except torch.OutOfMemoryError as error:
            return str(error), block.failure
    return "nothing", block.failure


def test_memory_that_runs_out_is_not_held_against_the_compiler(own_process: ProcessPoolExecutor) -> None:
    assert own_process.submit(step_where_memory_runs_out).result() == ("tried to allocate 3 GiB", None)
