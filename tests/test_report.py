import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stages import files, report
from stages.backends import unsloth
from stages.command import UserError

HOSTILE = "<script>alert('x')</script> | a\nb `c` ![i](http://evil.example/i.png) @someone #12"
NAMES = ["token_accuracy", "chrf", "rouge_l", "similarity", "exact_match"]


def measure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def metrics(loss_gain, tuned=1.32, count=31):
    base = {"loss": measure(2.11, 2.0, 2.2), "perplexity": measure(8.25, 7.4, 9.0)}
    after = {"loss": measure(tuned, 1.2, 1.4), "perplexity": measure(3.74, 3.3, 4.1)}
    gain = {"loss": loss_gain, "perplexity": measure(-4.51, -5.0, -4.0)}
    for name in NAMES:
        base[name], after[name], gain[name] = measure(0.2, 0.1, 0.3), measure(0.3, 0.2, 0.4), measure(0.1, -0.02, 0.2)
    return {
        "test": {"base": base, "tuned": after, "gain": gain},
        "train": {"steps": 72, "best_epoch": 3, "validation_loss": 1.4},
        "counts": {"train": 144, "validation": 31, "test": count},
    }


GROUP_COLUMNS = "lr,multiplier,weight_decay,layers,tensors,parameters,example\n"
BETTER = measure(-0.79, -0.9, -0.7)


def prediction(text="A room, please."):
    scores = {"loss": 2.1, **dict.fromkeys(NAMES, 0.25)}
    return {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}],
        "reference": text,
        "base": text,
        "tuned": text,
        "scores": {"base": scores, "tuned": {**scores, "loss": 1.3, "chrf": 0.1}},
    }


def write_inputs(loss_gain=BETTER, predictions=None, **changes):
    files.write_json(report.METRICS, metrics(loss_gain, **changes))
    lines = [json.dumps(one, ensure_ascii=False) for one in predictions or [prediction()]]
    files.write_text(report.PREDICTIONS, "\n".join(lines) + "\n")
    files.write_json(report.RUN, {"seconds": 71.3, "device": "cpu", "versions": {"torch": "2.9.0"}})
    files.write_json(report.EVAL_RUN, {"seconds": 40.5, "prompt_tokens": 1234})
    split = {"conversations": 31, "tokens": 4100}
    nearest = {"median": 0.3, "p90": 0.5, "max": 0.7}
    splits = {"train": split, "validation": split, "test": split, "overlap": 0, "nearest": nearest, "changed_split": 2}
    files.write_json(report.SPLIT_REPORT, splits)
    files.write_json(report.SLICES, {})
    finding = {"rule": "short answers", "severity": "warning", "rows": 3, "advice": "look"}
    files.write_json(report.VALIDATION, {"rows": 206, "rules": 9, "quarantined": 0, "findings": [finding]})
    files.write_text(
        report.GROUPS, "lr,multiplier,weight_decay,layers,tensors,parameters,example\n0.001,1,0.01,0-1,8,9,a\n"
    )
    files.write_text(report.WEIGHTS, "layer,module,change\n0,mlp,0.01\n1,mlp,0.03\n,head,0.5\n")
    write_history([[1, 0.1, 2.2, 0.001], [18, 1, 1.6, 0.001], [36, 2, 1.2, 0]], [[18, 1, 1.7], [36, 2, 1.4]])


def write_history(steps, epochs):
    report.HISTORY.parent.mkdir(parents=True, exist_ok=True)
    for path, columns in {
        report.HISTORY: unsloth.HISTORY,
        report.VALIDATION_HISTORY: unsloth.VALIDATION_HISTORY,
    }.items():
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(columns)
            out.writerows(steps if path == report.HISTORY else epochs)


def outputs():
    report.main()
    return report.HTML.read_text(encoding="utf-8"), report.MARKDOWN.read_text(encoding="utf-8")


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


def test_model_text_stays_text(project):
    write_inputs(predictions=[prediction(HOSTILE)])
    page, markdown = outputs()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<script" not in markdown and "&lt;script&gt;" in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| 1 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 7
    assert "<br>b \\`c\\`" in row and "![i]" not in row and "@someone" not in row and "#12" not in row


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.values = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [(tag, name, value) for name, value in attrs]


def test_the_page_loads_nothing(project):
    write_inputs(predictions=[prediction(HOSTILE)])
    text, _ = outputs()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not [value for value in page.values if re.search(r"https?://", value[2] or "")]
    assert all(value.startswith("#") for _, name, value in page.values if name in ("src", "href", "xlink:href"))
    assert "url(http" not in text and "@import" not in text


def test_the_page_is_accessible(project):
    write_inputs()
    text, _ = outputs()
    page = Page(text)
    assert page.tags.count("h1") == 1 and ("html", "lang", "en") in page.values
    assert page.tags.count("svg") == 4 == text.count('role="img"') == text.count("<svg class=")
    assert "#010203" not in text and "Loss by epoch: training from 2.20 to 1.20" in text


def test_equal_inputs_give_equal_bytes(project):
    write_inputs()
    assert outputs() == outputs()


def test_what_varies_between_runs_is_in_the_page_alone(project):
    write_inputs()
    page, markdown = outputs()
    assert "71.3" in page and "versions.torch" in page
    assert "71.3" not in markdown and "versions" not in markdown


def test_credentials_in_an_address_are_left_out(project):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(
        text.replace("https://raw.", "https://me:pass@raw.").replace(".csv\n", ".csv?t=KEY\n")
    )
    write_inputs()
    for output in outputs():
        assert "KEY" not in output and "me:pass" not in output and "sample.csv" in output


def test_a_thousand_long_conversations_stay_under_a_megabyte(project):
    write_inputs(predictions=[prediction("long answer " * 100)] * 1000)
    page, markdown = outputs()
    assert len(page.encode()) < 1_000_000 and page.count("<details") == 1000
    assert "Texts are cut after" in page and "reports/eval/predictions.jsonl" in page
    assert len(markdown) < 65_536 and "10 of 1,000 test conversations" in markdown


def test_a_shared_system_prompt_is_shown_once(project):
    write_inputs(predictions=[prediction("one"), prediction("two")])
    for text in outputs():
        assert text.count("Be kind.") == 1


def test_odd_characters_do_not_stop_the_report(project):
    write_inputs()
    text = json.dumps(prediction("a\ud800b\u2028c\x00d"))
    files.write_text(report.PREDICTIONS, text + "\n")
    assert "a?b" in outputs()[0]


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


def test_moved_weights_are_shown_by_module_and_layer(project):
    write_inputs()
    page, markdown = outputs()
    assert "| mlp | 2.00% | 3.00% | 1 |" in markdown and "| head | 50.00% | 50.00% |  |" in markdown
    assert "the darkest cell is 3.00% of the base's norm" in page.replace("&#x27;", "'")


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
