import csv
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from justhtml import JustHTML
from playwright.sync_api import sync_playwright

from stages import files, report
from stages.backends import unsloth
from stages.command import UserError

from .history import git

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
    loaded = [value for _, name, value in page.values if name in ("src", "srcset", "data", "xlink:href")]
    assert loaded and all(value.startswith("#") for value in loaded)
    assert "url(http" not in text and "@import" not in text


def test_links_lead_to_files_beside_the_page_and_to_its_own_parts(project):
    write_inputs()
    page = Page(outputs()[0])
    links = [value for tag, name, value in page.values if (tag, name) == ("a", "href")]
    ids = {value for _, name, value in page.values if name == "id"}
    parts = [link[1:] for link in links if link.startswith("#")]
    assert len(parts) == 8 and set(parts) <= ids
    others = {link for link in links if not link.startswith("#")}
    assert others == {"eval/predictions.jsonl", "validation/index.html", "report.md"}


def elements(node):
    """Names of the elements below a node, in the order of their start tags."""
    for child in getattr(node, "children", None) or ():
        if not child.name.startswith(("#", "!")):
            yield child.name.lower()
        yield from elements(child)


def with_all_parts():
    """Inputs that fill every part of the page, with texts that are hard to lay out."""
    texts = [HOSTILE, "long " * 400, "x" * 300, *(f"Room {n}?" for n in range(60))]
    predictions = [prediction(text) for text in texts]
    predictions[3]["prompt"][2:] = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And 4?"}]
    write_inputs(predictions=predictions)
    files.write_json(report.SLICES, {"pool": {"conversations": 3, **metrics(BETTER)["test"]}})
    files.write_text(report.GROUPS, report.GROUPS.read_text() + "0.0005,0.5,0.0,0,2,4,model.norm.weight\n")


def test_the_page_is_valid_html(project):
    with_all_parts()
    text, _ = outputs()
    parsed = JustHTML(text, strict=True, sanitize=False)
    # What stands where HTML does not allow it would be moved, doubled or dropped.
    assert list(elements(parsed.root)) == Page(text).tags
    ids = [value for _, name, value in Page(text).values if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_is_accessible(project):
    with_all_parts()
    text, _ = outputs()
    page = Page(text)
    assert ("html", "lang", "en") in page.values
    assert page.tags.count("svg") == 5 == text.count('role="img"') == text.count("<svg class=")
    assert "#010203" not in text and "Loss by epoch: training from 2.20 to 1.20" in text
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 == levels.count(1)
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert {"main", "header", "nav"} <= set(page.tags)
    assert page.tags.count("th") == sum((tag, name) == ("th", "scope") for tag, name, _ in page.values)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_contrast(project, scheme):
    """WCAG 2.2 asks for 4.5 between text and ground, and for 3 between lines of a chart and ground."""
    write_inputs()
    blocks = re.findall(r":root \{(.*?)\}", outputs()[0], flags=re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[scheme]))
    for ground in ("paper", "card"):
        for text in ("ink", "soft", "accent", "good", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["plain"], colours["paper"]) >= 3


