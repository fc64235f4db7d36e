import sys

import pytest

from stages.commands import compare, experiments
from stages.core.cli import UserError

COMMIT = {"Experiment": None, "rev": "main", "lr": 0.001, "epochs": 3, "data.sources.a.url": "x", "loss": 0.9,
          "chrf": 44.44, "facts_right": 1 / 26, "verdict": "style only"}  # fmt: skip


def experiment(name, **changed):
    return {**COMMIT, "Experiment": name, **changed}


NAMES = ["lr", "epochs", "data.sources.a.url"]


def test_an_experiment_has_its_name_what_changed_and_the_figures_that_matter():
    found = compare.rows([COMMIT, experiment("slower", lr=0.0002, loss=1.25, verdict="worse")], NAMES)
    assert found == [
        ["main", "", "0.90", "44.4", "0.04", "style only"],
        ["slower", "lr=0.0002", "1.25", "44.4", "0.04", "worse"],
    ]


def test_each_is_compared_with_the_commit_that_it_started_from():
    other = {**COMMIT, "rev": "topic", "lr": 0.5}
    found = compare.rows([COMMIT, experiment("a", lr=0.5), other, experiment("b", lr=0.5, epochs=6.0)], NAMES)
    assert [row[1] for row in found] == ["", "lr=0.5", "", "epochs=6"]


def test_a_run_that_failed_or_waits_says_so_in_place_of_a_verdict():
    lacking = dict.fromkeys(["loss", "chrf", "facts_right", "verdict"])
    found = compare.rows([COMMIT, experiment("a", **lacking, State="Failed")], NAMES)
    assert found[1][2:] == ["", "", "", "Failed"]


def test_credentials_are_left_out():
    found = compare.rows(
        [COMMIT, experiment("a", **{"data.sources.a.url": "https://me:pass@host/a.csv?key=SECRET"})], NAMES
    )
    assert found[1][1] == "data.sources.a.url=https://host/a.csv"


def test_the_table_is_at_most_100_columns_wide_and_aligned():
    changed = ", ".join(f"lora.parameter{number}=0.123" for number in range(9))
    rows = [
        ["x" * 60, changed, "0.90", "44.4", "0.04", "style only"],
        ["b", "lr=1", "10.00", "4.4", "0.04", "a\u202eb"],
    ]
    lines = compare.table(rows).splitlines()
    assert all(len(line) <= 100 for line in lines) and len(lines) == 3
    ends = {line.index(number) + len(number) for line, number in zip(lines, ("loss", "0.90", "10.00"), strict=True)}
    assert len(ends) == 1 and lines[1].count("…") == 2 and "\\u202e" in lines[2]


def test_without_experiments_it_says_how_to_run_one(monkeypatch, project):
    monkeypatch.setattr(sys, "argv", ["compare"])
    monkeypatch.setattr(experiments, "rows", lambda: [COMMIT])
    with pytest.raises(UserError, match="no experiments to compare; run some"):
        compare.main()
