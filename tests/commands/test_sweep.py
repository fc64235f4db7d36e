import pytest

from stages.commands import sweep
from stages.core.cli import UserError

NAMES = ["lr", "seed", "lora.r", "lora.alpha"]


def row(lr, r, loss, **more):
    return {"lr": lr, "seed": 42, "lora.r": r, "lora.alpha": 32, "validation_loss": loss, **more}


ROWS = [row(1e-3, 8, 0.8), row(1e-4, 8, 1.5), row(1e-4, 16, 1.4), row(1e-3, 16, 0.7), row(1e-2, 8, None)]


def test_a_line_for_each_combination_of_what_else_differs():
    assert sweep.read(ROWS, NAMES, "lr", "validation_loss") == {
        "lora.r=16": [(1e-4, 1.4), (1e-3, 0.7)],
        "lora.r=8": [(1e-4, 1.5), (1e-3, 0.8)],
    }


def test_one_line_where_nothing_else_differs():
    assert sweep.read(ROWS[:2], NAMES, "lr", "validation_loss") == {"": [(1e-4, 1.5), (1e-3, 0.8)]}


def test_another_parameter():
    assert sweep.read(ROWS[:4], NAMES, "lora.r", "validation_loss") == {
        "lr=0.0001": [(8, 1.5), (16, 1.4)],
        "lr=0.001": [(8, 0.8), (16, 0.7)],
    }


def test_the_table_has_a_row_for_each_value():
    lines = {"lora.r=16": [(1e-4, 1.4)], "lora.r=8": [(1e-4, 1.5), (1e-3, 0.8)]}
    assert sweep.table(lines, "lr", "loss").splitlines() == [
        "| lr | loss lora.r=16 | loss lora.r=8 |",
        "| --- | --- | --- |",
        "| 0.0001 | 1.4 | 1.5 |",
        "| 0.001 |  | 0.8 |",
    ]


@pytest.mark.parametrize(
    "rows, parameter, message",
    [
        (ROWS, "lora.rank", "'lora.rank' is not a parameter"),
        (ROWS[:1], "lr", "fewer than two finished experiments differ in lr"),
        (ROWS, "seed", "fewer than two finished experiments differ in seed"),
    ],
)
def test_what_cannot_be_drawn_is_said(rows, parameter, message):
    with pytest.raises(UserError, match=message):
        sweep.read(rows, NAMES, parameter, "validation_loss")


def test_the_picture_is_whole(project):
    sweep.draw({"": [(1e-4, 1.5), (1e-2, 0.8)]}, "lr", "loss")
    text = sweep.PICTURE.read_text()
    assert (
        text.startswith("<?xml")
        and text.rstrip().endswith("</svg>")
        and "10^{-3}" in text.replace("\\mathdefault{", "")
    )
