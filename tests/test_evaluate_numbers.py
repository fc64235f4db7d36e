"""What evaluate writes, by hand: three conversations, and models whose every number is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from stages import backends, evaluate, params
from stages.backends.protocol import Likelihoods, UnavailableError
from stages.core import files
from stages.core.paths import ANSWERS as KEPT
from stages.core.paths import (
    EVAL_RUN,
    GENERAL,
    MEASURES,
    METRICS,
    PREDICTIONS,
    SLICES,
    SPLIT_REPORT,
    SPLITS,
    TEST_LABELS,
    TRAIN_METRICS,
)
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from stages.metrics import general_prompts, intervals
from stages.metrics.intervals import Bootstrap, Mean
from stages.reporting import predictions
from tests.conftest import ROOT, set_params

KNOBS = params.load(ROOT / "params.yaml")
TEST = [
    Conversation((Message("system", "Be kind."), Message("user", "Pool?"), Message("assistant", "abcd"))),
    Conversation((Message("user", "Spa?"), Message("assistant", "At sieben — “7”."))),
    Conversation((Message("user", "Bar?"), Message("assistant", "Yes."))),
]
ANSWERS = {False: ["ab", "No.", "Yes."], True: ["abcd", "No.", "No."]}
TOKENS = [2, 10, 3]
NLL = {False: [4.0, 30.0, 9.0], True: [2.0, 12.0, 9.0]}
CORRECT = {False: [1.0, 5.0, 3.0], True: [2.0, 7.0, 0.0]}
PERTURBED = {False: [6.0, 40.0, 14.0], True: [3.0, 21.0, 6.0]}


class Known:
    """A pair of models with known answers; `cut` is how many of them are cut. It records what it is asked."""

    varies = False
    kept = ()

    def __init__(self, cut=(0, 0)):
        self.cut, self.asked = cut, []

    def answers(self, test, tuned, max_new_tokens):
        if test != TEST:
            # The base is asked what it says to general prompts.
            assert not tuned and max_new_tokens == general_prompts.TOKENS
            assert [one.prompt[-1].text for one in test] == list(general_prompts.PROMPTS)
            return ["One. Two. Thr"] * len(test), len(test)
        self.asked.append(("answers", tuned, max_new_tokens))
        return ANSWERS[tuned], self.cut[tuned]

    def likelihoods(self, test, tuned):
        if test[0].prompt == TEST[1].prompt:
            # Copies of the second reference with another number than 7; its own is 30 before and 12 after.
            assert len({one.response for one in test} | {TEST[1].response}) == 4
            return Likelihoods(np.array([31.0, 29.5, 40.0]), np.ones(3), np.full(3, 10))
        if test != TEST:
            assert test[0].prompt[-1].text == general_prompts.PROMPTS[0]
            # 2 nats a token before, 2.5 after.
            return Likelihoods(np.full(len(test), 10.0 if tuned else 8.0), np.ones(len(test)), np.full(len(test), 4))
        return Likelihoods(np.array(NLL[tuned]), np.array(CORRECT[tuned]), np.array(TOKENS))

    def perturbed(self, test, tuned, epsilon):
        assert test == TEST
        self.asked.append(("perturbed", tuned, epsilon))
        return Likelihoods(np.array(PERTURBED[tuned]), np.array(CORRECT[tuned]), np.array(TOKENS))

    def facts(self):
        return {"price_usd": 0.25}


@pytest.fixture
def evaluated(project, monkeypatch):
    """evaluated(pair) runs the stage and returns what measures.json holds."""
    set_params(evaluate__baselines=[])

    def run(pair, labels=("pool", "pool", "")):
        def load(knobs):
            assert knobs == params.load()
            return pair

        doors = {"unsloth": SimpleNamespace(pair=load)}
        monkeypatch.setattr(backends, "inference", lambda knobs: doors[knobs.backend])
        SPLITS["test"].parent.mkdir(parents=True, exist_ok=True)
        conversations.write_jsonl(SPLITS["test"], TEST)
        files.write_json(SPLIT_REPORT, {name: {"conversations": at} for at, name in enumerate(SPLITS, 7)})
        files.write_json(TRAIN_METRICS, {"steps": 57})
        files.write_json(TEST_LABELS, list(labels))
        evaluate.main()
        return json.loads(MEASURES.read_text())

    return run


def values(part):
    return {name: found["value"] for name, found in part.items()}


def test_every_measure_of_both_models_is_that_of_its_definition(evaluated):
    found = evaluated(Known())["test"]
    base, tuned, gain = (values(found[part]) for part in ("base", "tuned", "gain"))
    # Per token: (4 + 30 + 9) / 15 and (2 + 12 + 9) / 15.
    assert (base["loss"], tuned["loss"], gain["loss"]) == (2.8667, 1.5333, -1.3333)
    # e to the mean loss: e^(43/15) = 17.5783 and e^(23/15) = 4.6336.
    assert (base["perplexity"], tuned["perplexity"]) == pytest.approx((17.5783, 4.6336), abs=2e-4)
    assert gain["perplexity"] == pytest.approx(4.6336 - 17.5783, abs=2e-4)
    # Of all tokens (1 + 5 + 3) / 15 and (2 + 7 + 0) / 15; the mean of the conversations' shares would be 2/3 and 0.567.
    assert (base["token_accuracy"], tuned["token_accuracy"], gain["token_accuracy"]) == (0.6, 0.6, 0.0)
    # (6 + 40 + 14) / 15 and (3 + 21 + 6) / 15.
    assert (base["perturbed_loss"], tuned["perturbed_loss"], gain["perturbed_loss"]) == (4.0, 2.0, -2.0)
    # Answers count once each, however many tokens they have.
    assert (base["exact_match"], tuned["exact_match"], gain["exact_match"]) == (0.3333, 0.3333, 0.0)
    assert list(base) == list(tuned) == list(gain)


def test_the_metrics_come_with_the_counts_and_the_training_s(evaluated):
    metrics = evaluated(Known())
    assert metrics["train"] == {"steps": 57}
    assert metrics["counts"] == {"train": 7, "validation": 8, "test": 9, "with_facts": 1, "test_tokens": 15}


def test_every_prediction_has_both_answers_and_their_scores(evaluated):
    evaluated(Known())
    text = PREDICTIONS.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert "“7”" in text and text.endswith("}\n")
    assert lines[0]["prompt"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Pool?"}]
    assert [line["reference"] for line in lines] == ["abcd", "At sieben — “7”.", "Yes."]
    assert [(line["base"], line["tuned"]) for line in lines] == list(zip(ANSWERS[False], ANSWERS[True], strict=True))
    assert [line["weights"]["tuned"]["loss"] for line in lines] == TOKENS
    scores = {part: [line["scores"][part] for line in lines] for part in ("base", "tuned")}
    assert [one["loss"] for one in scores["base"]] == [2.0, 3.0, 3.0]
    assert [one["loss"] for one in scores["tuned"]] == [1.0, 1.2, 3.0]
    # e², e³, e³.
    assert [one["perplexity"] for one in scores["base"]] == [7.3891, 20.0855, 20.0855]
    assert [one["token_accuracy"] for one in scores["base"]] == [0.5, 0.5, 1.0]
    assert [one["perturbed_loss"] for one in scores["base"]] == [3.0, 4.0, 4.6667]
    assert [one["exact_match"] for one in scores["base"]] == [0, 0, 1]
    # "ab" for "abcd" has a chrF of 2500 / 53 (see test_scoring.py), kept with two decimals; the other way it is 78.12.
    assert (scores["base"][0]["chrf"], scores["tuned"][0]["chrf"]) == (47.17, 100.0)


def test_each_label_is_measured_alone(evaluated):
    evaluated(Known())
    found = json.loads(SLICES.read_text())
    assert {label: one["conversations"] for label, one in found.items()} == {"(no label)": 1, "pool": 2}
    pool = found["pool"]
    # (4 + 30) / 12, (2 + 12) / 12, and e to them.
    assert (pool["base"]["loss"]["value"], pool["tuned"]["loss"]["value"]) == (2.8333, 1.1667)
    assert pool["base"]["perplexity"]["value"] == pytest.approx(np.exp(34 / 12), abs=1e-4)
    # (1 + 5) / 12 and (2 + 7) / 12.
    assert pool["gain"]["token_accuracy"]["value"] == 0.25
    assert found["(no label)"]["tuned"]["loss"] == {"value": 3.0, "low": None, "high": None}


def test_both_models_are_asked_as_the_parameters_say(evaluated):
    set_params(evaluate__max_new_tokens=17, evaluate__epsilon=0.5)
    pair = Known()
    evaluated(pair)
    asked = [("answers", False, 17), ("perturbed", False, 0.5), ("answers", True, 17), ("perturbed", True, 0.5)]
    assert pair.asked == asked


def test_without_an_epsilon_no_perturbation_is_measured(evaluated):
    set_params(evaluate__epsilon=None)
    pair = Known()
    assert "perturbed_loss" not in evaluated(pair)["test"]["base"]
    assert all(what == "answers" for what, *_ in pair.asked)


@pytest.mark.parametrize("cut, said", [((0, 0), []), ((2, 0), ["base: 2"]), ((0, 1), ["tuned: 1"])])
def test_answers_that_were_cut_are_counted_for_each_model(evaluated, capsys, cut, said):
    evaluated(Known(cut))
    lines = [line for line in capsys.readouterr().out.splitlines() if "max_new_tokens" in line]
    assert lines == [f"{one} of 3 answers were cut at evaluate.max_new_tokens" for one in said]


def test_the_verdict_is_reported_in_the_last_line_and_facts_are_kept(evaluated, capsys):
    found = evaluated(Known())
    assert found["verdict"]["word"] == "too few" == json.loads(METRICS.read_text())["verdict"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "evaluated 3 conversations. Too few test conversations to judge: 3, where 10 are needed."
    run = json.loads(EVAL_RUN.read_text())
    assert run["price_usd"] == 0.25 and 0 <= run["seconds"] < 60


def test_what_the_base_says_in_general_is_measured_before_and_after(evaluated):
    found = evaluated(Known())["test"]
    assert (found["base"]["retention"]["value"], found["tuned"]["retention"]["value"]) == (2.0, 2.5)
    assert found["gain"]["retention"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    lines = [json.loads(line) for line in GENERAL.read_text().splitlines()]
    assert len(lines) == len(general_prompts.PROMPTS) and "base" not in lines[0]
    # The cut sentence is left out.
    assert lines[0]["reference"] == "One. Two."
    assert lines[0]["scores"]["tuned"] == {"retention": 2.5} and lines[0]["weights"]["tuned"] == {"retention": 4}


def test_a_model_knows_a_fact_if_the_true_one_is_the_likeliest(evaluated):
    found = evaluated(Known())["test"]
    assert (found["base"]["fact_choice"]["value"], found["tuned"]["fact_choice"]["value"]) == (0.0, 1.0)
    lines = [json.loads(line) for line in PREDICTIONS.read_text().splitlines()]
    assert [line["scores"]["tuned"]["fact_choice"] for line in lines] == [None, 1.0, None]


def test_what_experiments_are_listed_by_is_little(evaluated):
    evaluated(Known())
    found = json.loads(METRICS.read_text())
    # Facts: the second reference has one, 7, and no answer has it; no answer states any.
    assert found == {
        "verdict": "too few",
        "facts_right": 0.0,
        "fact_recall": 0.0,
        "chrf": found["chrf"],
        "loss": 1.5333,
        "retention": 2.5,
    }


def compared(base, tuned, seed=42, **evaluation):
    """`compare` for one score of each conversation, under other parameters than the shipped ones."""
    knobs = KNOBS.model_copy(update={"seed": seed, "evaluate": KNOBS.evaluate.model_copy(update=evaluation)})
    means = [{"chrf": Mean(np.array(scores), np.ones(len(scores)))} for scores in (base, tuned)]
    bootstrap = Bootstrap(knobs.seed, knobs.evaluate.resamples, knobs.evaluate.confidence)
    assert evaluate._bootstrap(knobs) == bootstrap
    return {part: found["chrf"] for part, found in evaluate._compared(*means, bootstrap, {}).items()}


def test_each_measure_is_kept_with_its_own_decimals():
    # chrF with two, all else with four.
    third = {"value": 33.33, "low": None, "high": None}
    assert compared([100 / 3], [200 / 3]) == {"base": third, "tuned": {**third, "value": 66.67}, "gain": third}


STILL, ONE_OF_TEN = [0.0] * 10, [0.0] * 9 + [10.0]


@pytest.mark.parametrize("confidence, high", [(0.6, 2.0), (0.9, 3.0)])
def test_the_confidence_is_that_of_the_parameters(confidence, high):
    # The mean of a resample is how often the tenth is drawn: never with probability 0.349, at most once with 0.736, at
    # most twice with 0.930, at most three times with 0.987.
    found = compared(STILL, ONE_OF_TEN, confidence=confidence, resamples=4000)
    interval = {"value": 1.0, "low": 0.0, "high": high}
    assert found == {"base": {"value": 0.0, "low": 0.0, "high": 0.0}, "tuned": interval, "gain": interval}


# Of one resample scipy cannot tell a standard error, which nobody asks for.
@pytest.mark.filterwarnings("ignore:Degrees of freedom", "ignore:invalid value")
def test_there_are_as_many_resamples_as_in_the_parameters():
    rng = np.random.default_rng(5)
    base, tuned = rng.normal(50, 9, 30), rng.normal(60, 9, 30)
    # One resample is both ends.
    assert all(found["low"] == found["high"] for found in compared(base, tuned, resamples=1).values())
    assert all(found["low"] < found["high"] for found in compared(base, tuned, resamples=100).values())


def test_the_seed_is_that_of_the_parameters():
    rng = np.random.default_rng(5)
    base, tuned = rng.normal(50, 9, 30), rng.normal(60, 9, 30)
    found = {seed: compared(base, tuned, seed=seed, resamples=200) for seed in (7, 8)}
    assert found[7] == compared(base, tuned, seed=7, resamples=200)
    assert all(found[7][part] != found[8][part] for part in found[7])


def test_two_runs_at_one_seed_write_the_same_bytes(evaluated):
    def outcome():
        evaluated(Known())
        return [path.read_bytes() for path in (METRICS, MEASURES, SLICES, PREDICTIONS, GENERAL)]

    set_params(seed=7)
    assert outcome() == outcome()


class Varying(Known):
    """Answers that the base gives otherwise the second time, as on a GPU."""

    varies = True

    def answers(self, test, tuned, max_new_tokens):
        found, cut = super().answers(test, tuned, max_new_tokens)
        repeated = self.asked.count(("answers", False, max_new_tokens)) == 2 and test == TEST and not tuned
        return (["ab", "No.", "No."] if repeated else found), cut


def test_what_repeated_answers_change_is_held_by_every_interval(evaluated, monkeypatch):
    monkeypatch.setattr(intervals, "FEWEST", 2)
    once, twice = evaluated(Known())["test"], evaluated(Varying())["test"]
    # One of the three answers is exact the first time, none the second.
    spread = json.loads(EVAL_RUN.read_text())["spread"]
    assert spread["exact_match"] == pytest.approx(1 / 3) and "loss" not in spread
    for part in ("base", "tuned", "gain"):
        before, after = once[part]["exact_match"], twice[part]["exact_match"]
        assert after["value"] == before["value"]
        assert after["low"] == pytest.approx(before["low"] - 1 / 3, abs=1e-4)
        assert after["high"] == pytest.approx(before["high"] + 1 / 3, abs=1e-4)
        assert twice[part]["loss"] == once[part]["loss"]
    assert json.loads(SLICES.read_text())["pool"]["tuned"]["exact_match"]["low"] == pytest.approx(-1 / 3, abs=1e-4)


def test_answers_that_are_the_same_each_time_are_not_asked_for_again(evaluated):
    evaluated(pair := Known())
    assert [what for what, *_ in pair.asked].count("answers") == 2
    assert json.loads(EVAL_RUN.read_text())["spread"] == {}


class WithoutBase(Known):
    """A pair whose base cannot be asked."""

    kept = ({"request": "0", "answer": {"text": "abcd"}},)

    def answers(self, test, tuned, max_new_tokens):
        if not tuned:
            raise UnavailableError("it was shut down")
        return super().answers(test, tuned, max_new_tokens)

    def likelihoods(self, test, tuned):
        return None

    def price(self, test, tuned, max_new_tokens):
        return 0.0


def test_a_base_that_cannot_be_asked_is_left_out_of_everything(evaluated, capsys):
    set_params(evaluate__baselines=["few_shot", "constant"], evaluate__max_cost_usd=None)
    SPLITS["train"].parent.mkdir(parents=True)
    conversations.write_jsonl(SPLITS["train"], TEST)
    found = evaluated(WithoutBase())
    out = capsys.readouterr().out
    assert (
        "base: left out, because it was shut down\n" in out and "few_shot: left out, because it was shut down\n" in out
    )
    assert values(found["test"]["tuned"])["exact_match"] == 0.3333 and found["counts"]["with_facts"] == 1
    assert set(values(found["test"]["base"]).values()) == set(values(found["test"]["gain"]).values()) == {None}
    (constant,) = found["baselines"].values()
    assert constant["gain"]["chrf"]["value"] is not None
    lines = predictions.read(PREDICTIONS.read_text(), "predictions")
    assert {line["base"] for line in lines} == {""} and lines[0]["tuned"] == "abcd"
    assert json.loads(KEPT.read_text()) == WithoutBase.kept[0]
