import json

import pytest

from stages import validate
from stages.command import UserError

from .conftest import good_records


def test_each_finding_names_column_and_place(gate):
    def talk(*turns):
        return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})

    ask, answer = ("user", "Is the pool open at night?"), ("assistant", "It closes at ten.")
    records = [
        talk(ask, ("assistant", "  "), ask, answer),
        talk(("user", "Where is the garage?"), answer, answer),
        talk(("user", "Where is the garden?"), ("assistant", "I")),
        talk(("user", "May I bring a dog?"), ("assistant", "Dogs are welcome.")),
        talk(("user", "May I bring a dog?"), ("assistant", "Dogs are not welcome.")),
        talk(("user", "When is breakfast served?"), ("assistant", "From seven.")),
        talk(("user", "When is breakfast served?"), ("assistant", "From seven.")),
        *good_records(5),
    ]
    described = []
    with pytest.raises(UserError) as error, pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "notice", described.append)
        gate(records)
    text = "\n".join([str(error.value), *described])
    assert "row 1, column A: message 2 (assistant): ‹  ›" in text
    assert "row 2, column A: roles: user ‹assistant assistant›" in text
    assert "row 3, column A: message 2 (assistant): ‹I›" in text
    assert "row 4, column A: another response to the same prompt as in row 5" in text
    assert "row 6, column A: the same as in row 7" in text


def test_a_finding_in_a_table_names_its_column(gate):
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "notice", told.append)
        table = [["question", "answer"], *([f"Is room {n} free?", f"Room {n} is free."] for n in range(5))]
        table.append(["Who may I write to?", "Write to desk@example.org."])
        form = "columns\n      columns: {user: question, assistant: answer}"
        gate(table, form=form)
    assert "row 7, column answer: message 2 (assistant): Write to ‹de•••›." in "\n".join(told)


def test_one_fault_in_every_row_is_told_once(gate):
    with pytest.raises(UserError) as error:
        gate(["(" + record[1:] for record in good_records(20)])
    lines = [line for line in str(error.value).splitlines() if "row" in line and "malformed" in line]
    assert len(lines) == 1 and "saw ‹(›" in lines[0] and "and 19 more rows with this fault" in lines[0]
