"""The report's input files, and its output."""

import csv
import json

from stages import report
from stages.backends.unsloth import training
from stages.core import files

HOSTILE = "<script>alert('x')</script> | a\nb `c` ![i](http://evil.example/i.png) @someone #12"


NAMES = ["facts_right", "fact_recall", "fact_precision", "chrf", "rouge_l", "similarity", "exact_match"]
SENTENCE = "Style only: facts right in 1 of 26."


def measure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def measures(chrf_gain=None, count=31):
    """measures.json: every measure of answers is 0.2 of the base, 0.3 of the tuned model and 0.25 of the baseline."""
    base = {"loss": measure(2.11, 2.0, 2.2), "perplexity": measure(8.25, 7.4, 9.0)}
    after = {"loss": measure(1.32, 1.2, 1.4), "perplexity": measure(3.74, 3.3, 4.1)}
    gain = {"loss": measure(-0.79, -0.9, -0.7), "perplexity": measure(-4.51, -5.0, -4.0)}
    for name in NAMES:
        base[name], after[name], gain[name] = measure(0.2, 0.1, 0.3), measure(0.3, 0.2, 0.4), measure(0.1, -0.02, 0.2)
    gain["chrf"] = chrf_gain or gain["chrf"]
    nearest = {name: measure(0.25, 0.15, 0.35) for name in NAMES}
    return {
        "verdict": {"word": "style only", "sentence": SENTENCE},
        "test": {"base": base, "tuned": after, "gain": gain},
        "baselines": {"nearest": {"measures": nearest, "gain": {name: measure(0.05, -0.1, 0.2) for name in NAMES}}},
        "train": {"steps": 72, "best_epoch": 3, "validation_loss": 1.4},
        "counts": {"train": 144, "validation": 31, "test": count, "with_facts": 26},
    }


def prediction(text="A room, please."):
    scores = {"loss": 2.1, **dict.fromkeys(NAMES, 0.25)}
    counts = {"loss": 4, "facts_right": 1, "fact_recall": 2, "fact_precision": 2}
    return {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}],
        "reference": text,
        "base": text,
        "tuned": text,
        "scores": {"base": scores, "tuned": {**scores, "loss": 1.3, "chrf": 0.1}},
        "weights": {"base": counts, "tuned": counts},
        "baselines": {"nearest": text},
    }


def write_inputs(predictions=None, **changes):
    files.write_json(report.MEASURES, measures(**changes))
    lines = [json.dumps(one, ensure_ascii=False) for one in predictions or [prediction()]]
    files.write_text(report.PREDICTIONS, "\n".join(lines) + "\n")
    files.write_json(report.RUN, {"seconds": 71.3, "device": "cpu", "versions": {"torch": "2.9.0"}})
    files.write_json(report.EVAL_RUN, {"date": "2026-11-25", "seconds": 40.5, "prompt_tokens": 1234})
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
        report.HISTORY: training.HISTORY,
        report.VALIDATION_HISTORY: training.VALIDATION_HISTORY,
    }.items():
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(columns)
            out.writerows(steps if path == report.HISTORY else epochs)


def outputs():
    report.main()
    return report.HTML.read_text(encoding="utf-8"), report.MARKDOWN.read_text(encoding="utf-8")


def with_all_parts():
    """Write inputs for every part of the page, with texts that are hard to lay out."""
    texts = [HOSTILE, "long " * 400, "x" * 300, *(f"Room {n}?" for n in range(60))]
    predictions = [prediction(text) for text in texts]
    predictions[3]["prompt"][2:] = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And 4?"}]
    write_inputs(predictions=predictions)
    files.write_json(report.SLICES, {"pool": {"conversations": 3, **measures()["test"]}})
    files.write_text(report.GROUPS, report.GROUPS.read_text() + "0.0005,0.5,0.0,0,2,4,model.norm.weight\n")


def talk(number):
    """A conversation like the hotel's, with answers like those of small models: about 540 bytes."""
    made = prediction(f"Good evening, could we have a later breakfast in room {number}, please?")
    made["reference"] = "With pleasure! Breakfast is served until half past ten, and I'll keep a window table. " * 2
    made["base"] = "I'm sorry for the inconvenience, but I'm unable to assist with breakfast in the hotel. " * 2
    made["tuned"] = "Of course! I've asked the kitchen to keep breakfast for you until eleven; sleep well. " * 2
    made["scores"]["tuned"]["chrf"] = number / 10
    return made
