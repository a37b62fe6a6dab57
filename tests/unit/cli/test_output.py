"""What commands print."""

import pytest

from serve_app.cli.output import Output, printable


def test_nothing_that_others_wrote_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b[31mb\nc\u202e") == "a [31mb c "
    output = Output(as_json=False)
    output.message("[red]\x1b]0;x\x07[/red]")
    assert capsys.readouterr().err == "[red] ]0;x [/red]\n"
