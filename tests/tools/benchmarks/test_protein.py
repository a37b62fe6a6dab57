"""The protein benchmark: the source design's answers, how figures are made, and all of it on Ray with a tiny model."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks import proteins
from benchmarks.protein_parts.contenders import serve_running
from benchmarks.protein_parts.models import Shape, write_model
from benchmarks.protein_parts.source_design import SourceDesign, StockModel
from deployments.proteins.alphabet import read_sequence
from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import Floats, Query

TINY = Shape(layers=2, hidden=32, heads=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("esm2"), TINY)


class Lengths:
    """A contender that answers with the length of each sequence, a little off, and takes a second for each."""

    def __init__(self, off: float = 0.0) -> None:
        self.requests: list[Sequence[str]] = []
        self._off = off

    async def embed(self, sequences: Sequence[str]) -> list[Floats]:
        self.requests.append(sequences)
        return [np.array([len(one) + self._off], np.float32) for one in sequences]

    def cpu_s(self) -> float:
        return float(sum(map(len, self.requests)))


def drawn_tokens(count: int) -> list[bytes]:
    return [read_sequence(one).tokens for one in proteins.draw_sequences(random.Random(1), count)]


def test_what_is_sent_comes_from_the_arguments() -> None:
    loads = proteins.draw_loads(batches=3, singles=5)
    assert loads == proteins.draw_loads(batches=3, singles=5)
    assert [len(request) for request in loads["batches"].requests] == [proteins.BATCH] * 3
    assert [len(request) for request in loads["singles"].requests] == [1] * 5
    lengths = [len(one) for one in proteins.draw_sequences(random.Random(0), 2000)]
    assert (min(lengths), max(lengths)) == proteins.LENGTHS and 280 < np.median(lengths) < 310


async def test_the_source_design_answers_in_the_order_of_the_request(model: Path) -> None:
    sequences = drawn_tokens(7)
    alone = [StockModel(model).embed_alone(one) for one in sequences]
    deployment: Any = SourceDesign
    replica = deployment.func_or_class(model, devices=3)
    for count in (1, 7):
        assert np.stack(await replica.embed(sequences[:count])) == pytest.approx(np.stack(alone[:count]), abs=1e-5)
    ours = Esm2(model).run([Query(one, layers=(-1,), poolings=("mean",)) for one in sequences])
    assert np.stack([one.embeddings[-1, "mean"] for one in ours]) == pytest.approx(np.stack(alone), abs=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-2


async def test_other_answers_are_not_timed() -> None:
    contenders = {"source": Lengths(), "ours": Lengths(off=0.001)}
    differences = await proteins.compare(contenders, ["A" * 50, "A" * 100])
    assert differences["ours"]["of_largest_value"] == pytest.approx(1e-5, rel=0.1)
    for off in (0.1, float("nan")):
        with pytest.raises(SystemExit, match="late: its answers are"):
            await proteins.compare({"source": Lengths(), "late": Lengths(off=off)}, ["A" * 50])


async def test_each_round_sends_everything_to_all() -> None:
    contenders = {"source": Lengths(), "ours": Lengths()}
    loads = proteins.draw_loads(batches=2, singles=3)
    measured = await proteins.take_turns(contenders, loads, rounds=2)
    wanted = [request for load in loads.values() for request in load.requests] * 2
    assert all(one.requests == wanted for one in contenders.values())
    assert [list(one["batches"]) for one in measured] == [["source", "ours"], ["ours", "source"]]
    assert {one["singles"]["ours"].sequences for one in measured} == {3}
    assert {one["batches"]["ours"].cpu_s_a_sequence for one in measured} == {1.0}
    assert len(measured[0]["batches"]["source"].waits_s) == 2


def test_figures_against_their_bars() -> None:
    def measured(seconds: float, cpu_s: float) -> proteins.Measured:
        return proteins.Measured(10, seconds, cpu_s, 0.1, [seconds])

    rounds = [
        {"source": measured(10.0, 20.0), "ours": measured(5.0, 9.0)},
        {"source": measured(20.0, 30.0), "ours": measured(10.0, 18.0)},
        {"source": measured(10.0, 20.0), "ours": measured(8.0, 9.0)},
    ]
    section = proteins.summarise(rounds, "ours")
    ours = section["contenders"]["ours"]
    assert (ours["sequences_per_s"], ours["rate_of_source"]) == (1.25, 2.0)
    assert (ours["cpu_ms"], ours["cpu_of_source"], ours["callers_cpu_ms"]) == (900, 0.45, 10)
    assert (ours["p50_s"], ours["p95_s"]) == (8.0, 10.0)
    assert section["holds"] == {"rate_of_source": True, "cpu_of_source": True}
    assert proteins.summarise(rounds, "source")["holds"] == {"rate_of_source": False, "cpu_of_source": False}
    load = section | {"sequences": 10, "residues_mean": 300, "clients": 4}
    assert proteins.designs_table({"devices": 4, "loads": {"batches": load}}, "batches", "8M").row_count == 4


@pytest.fixture
def on_ray() -> Iterator[None]:
    """Ray and Serve, of which no process is left."""
    with serve_running():
        yield
    assert not [process for process in psutil.Process().children(recursive=True) if "ray" in process.name()]


@pytest.mark.slow
@pytest.mark.usefixtures("on_ray")
def test_all_of_it_with_a_tiny_model(model: Path) -> None:
    loads = proteins.draw_loads(batches=2, singles=4)
    section = proteins.designs(model, loads, rounds=1, curve=(1, 2))
    assert set(section["differences"]) == {"ours, 1", "ours, 2", "one by one"}
    for name in loads:
        points = section["loads"][name]["contenders"]
        assert list(points) == ["source", "ours, 1", "ours, 2", "one by one"]
        assert all(point["cpu_ms"] > 0 and point["sequences_per_s"] > 0 for point in points.values())
        assert proteins.designs_table(section, name, "tiny").row_count == 6
    large = proteins.one_replica(model, sequences=3, rounds=1, threads=1)
    assert 0 < large["error_of_bfloat16"] < 0.1
    assert all(point["at_work_mb"]["peak_rss"] >= point["at_rest_mb"]["rss"] > 0 for point in large["dtypes"].values())
    assert proteins.replica_table(large, "tiny").row_count == 2
