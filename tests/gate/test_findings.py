import json

import pytest

from stages import validate
from stages.core.cli import UserError
from tests.conftest import good_records


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
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "notice", shown.append)
        table = [["question", "answer"], *([f"Is room {n} free?", f"Room {n} is free."] for n in range(5))]
        table.append(["Who may I write to?", "Write to desk@example.org."])
        form = "columns\n      columns: {user: question, assistant: answer}"
        gate(table, form=form)
    assert "row 7, column answer: message 2 (assistant): Write to ‹de•••›." in "\n".join(shown)


PAIR = """
pair:
  type: expect_column_pair_values_to_be_equal
  kwargs: {column_A: n_response, column_B: n_empty}
  severity: warning
  advice: a pair
together:
  type: expect_compound_columns_to_be_unique
  kwargs: {column_list: [n_empty, n_over]}
  severity: warning
  advice: a list
total:
  type: expect_multicolumn_sum_to_equal
  kwargs: {column_list: [n_empty, n_over], sum_total: 7}
  severity: warning
  advice: a sum
"""


def test_a_rule_about_several_columns_shows_their_values(gate, capsys):
    gate(good_records(4), edit=("parses:", PAIR + "parses:"))
    shown = capsys.readouterr().out
    assert "warning: pair, 4 of 4 rows; a pair\n    row 1: n_response: ‹5›, n_empty: ‹0›" in shown
    assert "warning: together, 4 of 4 rows; a list\n    row 1: n_empty: ‹0›, n_over: ‹0›" in shown
    assert "warning: total, 4 of 4 rows; a sum\n    row 1: n_empty: ‹0›, n_over: ‹0›" in shown


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_beside_labels_the_header_names_the_column(gate, capsys, order):
    rows = [["topic", "chat"], *(["pool", record] for record in good_records(9)), ["", "{"], ["", good_records(10)[9]]]
    with pytest.raises(UserError) as error:
        gate([[row[at] for at in order] for row in rows], form="messages\n      label: topic")
    assert "row 11, column chat: Input data was truncated" in str(error.value)
    assert "row 12, column topic: label: ‹›" in capsys.readouterr().out


def test_in_a_table_findings_about_all_of_it_and_errors_name_their_columns(gate, capsys):
    rows = [{"q": f"Is room {n} free?", "a": f"Room {n} is free."} for n in range(5)]
    rows += [{"q": 5, "a": "Yes."}, {"q": "pool " * 500 + "?", "a": "Yes."}, rows[0]]
    form = "columns\n      columns: {user: q, assistant: a}"
    with pytest.raises(UserError) as error:
        gate("\n".join(map(json.dumps, rows)).encode(), form=form)
    text = str(error.value) + capsys.readouterr().out
    assert "row 6, column q: Expected text in field `q`, got int" in text
    assert "row 7, column q and a: n_over: ‹" in text
    assert "row 1, column q and a: the same as in row 8" in text


def test_a_row_of_too_many_columns_is_of_none(gate):
    with pytest.raises(UserError, match="row 6: 2 columns where one column of JSON records is expected"):
        gate([*good_records(5), ["a", "b"]])


def test_blank_lines_at_the_end_are_no_rows(gate):
    cells = [record.replace('"', '""') for record in good_records(5)]
    report = gate("".join(f'"{cell}"\r\n' for cell in cells).encode() + b"\r\n\r\n")
    assert report["rows"] == 5 and report["findings"] == []


def test_one_fault_in_every_row_is_reported_once(gate):
    with pytest.raises(UserError) as error:
        gate(["(" + record[1:] for record in good_records(20)])
    lines = [line for line in str(error.value).splitlines() if "row" in line and "malformed" in line]
    assert len(lines) == 1 and "saw ‹(›" in lines[0] and "and 19 more rows with this fault" in lines[0]
