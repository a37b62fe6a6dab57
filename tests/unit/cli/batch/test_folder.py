"""The state of a batch on disk, cut anywhere."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from serve_app.cli.batch.folder import STATE, batch_folder
from serve_app.cli.batch.plan import LineState, OpenLine, read_lines


@given(st.data())
def test_a_state_file_cut_anywhere_makes_no_second_video(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = read_lines("a\nb\nc", {})
        with batch_folder(folder) as first:
            first.open_files(OpenLine(line, LineState(), False) for line in lines)
            for line in lines:
                first.record_state(line, LineState(video_id=f"video_{line.fields['prompt']}"))
                first.record_result(line, {"status": "completed", "file": line.file})
        whole = (folder / STATE).read_bytes()
        after_id = whole.index(b"\n") + 1
        kept = data.draw(st.integers(after_id, len(whole)))
        (folder / STATE).write_bytes(whole[:kept])
        with batch_folder(folder) as second:
            assert second.id == first.id
            assert second.results == first.results
            assert [first.states[key] for key in second.states] == list(second.states.values())
            assert len(second.states) >= whole[after_id:kept].count(b"\n")
            second.open_files([])
        assert (folder / STATE).read_bytes().count(b"\n") == 1 + len(second.states)
