import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.commands import review
from stages.core.cli import UserError
from stages.core.paths import GENERAL, MEASURES, PREDICTIONS, SPLIT_REPORT, SUITE, VALIDATION
from stages.core.templates import cell
from stages.metrics import intervals
from tests.conftest import ROOT, set_params
from tests.support.history import commit, git, prediction, predictions, write_run

HOSTILE = "<script>alert('x')</script> | a\nb `c` ![i](http://evil.example/i.png) @someone #12"


CONFLICT = "<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> topic\n"


def one_score(name, value):
    return {"scores": {"base": {name: 1.0}, "tuned": {name: value}}}


@pytest.fixture(autouse=True)
def three_are_enough(monkeypatch):
    """Intervals of so few conversations that their numbers can be worked out."""
    monkeypatch.setattr(intervals, "FEWEST", 2)


@pytest.fixture
def reviewed(repository, monkeypatch, capsys):
    """reviewed(...) gives what the command prints, and its error or None."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["review", *arguments])
        error = None
        try:
            review.main()
        except UserError as raised:
            error = str(raised)
        return capsys.readouterr().out, error

    return run


def rows(text):
    """Rows of the tables of a review, by their first cell: the other cells."""
    found = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in found}


def test_nothing_differs_from_itself(reviewed):
    text, error = reviewed("HEAD")
    assert error is None
    assert text.startswith("# Review: HEAD → workspace\n")
    for sentence in ("No parameter differs.", "The data are the same.", "No answer to these conversations differs."):
        assert sentence in text
    assert rows(text)["chrF (higher is better)"] == ["50.0", "50.0", "0.0 (0.0 to 0.0)", "within noise"]


def test_each_metric_has_both_values_the_difference_and_a_verdict(reviewed):
    # Loss: (10 · 1.2 + 30 · 2.2 + 60 · 4.2) / 100 = 3.3 after 3.1; chrF 53 after 50; each conversation moves alike.
    write_run(predictions([1.2, 2.2, 4.2], chrf=[53.0, 53.0, 53.0]))
    text, _ = reviewed("HEAD")
    found = rows(text)
    assert found["loss (lower is better)"] == ["3.10", "3.30", "0.20 (0.20 to 0.20)", "worse"]
    assert found["chrF (higher is better)"] == ["50.0", "53.0", "3.0 (3.0 to 3.0)", "better"]
    assert (
        "On 3 test conversations that both runs answered: **worse**: loss, perplexity; **better**: chrF; "
        "**within noise**: exact match."
    ) in text


def test_a_metric_that_got_worse_by_more_than_allowed_fails_the_review(reviewed):
    set_params(review__regressions={"loss": 0.15, "chrf": 2})
    write_run(predictions([1.2, 2.2, 4.2], chrf=[47.0] * 3))
    text, error = reviewed("HEAD")
    assert error.splitlines()[0].startswith("2 metrics got worse by more than review.regressions in params.yaml allows")
    assert error.splitlines()[1:] == ["chrF by 3, allowed is 2", "loss by 0.2, allowed is 0.15"]
    assert rows(text)["loss"] == ["0.15", "failed: worse by 0.2"] and "## Answers" in text


@pytest.mark.parametrize(
    "allowed, losses, outcome",
    [
        ({"loss": 0.25}, [1.2, 2.2, 4.2], "passed"),
        ({"loss": 0.05}, [0.8, 1.8, 3.8], "passed"),
        ({"loss": 0.05}, [0.5, 1.5, 4.8], "passed, within noise"),
        ({"loss": 0.05}, [None] * 3, "not judged: the new run did not measure it"),
        ({"rouge_l": 0.05}, [1.2, 2.2, 4.2], "not judged: neither run has it"),
    ],
)
def test_what_is_allowed_or_not_judged_is_shown_and_does_not_fail(reviewed, allowed, losses, outcome):
    set_params(review__regressions=allowed)
    write_run(predictions(losses))
    text, error = reviewed("HEAD")
    assert error is None and rows(text)["loss" if "loss" in allowed else "ROUGE-L"][-1] == outcome


def test_without_tolerances_it_says_so(reviewed):
    set_params(review__regressions={})
    write_run(predictions([5.0, 6.0, 7.0]))
    text, error = reviewed("HEAD")
    assert error is None and "names no metric: none can fail this review" in text


def test_different_tests_are_refused(reviewed):
    write_run([*predictions()[1:], prediction(8)])
    text, error = reviewed("HEAD")
    assert text == ""
    assert error == (
        "the test sets differ: HEAD has 3 conversations, workspace 3, 2 are in both\n"
        "add --allow-different-tests to compare anyway, on the conversations that both have"
    )


def test_different_tests_are_compared_when_asked_and_the_first_line_says_so(reviewed):
    write_run([*predictions([1.0, 1.0, 3.0])[1:], prediction(8, loss=9.0)])
    text, _ = reviewed("HEAD", "--allow-different-tests")
    first = text.splitlines()[0]
    assert first.startswith("**Warning: the test sets differ: HEAD has 3") and "only those are compared" in first
    # (30 · 2 + 60 · 4) / 90 and (30 · 1 + 60 · 3) / 90: the other two conversations do not count.
    assert rows(text)["loss (lower is better)"][:2] == ["3.33", "2.33"]


def test_tests_with_nothing_in_common_give_no_difference(reviewed):
    write_run([prediction(8), prediction(9)], tuned={"loss": {"value": 8.5}, "chrf": {"value": 30.0}})
    text, error = reviewed("HEAD", "--allow-different-tests")
    assert error is None and "no metric can be compared" in text.splitlines()[0]
    reason = "not comparable: the tests have no conversation in common"
    assert rows(text)["loss (lower is better)"] == ["9.50", "8.50", "none", reason]
    assert rows(text)["loss"][-1] == "not judged: the tests have no conversation in common"


def test_parameters_that_differ_are_listed_alone(reviewed):
    SUITE.parent.mkdir()
    SUITE.write_text("short_response:\n  kwargs: {min_value: 5}\n")
    commit()
    SUITE.write_text("short_response:\n  kwargs: {min_value: 10}\n")
    set_params(lr=0.002, layers__lr={"mlp": 0.5}, epochs=3.0, gradient_checkpointing=True)
    found = rows(reviewed("HEAD")[0])
    assert {key: found[key] for key in ("lr", "layers.lr.mlp", "gradient\\_checkpointing")} == {
        "lr": ["0.001", "0.002"],
        "layers.lr.mlp": ["absent", "0.5"],
        "gradient\\_checkpointing": ["false", "true"],
    }
    assert found["data/expectations.yaml:short\\_response.kwargs.min\\_value"] == ["5", "10"]
    # 3.0 is the 3 that it was.
    assert "seed" not in found and "epochs" not in found


def test_credentials_in_an_address_are_left_out(reviewed):
    # Nothing says that these are credentials.
    sources = {"mine": {"url": "sftp://MYSELF@host/a.csv?t=KEY", "sha256": None, "format": "messages"}}
    set_params(data__sources=sources, data__source="mine")
    text, _ = reviewed("HEAD")
    assert "KEY" not in text and "MYSELF" not in text
    assert rows(text)["data.sources.mine.url"] == ["absent", "sftp:<!-- -->//host/a.csv"]


def test_training_and_counts_that_differ_are_listed(reviewed):
    write_run(train={"steps": 60, "best_epoch": 2})
    found = rows(reviewed("HEAD")[0])
    assert found["train.steps"] == ["57", "60"] and found["train.best\\_epoch"] == ["absent", "2"]
    assert "counts.test" not in found


def test_data_that_cannot_be_distinguished_is_said_in_words(reviewed):
    write_run(conversations=b"other")
    text, _ = reviewed("HEAD")
    assert "these differ: `data/conversations.jsonl`." in text
    assert "is not known here: those of HEAD and workspace are neither in DVC's" in text


def test_the_answers_that_changed_are_side_by_side(reviewed):
    write_run(predictions(answer=["Yes.", "Perhaps.", "No."], chrf=[50.0, 45.5, 20.0]))
    text, _ = reviewed("HEAD")
    assert "2 of 3 conversations are answered differently." in text
    answers = [line for line in text.splitlines() if line.startswith("| Room")]
    assert answers == [
        "| Room 2? | It is 2. | Yes. | No. | 50.0 → 20.0 |",
        "| Room 1? | It is 1. | Yes. | Perhaps. | 50.0 → 45.5 |",
    ]


def test_ten_answers_are_shown(reviewed):
    lines = [prediction(number) for number in range(12)]
    write_run(lines)
    commit()
    write_run([{**line, "tuned": "No."} for line in lines])
    text, _ = reviewed("HEAD")
    assert "12 of 12 conversations are answered differently. These are the 10 whose chrF moved most:" in text
    assert text.count("| Room") == 10


def test_text_of_models_and_data_stays_text(reviewed):
    write_run([prediction(0, prompt=HOSTILE, answer="Yes."), prediction(1)])
    commit()
    write_run([prediction(0, prompt=HOSTILE, answer=HOSTILE + "\ud800"), prediction(1)])
    text, _ = reviewed("HEAD")
    assert "<script" not in text and "![i]" not in text and "@someone" not in text and "#12" not in text
    (row,) = [line for line in text.splitlines() if "alert" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6 and cell(HOSTILE + "?") in row


LIVE = [
    "https://evil.example/a?b=c",
    "ftp://evil.example",
    "see www.evil.example",
    "GH-12 gh-7",
    ":tada: :+1: :man_dancing:",
    "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
    "@someone #12 o/r#7 me@host.example",
]


@pytest.mark.parametrize("text", LIVE)
def test_github_finds_nothing_to_act_on_and_readers_see_the_text_as_it_is(text):
    made = cell(text)
    parts = re.sub(r"\\(.)", r"\1", made).split("<!-- -->")
    assert "".join(parts) == text.replace("&", "&amp;")
    live = r"://|www\.|GH-\d|:[\w+-]+:|\b[0-9a-f]{40}\b|[@#]\w"
    assert not any(re.search(live, part, re.IGNORECASE) for part in parts)


@pytest.mark.parametrize("text", ["at 12:30, room 204", "a:b", "C:\\x", "f" * 64, "deadbeef", "0\0"])
def test_other_text_stays_whole(text):
    assert "<!-- -->" not in cell(text)


def test_a_review_fits_into_one_comment(reviewed):
    lines = [prediction(number, prompt=f"{number} " + "@a " * 3000) for number in range(12)]
    write_run(lines)
    commit()
    write_run([{**line, "tuned": "[b] " * 3000} for line in lines])
    text, _ = reviewed("HEAD")
    assert len(text) < 60_000 and text.count("…") >= 20


@pytest.mark.parametrize("length, count, rest", [(40, 360, "160 more"), (1000, 1000, "900 more"), (5000, 90, None)])
def test_a_review_with_many_parameters_fits_too(reviewed, length, count, rest):
    set_params(layers__lr={f"{number}" + "|@*" * (length // 3): 0.5 for number in range(count)})
    text, _ = reviewed("HEAD")
    assert len(text) <= 60_000 and "## Answers" in text
    assert f"{rest} differ." in text if rest else "more differ" not in text


def test_what_cannot_be_made_shorter_is_cut_after_a_whole_line(reviewed, monkeypatch):
    monkeypatch.setattr(review, "_LIMIT", 900)
    write_run(predictions(answer=["Perhaps."] * 3, losses=[0.8, 1.8, 3.8]))
    text, _ = reviewed("HEAD")
    assert len(text) <= 900 and text.endswith("\nThe rest does not fit into one comment on GitHub.\n")


@pytest.mark.parametrize("path", [PREDICTIONS, MEASURES, GENERAL, SPLIT_REPORT, VALIDATION])
def test_a_missing_report_is_named_with_its_revision(reviewed, path):
    git("rm", "-q", "--cached", path.as_posix())
    git("commit", "-qm", "gone")
    _, error = reviewed("HEAD")
    assert error == f"HEAD has no {path}; expected a finished run: `dvc repro` there, then commit"


@pytest.mark.parametrize("text", [CONFLICT, "{}", "[]", "null", '{"test": NaN}', "\udcff"])
@pytest.mark.parametrize("path", [MEASURES, VALIDATION])
def test_a_damaged_report_is_named_with_its_revision(reviewed, path, text):
    path.write_text(text, errors="surrogateescape")
    _, error = reviewed("HEAD")
    assert error.startswith(f"{path} of workspace is damaged (") and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "text", [CONFLICT, "[]", "{stages: [1]}", "{stages: {a: {outs: [{path: x}]}}}", "{stages: {a: 1}}", "a: [", "#"]
)
def test_a_damaged_lock_is_named_with_its_revision(reviewed, text):
    Path("dvc.lock").write_text(text)
    _, error = reviewed("HEAD")
    assert error.startswith("dvc.lock of workspace is damaged (") and len(error.splitlines()) == 1
    assert error.endswith("take one side of a merge whole, then `dvc repro`")


@pytest.mark.parametrize(
    "change, why",
    [
        ({"tuned": None}, "Expected `str`, got `null` - at `$.tuned`"),
        ({"prompt": []}, "Expected `array` of length >= 1 - at `$.prompt`"),
        ({"prompt": [{"content": "x"}]}, "Object missing required field `role` - at `$.prompt[0]`"),
        ({"weights": {"base": {}, "tuned": {"loss": -1}}}, "Expected `int` >= 0 - at `$.weights.tuned[...]`"),
        ({"baselines": {"nearest": 1}}, "Expected `str`, got `int` - at `$.baselines[...]`"),
        ({"scores": {"base": {"chrf": 1.0}}}, "Object missing required field `tuned` - at `$.scores`"),
        ({"scores": {"base": {}, "tuned": {"chrf": 1.0}}}, "there is no score chrf"),
        ({"scores": {"base": {"chrf": 1.0}, "tuned": {"loss": 1.0}}}, "there is no score chrf, loss"),
        (one_score("chrf", "abc"), "Expected `float | null`, got `str` - at `$.scores.tuned[...]`"),
        (one_score("chrf", float("nan")), "NaN is not a number"),
    ],
)
def test_a_damaged_line_is_named_with_its_number(reviewed, change, why):
    first, second, third = predictions()
    write_run([first, {**second, **change}, third])
    _, error = reviewed("HEAD")
    assert error == f"{PREDICTIONS} of workspace, line 2, is damaged ({why}); `dvc repro` there writes it again"


def test_lines_that_are_no_predictions_are_named(reviewed):
    for text, why in {CONFLICT: "line 1, is damaged", "[1]\n": "line 1, is damaged", "\n": "is damaged"}.items():
        PREDICTIONS.write_text(text)
        _, error = reviewed("HEAD")
        assert why in error and str(PREDICTIONS) in error and len(error.splitlines()) == 1


def test_a_loss_under_another_perturbation_is_not_judged(reviewed):
    set_params(review__regressions={"perturbed_loss": 0.1})
    write_run(predictions(perturbed_loss=[1.0, 2.0, 3.0]))
    commit()
    set_params(evaluate__epsilon=2.0)
    write_run(predictions(perturbed_loss=[3.0, 4.0, 5.0]))
    text, error = reviewed("HEAD")
    assert error is None
    assert rows(text)["perturbed loss"][-1] == "not judged: measured with another evaluate.epsilon"
    verdict = "not comparable: measured with another evaluate.epsilon"
    assert rows(text)["perturbed loss (lower is better)"] == ["9.50", "9.50", "none", verdict]


def test_two_commits_are_compared_whatever_the_workspace_holds(reviewed):
    write_run(predictions([0.8, 1.8, 3.8]))
    commit()
    PREDICTIONS.unlink()
    text, _ = reviewed("HEAD~1", "HEAD")
    assert text.startswith("# Review: HEAD\\~1 → HEAD\n")
    assert rows(text)["loss (lower is better)"][-1] == "better"


def test_a_branch_is_compared_with_where_it_left_main(reviewed):
    start = git("rev-parse", "--short=7", "HEAD")
    git("checkout", "-qb", "topic")
    write_run(predictions([0.8, 1.8, 3.8]))
    commit()
    git("checkout", "-q", "main")
    write_run(predictions([0.1, 0.1, 0.1]))
    commit()
    git("checkout", "-q", "topic")
    text, _ = reviewed()
    assert text.startswith(f"# Review: main ({start}) → workspace\n")
    assert rows(text)["loss (lower is better)"][:2] == ["3.10", "2.90"]


def test_the_exit_status_shows_a_regression(repository):
    write_run(predictions([2.0, 3.0, 5.0]))
    command = [sys.executable, "-m", "stages.commands.review", "HEAD"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("# Review: HEAD → workspace")
    assert done.stderr.startswith("error: 1 metric got worse")


def test_the_change_is_judged_by_the_rules_for_a_fine_tuning(reviewed):
    write_run(predictions([1.0] * 10, [10] * 10, chrf=[50.0] * 10))
    commit()
    # The loss is better and the answers are worse: answers decide.
    write_run(predictions([0.5] * 10, [10] * 10, chrf=[40.0] * 10))
    assert "**Worse than HEAD: chrF.**" in reviewed("HEAD")[0]
    write_run(predictions([1.5] * 10, [10] * 10, chrf=[60.0] * 10))
    text, _ = reviewed("HEAD")
    assert "**Better than HEAD: chrF 60.0. What it lost was not measured.**" in text
    # Each run's own verdict is beside it.
    assert "- HEAD against its base: Better than all." in text


def test_few_conversations_give_a_change_no_verdict(reviewed):
    write_run(predictions(chrf=[90.0] * 3))
    assert "**Too few test conversations to judge: 3, where 10 are needed.**" in reviewed("HEAD")[0]
