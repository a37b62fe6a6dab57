"""What the commands that make videos say of them."""

from serve_app.cli.make import draft_text


def test_a_draft_under_load_is_told_with_its_reason() -> None:
    assert draft_text({"id": "video_1"}) == draft_text({"id": "video_1", "draft_reason": None}) == ""
    late = {"id": "video_1", "draft_reason": {"wait_s": 312.4, "limit_s": 60.0}}
    assert draft_text(late) == " as a draft: it would have waited for about 312 s, over 60 s"
