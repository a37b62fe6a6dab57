from hypothesis import given
from hypothesis import strategies as st

from serve_app.scheduling.room import Room


def test_what_a_replica_holds_beyond_its_slots_takes_none_from_the_others() -> None:
    room = Room.of({"a": 2, "b": 1, "leaving": 0}, ["a", "b", "b", "b", "gone", None], closed=())
    assert (room.open_slots, room.empty, room.unplaced, room.count) == ({"a": 1, "b": 0}, set(), 1, 0)


def test_nothing_goes_to_a_closed_replica() -> None:
    room = Room.of({"a": 2, "b": 4}, [], closed={"b"})
    assert (room.count, room.find_empty()) == (2, "a")
    room.take_replica("a")
    assert (room.count, room.find_empty()) == (0, None)


def test_a_suspect_gets_the_smallest_empty_replica_that_is_not_needed() -> None:
    room = Room.of({"a": 4, "b": 2, "c": 2}, ["c"], closed=())
    assert room.find_empty() == "b"
    for _ in range(5):
        room.take_slot()
    assert room.find_empty() == "b", "four slots of a and one of c hold what is on its way"
    room.take_slot()
    assert (room.count, room.find_empty()) == (1, None)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 4)),
    st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=12),
    st.lists(st.booleans(), max_size=12),
)
def test_what_was_taken_finds_room_whatever_is_chosen_first(
    slots: dict[str, int], placed: list[str | None], suspects: list[bool]
) -> None:
    room = Room.of(slots, placed, closed=())
    given_whole = set()
    for suspect in suspects:
        if room.count <= 0:
            break
        if not suspect:
            room.take_slot()
        elif (name := room.find_empty()) is not None:
            assert name not in placed and name not in given_whole
            given_whole.add(name)
            room.take_replica(name)
    left = {name: max(0, n - placed.count(name)) for name, n in slots.items() if name not in given_whole}
    assert room.unplaced <= max(placed.count(None), sum(left.values()))
