"""In a process of its own, as MKL reads its mode once: how far packed answers are from transformers' for one sequence.

`python -m tests.support.proteins.to_the_last_bit FOLDER` prints JSON: `products_agree`, whether products of few rows
are those of many here; `differences`, the largest of each sequence.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import Query
from deployments.proteins.repeatable_products import set_repeatable_products
from tests.support.proteins.models import load_transformers
from tests.support.proteins.sequences import alone, drawn_sequence

LENGTHS = (1, 200, 14, 2, 15, 33, 7, 600, 1)
ROWS = (1, 2, 3, 5, 13, 16, 23, 64, 199)


def main(folder: Path) -> None:
    set_repeatable_products()
    torch.set_num_threads(2)
    sequences = [drawn_sequence(length, seed=i, masks=True) for i, length in enumerate(LENGTHS)]
    esm, stock = Esm2(folder), load_transformers(folder)
    layers = tuple(range(esm.num_layers + 1))
    answers = esm.run([Query(one.tokens, layers, ("per_residue",), logits_at=range(len(one))) for one in sequences])
    differences = []
    for sequence, answer in zip(sequences, answers, strict=True):
        states, logits = alone(stock, sequence)
        pairs = [(states[layer][1:-1], answer.embeddings[layer, "per_residue"]) for layer in layers]
        pairs.append((logits, answer.logits if answer.logits is not None else np.empty(0, np.float32)))
        differences.append(max(float((wanted - torch.from_numpy(found)).abs().max()) for wanted, found in pairs))
    print(json.dumps({"products_agree": products_agree(esm.hidden_size), "differences": differences}))  # noqa: T201


def products_agree(hidden_size: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    for inside, outside in ((hidden_size, hidden_size), (hidden_size, 4 * hidden_size), (4 * hidden_size, hidden_size)):
        rows, weight = torch.randn(900, inside, generator=generator), torch.randn(outside, inside, generator=generator)
        whole = F.linear(rows, weight)
        if not all(torch.equal(F.linear(rows[:n], weight), whole[:n]) for n in ROWS):
            return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
