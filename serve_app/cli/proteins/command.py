"""The commands of the proteins: `mochi-serve proteins embed`."""

import typer

from serve_app.cli.options import ClientOptions, command
from serve_app.cli.output import Output
from serve_app.cli.proteins.options import EmbedOptions
from serve_app.client.errors import EXIT_CODES
from serve_app.client.http import Client

app = typer.Typer(no_args_is_help=True, help="Protein embeddings by a server that has ESM2 (docs/proteins.md).")


@app.command(epilog=EXIT_CODES)
@command(ClientOptions)
async def embed(client: Client, output: Output, options: EmbedOptions) -> int:
    """Embed the sequences of a FASTA file; started again with the same folder, it goes on where it was."""
    from serve_app.cli.proteins.embed import run_embed  # here: numpy is not loaded for other commands

    return await run_embed(client, output, options)