def contrast(one, other):
    """WCAG 2.2's ratio of two colours such as #1d1f21, from 1 to 21."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


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


def talk(number):
    """A conversation as the hotel has them, with answers as small models give: about 540 bytes."""
    made = prediction(f"Good evening, could we have a later breakfast in room {number}, please?")
    made["reference"] = "With pleasure! Breakfast is served until half past ten, and I'll keep a window table. " * 2
    made["base"] = "I'm sorry for the inconvenience, but I'm unable to assist with breakfast in the hotel. " * 2
    made["tuned"] = "Of course! I've asked the kitchen to keep breakfast for you until eleven; sleep well. " * 2
    made["scores"]["tuned"]["chrf"] = number / 10
    return made


def test_a_thousand_conversations_stand_whole_in_under_a_megabyte(project):
    write_inputs(predictions=[talk(number) for number in range(1000)])
    page, markdown = outputs()
    assert 900_000 < len(page.encode()) < 1_000_000
    assert "cut after" not in page and "more characters" not in page
    assert all(f"in room {number}, please?" in page for number in range(1000))
    assert page.count("<details") == 1 + 1000 + 20 and "chrF 0.5 to 5.4: 50 conversations" in page
    assert len(markdown) < 65_536 and "The 5 worst of 1,000" in markdown


def test_longer_ones_are_cut_and_the_page_says_so(project):
    write_inputs(predictions=[prediction("long answer " * 100)] * 1000)
    page, _ = outputs()
    assert len(page.encode()) < 1_000_000 and page.count("<details") == 1 + 1000 + 20
    note = re.search(r"To keep this page under 1 MB, texts are cut after (\d+) characters and say so\.", page)
    assert f"({1200 - int(note[1]):,} more characters)" in page and 'href="eval/predictions.jsonl"' in page
    assert page.count("long answer " * 99) == 10 * 4


def test_what_does_not_fit_at_all_is_left_out_and_counted(project):
    write_inputs(predictions=[prediction("<" * 3000)] * 3000)
    page, _ = outputs()
    assert len(page.encode()) < 1_000_000
    left = re.search(r"the ([\d,]+) conversations with higher chrF are left out", page)
    assert int(left[1].replace(",", "")) + page.count("<li>loss") + page.count("<li class=b>loss") == 3000


def test_a_long_prompt_keeps_its_last_messages(project):
    one = prediction()
    one["prompt"] += [{"role": role, "content": "z" * 900} for role in ("assistant", "user")] * 1000
    write_inputs(predictions=[one] * 20)
    page, _ = outputs()
    assert len(page.encode()) < 1_000_000
    # 4,000 characters hold the last four of 2,001 messages and 400 characters of the one before.
    assert "texts are cut after 4,000" in page
    assert "(1,996 earlier messages)" in page and "(500 more characters)" in page


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


def test_the_page_names_the_commit_that_holds_the_result(repository):
    write_inputs()
    page, _ = outputs()
    checkout = re.search(r"git checkout \$\((git log .*?)\)\n", page)[1]
    found = subprocess.run(checkout, shell=True, capture_output=True, text=True, check=True).stdout
    assert found == ""
    git("add", "-A")
    git("commit", "-qm", "result")
    commit = git("rev-parse", "HEAD")
    report.MARKDOWN.write_text("another\n")
    git("commit", "-qam", "another result")
    found = subprocess.run(checkout, shell=True, capture_output=True, text=True, check=True).stdout
    assert found.strip() == commit.strip()


def test_the_inputs_checksums_are_those_that_dvc_recorded(project):
    write_inputs()
    assert all("not recorded" in text for text in outputs())
    outs = [{"path": path, "md5": f"sum of {path}"} for path in ("data/raw.csv", "models/base", "models/tuned")]
    files.write_json(Path("dvc.lock"), {"stages": {"all": {"outs": outs}}})
    page, markdown = outputs()
    assert "sum of data/raw.csv" in page and "sum of models/tuned" in page
    assert "sum of data/raw.csv" in markdown and "sum of models/base" in markdown and "models/tuned" not in markdown


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
    assert "2000 measurements, of which the last 50 stand here" in markdown and "| 1999 | 1999 | 1.5 |" in markdown
    assert "## To make it again" in markdown


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\nstep\n", "step,epoch,validation_loss\n1,a,b\n", "[]\n1", "\udcff"])
@pytest.mark.parametrize("name", ["METRICS", "PREDICTIONS", "VALIDATION_HISTORY", "SLICES", "VALIDATION"])
def test_a_damaged_input_is_named(project, name, text):
    write_inputs()
    path = getattr(report, name)
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError) as error:
        report.main()
    assert str(error.value).startswith(f"{path}") and str(error.value).endswith("run `dvc repro` to make it anew")
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


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


@pytest.fixture(scope="module")
def browser():
    """Chromium or Chrome, without a window. GitHub's machines have one, so there its absence is a failure."""
    found = next(filter(None, map(shutil.which, (*BROWSERS, MAC))), None)
    if found is None and "GITHUB_ACTIONS" not in os.environ:
        pytest.skip(f"no browser to look at the page with: none of {', '.join(BROWSERS)} is installed")
    assert found is not None
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=found) as browser:
        yield browser


def seen(browser, scheme="light", width=1280):
    """The page in the browser, and the list that takes what it loads, logs and throws."""
    with_all_parts()
    report.main()
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    events = []
    tab.on("request", lambda request: events.append(request.url))
    tab.on("console", lambda message: events.append(message.text))
    tab.on("pageerror", lambda error: events.append(str(error)))
    tab.goto(report.HTML.resolve().as_uri())
    return tab, events


@pytest.mark.parametrize("width", [1280, 375], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_finds_no_fault(project, browser, scheme, width):
    tab, events = seen(browser, scheme, width)
    assert events == [report.HTML.resolve().as_uri()]
    tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()
    assert events == [report.HTML.resolve().as_uri()]
    tab.close()


def test_the_phone_shows_the_metrics_without_scrolling(project, browser):
    tab, _ = seen(browser, width=375)
    regions = "[...document.querySelectorAll('.scroll')].map(one => [one.ariaLabel, one.scrollWidth - one.clientWidth])"
    assert {name: spare for name, spare in tab.evaluate(regions) if name in ("Metrics", "Lengths")} == {
        "Metrics": 0,
        "Lengths": 0,
    }
    tab.close()


def test_the_keyboard_opens_a_conversation(project, browser):
    tab, _ = seen(browser)
    summary = tab.locator("summary", has_text="Room 58?")
    tab.locator("summary", has_text="Room 59?").focus()
    tab.keyboard.press("Tab")
    assert summary.evaluate("one => one === document.activeElement")
    assert summary.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert summary.evaluate("one => one.parentElement.open")
    tab.close()
