"""What `mochi-serve proteins embed` is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from serve_app.jobs import Tier


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """Which sequences are embedded, how, and into which folder."""

    fasta: Annotated[
        Path,
        typer.Argument(metavar="FASTA", help="The sequences, of any number; packed if it ends in .gz; - for stdin."),
    ]
    folder: Annotated[
        Path,
        typer.Option("--output", "-o", help="The folder of the shards (safetensors) and their lists (jsonl)."),
    ]
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Hidden states; may be given more than once.", show_default="-1")
    ] = None
    pooling: Annotated[
        list[str] | None,
        typer.Option(help="mean, bos, max or per_residue; may be given more than once.", show_default="mean"),
    ] = None
    windows: Annotated[bool, typer.Option("--windows", help="Read more than 1,022 residues in windows.")] = False
    remove_gaps: Annotated[bool, typer.Option("--remove-gaps", help="Remove '-' and '.' of alignments.")] = False
    priority: Annotated[
        Tier | None, typer.Option(help="What waits with a higher one goes first.", show_default=Tier.BATCH)
    ] = None
