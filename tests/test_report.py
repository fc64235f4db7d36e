"""report: what it shows of the stages before, and what it says of damaged files."""

import re
from pathlib import Path

import pytest

from stages import report
from stages.core import files
from stages.core.cli import UserError
from tests.support.reports import BETTER, measure, metrics, outputs, prediction, talk, write_history, write_inputs


@pytest.mark.parametrize(
    "gain, tuned, count, sentence",
    [
        (BETTER, 1.32, 31, "Fine-tuning helped: on 31 held-out conversations the loss fell from 2.11 to 1.32 "),
        (measure(0.3, 0.2, 0.4), 2.41, 31, "Fine-tuning hurt: on 31 held-out conversations the loss rose from 2.11 to"),
        (measure(-0.1, -0.3, 0.1), 2.01, 31, "Fine-tuning made no difference beyond noise: on 31 held-out"),
        (measure(-0.79), 1.32, 1, "Too little test data to judge: on 1 held-out conversation the loss went from 2.11"),
    ],
)
def test_the_verdict_depends_on_the_interval(project, gain, tuned, count, sentence):
    write_inputs(gain, tuned=tuned, count=count)
    for text in outputs():
        assert sentence in text


def test_the_verdict_gives_gain_and_interval(project):
    assert report.verdict(metrics(BETTER), "95%").endswith("(gain -0.79, 95% interval -0.90 to -0.70).")


def test_a_small_gain_is_not_rounded_to_zero(project):
    sentence = report.verdict(metrics(measure(-0.0031, -0.0042, -0.0018), tuned=2.1069), "95%")
    assert "from 2.1100 to 2.1069 (gain -0.0031, 95% interval -0.0042 to -0.0018)" in sentence


def test_each_metric_is_judged_in_its_own_direction(project):
    write_inputs(measure(0.3, 0.2, 0.4), tuned=2.41)
    rows = [line for line in outputs()[1].splitlines() if "is better)" in line]
    assert [row.split("|")[-2].strip() for row in rows] == ["worse", "better", *["within noise"] * 5]


def test_equal_inputs_give_equal_bytes(project):
    write_inputs()
    assert outputs() == outputs()


def test_credentials_in_an_address_are_left_out(project):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(
        text.replace("https://raw.", "https://me:pass@raw.").replace(".csv\n", ".csv?t=KEY\n")
    )
    write_inputs()
    for output in outputs():
        assert "KEY" not in output and "me:pass" not in output and "sample.csv" in output


def test_answers_are_ranked_worst_and_best(project):
    write_inputs(predictions=[talk(number) for number in (400, 100, 300, 200)])
    page, markdown = outputs()
    worst, best = page.split("<h3>Worst</h3>")[1].split("<h3>Best</h3>")
    assert re.findall(r"<summary>(\d)\.", worst) == ["2", "4"]
    assert re.findall(r"<summary>(\d)\.", best) == ["1", "3"] and "All others" not in page
    assert re.findall(r"^\| (\d) \|", markdown, flags=re.MULTILINE) == ["2", "4", "1", "3"]


def test_lengths_are_shown(project):
    texts = ["a" * count for count in (10, 20, 40)]
    write_inputs(predictions=[{**prediction("Room?"), "tuned": text} for text in texts])
    page, _ = outputs()
    # The prompt is "Be kind." and "Room?": 13 characters. 90% lie at 20 + 0.8 * 20.
    assert '<th scope="row">prompt</th><td class="n">13</td><td class="n">13</td>' in page
    assert '<th scope="row">tuned</th><td class="n">10</td><td class="n">20</td><td class="n">36</td>' in page
    assert "medians: reference 5; base 5; tuned 20" in page


def test_the_inputs_checksums_are_those_that_dvc_recorded(project):
    write_inputs()
    assert all("not recorded" in text for text in outputs())
    outs = [{"path": path, "md5": f"sum of {path}"} for path in ("data/raw.csv", "models/base", "models/tuned")]
    files.write_json(Path("dvc.lock"), {"stages": {"all": {"outs": outs}}})
    page, markdown = outputs()
    assert "sum of data/raw.csv" in page and "sum of models/tuned" in page
    assert "sum of data/raw.csv" in markdown and "sum of models/base" in markdown and "models/tuned" not in markdown


def test_an_empty_history_gives_no_chart(project):
    write_inputs()
    write_history([], [])
    assert "No loss was logged." in outputs()[0]


@pytest.mark.parametrize(
    "name",
    [
        "METRICS",
        "PREDICTIONS",
        "HISTORY",
        "VALIDATION_HISTORY",
        "RUN",
        "SPLIT_REPORT",
        "VALIDATION",
        "SLICES",
        "EVAL_RUN",
    ],
)
def test_a_missing_input_is_named(project, name):
    write_inputs()
    path = getattr(report, name)
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing; run `dvc repro`"):
        report.main()


