from __future__ import annotations

from collections import Counter

from torch import nn

from adaptkit.memory.stacks import BACKWARD, FORWARD, MIDDLE, SHOWN, Stack, shorten, unroll
from adaptkit.memory.tracker import Interval


class Model(nn.Module):
    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, width), nn.Linear(width, 4)) for width in widths)


def test_blocks_that_are_alike_are_taken_out() -> None:
    model = Model(*[8] * 10)
    first, last = model.blocks[0], model.blocks[-1]
    (stack,) = shorten(model)
    assert len(model.blocks) == SHOWN
    assert model.blocks[0] is first
    assert model.blocks[-1] is last
    assert stack.depth == 10
    assert stack.missing == 10 - SHOWN


def test_the_first_and_the_last_may_be_others() -> None:
    assert shorten(Model(2, *[8] * 8, 3))


def test_a_model_stays_whole_where_blocks_differ() -> None:
    one_trains = Model(*[8] * 6)
    one_trains.requires_grad_(False)
    one_trains.blocks[3].requires_grad_(True)
    for model in (Model(8, 8, 16, 8, 8, 8), Model(8, 8, 8), one_trains, nn.Linear(2, 2)):
        assert shorten(model) == []


def intervals(depth: int) -> list[Interval]:
    """Blocks that keep 10 and need 3 for a moment; backward each gives 10 back, and leaves 4."""
    made, live = [], 100
    for kind, order, grows, rise in ((FORWARD, range(depth), 10, 13), (BACKWARD, reversed(range(depth)), -6, 7)):
        for block in order:
            peak = Counter(all=live + rise)
            made.append(Interval((kind, 0, block), Counter(all=live), peak, Counter(all=live + grows)))
            live += grows
    return made


def test_the_middle_stands_for_what_is_missing() -> None:
    for depth in (5, 12, 80):
        stack = Stack([nn.Identity() for _ in range(SHOWN)], depth)
        assert unroll(intervals(SHOWN), [stack], Counter()) == unroll(intervals(depth), (), Counter())


def test_what_the_whole_model_holds_is_added() -> None:
    assert unroll(intervals(4), (), Counter(weights=50))["weights"] == 50


def test_what_all_blocks_lose_behind_them_is_lost_by_those_that_were_taken_out() -> None:
    block, part = (FORWARD, 0, MIDDLE[FORWARD]), "copies"
    ten, none = Counter({part: 10}), Counter[str]()
    intervals = [
        Interval(block, none, ten, ten),
        Interval(("loss",), ten, ten, none, Counter({(block, part): 10})),
        Interval(("end",), none, Counter({part: 30}), none),
    ]
    stack = Stack([nn.Identity() for _ in range(4)], depth=10)
    assert unroll(intervals, [stack], Counter()) == {part: 70}
