"""Forwards of two modes as one."""

import pytest

from aimgraph.source_code.merged import in_one

HEAD, MANY = "def forward(self, x):", [f"    x = x + {number}" for number in range(8)]


def test_what_one_mode_has_stands_below_a_condition() -> None:
    drop = "    x = F.dropout(x, 0.5)"
    assert in_one([HEAD, *MANY, drop, "    return x"], [HEAD, *MANY, "    return x"]) == [
        HEAD,
        *MANY,
        "    if self.training:",
        "        x = F.dropout(x, 0.5)",
        "    return x",
    ]
    assert "    if not self.training:" in in_one([HEAD, *MANY, "    return x"], [HEAD, *MANY, drop, "    return x"])


def test_what_differs_is_a_choice() -> None:
    assert in_one([HEAD, *MANY, "    return x"], [HEAD, *MANY, "    return x, y"])[-4:] == [
        "    if self.training:",
        "        return x",
        "    else:",
        "        return x, y",
    ]


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [
        ([HEAD, "    return x"], [HEAD, "    return -x"]),  # too much
        ([HEAD, *MANY], ["def forward(self, x, y):", *MANY]),  # other inputs
        (
            [HEAD, *MANY, "    for one in self.all:", "        x = one(x)", "    return x"],
            [HEAD, *MANY, "    for one in self.all:", "        x = -one(x)", "    return x"],
        ),  # inside of a loop
    ],
)
def test_others_stay_apart(train: list[str], evaluation: list[str]) -> None:
    assert in_one(train, evaluation) == []