def test_leaks_between_splits_are_shown(project):
    write_inputs()
    for text in outputs():
        assert "No prompts in more than one split" in text and "at most 0.7" in text
        assert "2 conversations changed split" in " ".join(text.split())


def test_slices_are_shown_by_label(project):
    write_inputs()
    good, unsure = metrics(BETTER)["test"], metrics(measure(-0.1, -0.3, 0.1))["test"]
    slices = {"late <checkout>": {"conversations": 7, **good}, "pool": {"conversations": 3, **unsure}}
    files.write_json(report.SLICES, slices)
    page, markdown = outputs()
    assert "late &lt;checkout&gt;" in page and "<checkout>" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith(("| late", "| pool"))]
    assert [row.split("|")[2].strip() for row in rows] == ["7", "3"]
    assert "2.11 → 1.32 (-0.90 to -0.70), better" in rows[0] and "within noise" in rows[1]


def test_without_labels_there_is_no_table_of_them(project):
    write_inputs()
    assert not any("By label" in text for text in outputs())


def test_of_very_many_labels_those_with_most_conversations_are_shown(project):
    write_inputs()
    test = metrics(BETTER)["test"]
    slices = {f"{number} " + "label |" * 100: {"conversations": number, **test} for number in range(3000)}
    files.write_json(report.SLICES, slices)
    page, markdown = outputs()
    assert len(page.encode()) < 1_000_000 and len(markdown) < 65_536
    for text in (page, markdown):
        assert "The 2,950 labels with fewer conversations are in" in text and "reports/slices.json" in text
        assert "2950 label" in text and "2949 label" not in text


def test_the_markdown_fits_into_one_comment_whatever_it_shows(project):
    hostile = prediction("|@*" * 5000)
    hostile["prompt"] = [{"role": "user", "content": "|@*" * 50}] * 3000
    write_inputs(predictions=[hostile] * 20)
    write_history([[1, 1, 1, 0]], [[step, step, 1.5] for step in range(2000)])
    _, markdown = outputs()
    assert len(markdown) < 65_536 and "earlier messages)<br>" in markdown
    assert "2000 measurements, the last 50 below" in markdown and "| 1999 | 1999 | 1.5 |" in markdown
    assert "## To make it again" in markdown


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\nstep\n", "step,epoch,validation_loss\n1,a,b\n", "[]\n1", "\udcff"])
@pytest.mark.parametrize("name", ["METRICS", "PREDICTIONS", "VALIDATION_HISTORY", "SLICES", "VALIDATION"])
def test_a_damaged_input_is_named(project, name, text):
    write_inputs()
    path = getattr(report, name)
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError) as error:
        report.main()
    assert str(error.value).startswith(f"{path}") and str(error.value).endswith("run `dvc repro` to write it again")
    assert "is damaged (" in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_line_without_scores_and_a_lock_with_a_conflict_are_named(project):
    write_inputs(predictions=[prediction(), {**prediction(), "scores": None}])
    with pytest.raises(UserError, match=f"{report.PREDICTIONS}, line 2, is damaged"):
        report.main()
    write_inputs()
    Path("dvc.lock").write_text("<<<<<<< HEAD\nstages: {}\n")
    with pytest.raises(UserError, match="dvc.lock of workspace is damaged"):
        report.main()


def test_moved_weights_are_shown_by_module_and_layer(project):
    write_inputs()
    page, markdown = outputs()
    assert "| mlp | 2.00% | 3.00% | 1 |" in markdown and "| head | 50.00% | 50.00% |  |" in markdown
    assert "the strongest cell is 3.00% of the base's norm" in page.replace("&#x27;", "'")


def test_of_very_many_modules_those_that_moved_most_are_shown(project):
    write_inputs()
    rows = [f"{layer},expert{number},{number / 1000}" for layer in range(48) for number in range(400)]
    files.write_text(report.WEIGHTS, "\n".join(["layer,module,change", *rows, ""]))
    page, markdown = outputs()
    assert len(page.encode()) < 300_000
    for text in (page, markdown):
        assert "The 360 modules that moved less are in" in text
        assert "expert360" in text and "expert359" not in text


def test_a_backend_that_does_not_tell_how_weights_moved_has_no_such_part(project):
    write_inputs()
    files.write_text(report.WEIGHTS, "layer,module,change\n")
    assert all("How far the weights moved" not in text for text in outputs())


def test_the_learning_rate_is_drawn_and_its_groups_are_listed(project):
    write_inputs()
    page = outputs()[0]
    assert "Learning rate by step: from 0.001, highest 0.001 at step 1, to 0" in page and "Peak rate" not in page
    both = report.GROUPS.read_text() + "0.0005,0.5,0.0,0,2,4,model.norm.weight\n"
    files.write_text(report.GROUPS, both)
    page = outputs()[0]
    assert "Peak rate" in page and "model.norm.weight" in page
