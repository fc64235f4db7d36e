"""What each parameter takes: the last allowed and the first refused value on either side, and every word."""

import copy
import datetime
import re

import pytest

from stages import params
from stages.params import faults, schema
from tests.conftest import ROOT

LEAST = 5e-324
SHIPPED = params.read_yaml(ROOT / "params.yaml")
# Key, values that are allowed, values that are not: those on the bounds and beside them.
NUMBERS = [
    ("seed", [0, 2**32 - 1], [-1, 2**32, 0.5]),
    ("lr", [LEAST, 1], [0, 1.0001]),
    ("epochs", [LEAST, 0.5, 1000], [0, 1000.1]),
    ("early_stopping_patience", [None, 1, 1000], [0, 1001, 1.5]),
    ("batch_size", [1, 4096], [0, 4097, 1.5]),
    ("dropout", [0, 0.9999], [-LEAST, 1]),
    ("attention_dropout", [0, 0.9999], [-LEAST, 1]),
    ("weight_decay", [0, 1], [-LEAST, 1.0001]),
    ("warmup_ratio", [0, 0.9999], [-LEAST, 1]),
    ("label_smoothing_factor", [0, 0.9999], [-LEAST, 1]),
    ("max_grad_norm", [None, LEAST, 1000], [0, 1000.1]),
    ("data.max_mb", [LEAST, 1e9], [0]),
    ("validate.max_quarantined", [0, 1], [-LEAST, 1.0001]),
    ("split.validation", [LEAST, 0.89], [0, 1, 0.9]),
    ("split.test", [LEAST, 0.9], [0, 1, 0.91]),
    ("schedule.num_cycles", [1, 1000], [0, 1001, 1.5]),
    ("schedule.power", [LEAST, 10], [0, 10.1]),
    ("schedule.decay_ratio", [LEAST, 1], [0, 1.0001]),
    ("lora.r", [1, 1024], [0, 1025, 1.5]),
    ("lora.alpha", [LEAST, 4096], [0, 4096.1]),
    ("lora.layers_to_transform", [None, [0], [3, 7], "upper_half"], [[], [-1], [0.5], "lower_half"]),
    ("lora.loraplus_lr_ratio", [1, 1000], [0.9999, 1000.1]),
    ("layers.lr_decay", [LEAST, 1], [0, 1.0001]),
    ("layers.lr", [{}, {"mlp": 0}, {"mlp": 1000}], [{"mlp": -LEAST}, {"mlp": 1000.1}, {"(": 1}, {"": 1}]),
    ("adversarial.epsilon", [LEAST, 1000], [0, 1000.1]),
    ("adversarial.steps", [1, 100], [0, 101, 1.5]),
    ("adversarial.step_size", [LEAST, 1000], [0, 1000.1]),
    ("checkpoint.every", [1, 1_000_000], [0, 1_000_001, 1.5]),
    ("unsloth.max_length", [16, 1_000_000], [15, 1_000_001, 16.5]),
    ("openai.learning_rate_multiplier", ["auto", LEAST, 100], [0, 100.1, "best"]),
    ("openai.suffix", [None, "a", "a" * 64], ["", "a" * 65, 5]),
    ("openai.checkpoint", ["last", "best", 1, 10**9], [0, 1.5, "first"]),
    *(
        (f"openai.prices.{name}", [None, 0, 1e9], [-LEAST])
        for name in ("training", "base_input", "base_output", "tuned_input", "tuned_output")
    ),
    ("openai.attempt", [1, 10**9], [0, 1.5]),
    ("openai.max_cost_usd", [None, 0, 1e9], [-LEAST]),
    ("openai.timeout", [LEAST, 1e9], [0]),
    ("openai.poll_seconds", [LEAST, 3600], [0, 3600.1]),
    ("evaluate.batch_size", [1, 4096], [0, 4097, 1.5]),
    ("evaluate.max_new_tokens", [1, 8192], [0, 8193, 1.5]),
    ("evaluate.resamples", [100, 100_000], [99, 100_001, 100.5]),
    ("evaluate.confidence", [0.5, 0.9999], [0.4999, 1]),
    ("evaluate.epsilon", [None, LEAST, 1000], [0, 1000.1]),
    ("evaluate.max_cost_usd", [None, 0, 1e9], [-LEAST]),
    ("verdict.retention", [0, 1e9], [-LEAST]),
    ("review.regressions", [{}, {"loss": 0}, {"chrf": 1e9}], [{"loss": -LEAST}]),
]
WORDS = {
    "backend": ["unsloth", "openai"],
    "scheduler": [
        *("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"),
        "warmup_stable_decay",
    ],
    "optim": ["adamw_torch", "adamw_8bit", "adafactor", "sgd"],
    "gradient_checkpointing": [True, False],
    "packing": [True, False, "auto"],
    "method": ["lora", "qlora", "dora", "full"],
    "validate.on_error": ["stop", "quarantine"],
    "lora.bias": ["none", "lora_only", "all"],
    "lora.use_rslora": [True, False],
    "lora.init_lora_weights": ["default", "gaussian", "orthogonal", "pissa", "olora"],
    "adversarial.method": ["none", "neftune", "fgm", "pgd", "freelb"],
    "unsloth.overlong": ["stop", "drop"],
    "unsloth.enable_thinking": [True, False],
    "openai.hyperparameters": ["method", "top_level"],
    "export.gguf_type": ["bf16", "f16", "q8_0"],
}
TEXTS = ["data.source", "unsloth.model", "unsloth.revision", "openai.model", "openai.base_url"]
TEXTS += ["openai.chat_model", "openai.base_chat_model"]
OTHERS = ["openai.extra_body", "data.sources", "lora.target_modules", "export.formats", "evaluate.baselines"]


def check(**changes):
    """The shipped parameters with some changed, as they would be read: openai__suffix is openai.suffix."""
    values = copy.deepcopy(SHIPPED)
    for key, value in changes.items():
        *sections, last = key.split("__")
        at = values
        for section in sections:
            at = at[section]
        at[last] = value
    return params.Params.model_validate(values)


def value_at(knobs, key):
    at = knobs
    for part in key.replace("validate.", "gate.").split("."):
        at = getattr(at, part)
    return at


def refused(**changes):
    with pytest.raises(ValueError) as error:
        check(**changes)
    return "\n".join(map(faults.line, error.value.errors()))


def leaves(values, prefix=""):
    for key, value in values.items():
        is_section = not prefix or f"{prefix}{key}" == "openai.prices"
        if isinstance(value, dict) and is_section:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_parameter_is_in_one_of_these_lists():
    listed = [key for key, *_ in NUMBERS] + [*WORDS, *TEXTS, *OTHERS]
    assert sorted(listed) == sorted(leaves(SHIPPED))


@pytest.mark.parametrize("key, allowed, wrong", NUMBERS, ids=[key for key, *_ in NUMBERS])
def test_the_bounds_of_a_number(key, allowed, wrong):
    name = key.replace(".", "__")
    for value in allowed:
        assert value_at(check(**{name: value}), key) == value
    # A number is no text, no truth value, and not one that JSON does not have.
    for value in [*wrong, True, float("nan"), float("inf"), *([] if key == "openai.suffix" else ["1"])]:
        assert key.split(".")[0] in refused(**{name: value}), value
    if None not in allowed:
        refused(**{name: None})


@pytest.mark.parametrize("key", WORDS)
def test_the_words_of_a_choice(key):
    name = key.replace(".", "__")
    # A hosted model has no epochs of one half, and PiSSA no biases; the shipped values go with all of these words.
    for word in WORDS[key]:
        assert value_at(check(**{name: word}), key) == word
    for word in ("nothing", "", 5, None):
        assert refused(**{name: word}).startswith(key)


@pytest.mark.parametrize("key", TEXTS)
def test_a_text_is_text_and_not_empty(key):
    name = key.replace(".", "__")
    for wrong in ("", 5, True):
        assert key.split(".")[0] in refused(**{name: wrong})
    if key in ("unsloth.revision", "openai.base_url", "openai.base_chat_model"):
        assert value_at(check(**{name: None}), key) is None
    else:
        refused(**{name: None})


@pytest.mark.parametrize(
    "value, right",
    [
        (["q_proj"], True),
        ("all-linear", True),
        ("mlp", True),
        ("attention", True),
        ([], False),
        ("", False),
        ([""], False),
        ([5], False),
        ("(q", False),
        (None, False),
    ],
)
def test_target_modules_are_names_or_a_pattern(value, right):
    if right:
        assert check(lora__target_modules=value).lora.target_modules == value
    else:
        assert refused(lora__target_modules=value).startswith("lora.target_modules")


def test_target_modules_may_be_a_pattern_where_the_layers_are_not_chosen_besides():
    pattern = r".*\.(q|v)_proj"
    found = check(lora__target_modules=pattern, lora__layers_to_transform=None)
    assert found.lora.target_modules == pattern


def test_a_pattern_that_is_none_is_quoted_with_the_reason():
    assert "'(q' is not a regular expression: missing )" in refused(lora__target_modules="(q")


def test_export_formats_are_any_of_three():
    for formats in ([], ["safetensors"], ["gguf", "ollama", "safetensors"]):
        assert check(export__formats=formats).export.formats == formats
    for formats in (["onnx"], "gguf", None):
        assert refused(export__formats=formats).startswith("export.formats")


SOURCE = {"url": "a.csv", "sha256": None, "format": "messages"}
COLUMNS = {"user": "q", "assistant": "a"}
TURNS = {"conversation": "c", "role": "r", "content": "t"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sha256": "0123456789abcdef" * 4},
        {"format": "sharegpt"},
        {"format": "alpaca"},
        {"format": "prompt_completion"},
        {"format": "columns", "columns": COLUMNS},
        {"format": "columns", "columns": {**COLUMNS, "system": "s"}},
        {"format": "columns", "columns": {**COLUMNS, "system_prompt": "Be kind."}},
        {"format": "columns", "columns": {**COLUMNS, "user": ["q", "c"], "history": "h"}},
        {"format": "columns", "columns": {**COLUMNS, "user": "{q}\n\n{c}"}},
        {"format": "turns", "turns": TURNS},
        {"format": "turns", "turns": {**TURNS, "order": "at"}, "roles": {"Kim": "user"}},
        {"format": "oasst", "ignore": ["lang"]},
        {"reasoning": "drop", "sheet": "FAQ", "escape": "backslash"},
        *({"container": name} for name in ("csv", "json", "jsonl", "parquet", "xlsx")),
        {"label": "topic", "encoding": "cp1252", "delimiter": ";"},
    ],
)
def test_what_a_source_may_be(changes):
    source = check(data__sources={"sample": {**SOURCE, **changes}}).data.chosen
    assert source.model_dump(exclude_unset=True) == {**SOURCE, **changes}


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"url": ""}, "url"),
        ({"url": None}, "url"),
        ({"sha256": "0" * 63}, "sha256: .*64 hexadecimal digits or null"),
        ({"sha256": "0" * 65}, "sha256"),
        ({"sha256": "G" + "0" * 63}, "sha256"),
        ({"sha256": "A" * 64}, "sha256"),
        ({"format": "xml"}, "format: 'xml' is not allowed; expected one of messages, columns, sharegpt"),
        ({"format": "columns"}, "columns .* go with format: columns, and only with it"),
        ({"columns": COLUMNS}, "columns .* go with format: columns, and only with it"),
        ({"format": "turns"}, "turns .* goes with format: turns, and only with it"),
        ({"turns": TURNS}, "turns .* goes with format: turns, and only with it"),
        ({"format": "turns", "turns": {"conversation": "c", "role": "r"}}, "turns.content: missing; expected text"),
        ({"format": "columns", "columns": {**COLUMNS, "user": []}}, "user is an empty list"),
        ({"ignore": ["system"]}, "ignore: 'system' changes the conversation"),
        ({"roles": {"Kim": "guest"}}, "roles"),
        ({"reasoning": "keep"}, "reasoning: 'keep' is not allowed; expected one of drop, learn or null"),
        ({"escape": "double"}, "escape: 'double' is not allowed; expected one of doubled, backslash or null"),
        ({"format": "columns", "columns": {"user": "q"}}, "columns.assistant: missing; expected a list or text"),
        ({"format": "columns", "columns": {"assistant": "q"}}, "columns.user: missing; expected a list or text"),
        ({"format": "columns", "columns": {**COLUMNS, "system": "s", "system_prompt": "S"}}, "exclude each other"),
        ({"format": "columns", "columns": {"user": "q", "assistant": "q"}}, "user and assistant both name 'q'"),
        ({"format": "columns", "columns": {**COLUMNS, "usr": "s"}}, "columns.usr: unknown key; did you mean .*user'"),
        ({"container": "xml"}, "container"),
        ({"delimiter": ";;"}, "delimiter"),
        ({"delimiter": ""}, "delimiter"),
        ({"label": ""}, "label"),
        ({"encoding": ""}, "encoding"),
        ({"shape": "x"}, "shape: unknown key"),
    ],
)
def test_what_a_source_may_not_be(changes, key):
    assert re.search(f"data.sources.sample.*{key}", refused(data__sources={"sample": {**SOURCE, **changes}}))


@pytest.mark.parametrize("key", ["url", "sha256", "format"])
def test_what_a_source_must_say(key):
    left = {name: value for name, value in SOURCE.items() if name != key}
    assert f"data.sources.sample.{key}: missing" in refused(data__sources={"sample": left})


@pytest.mark.parametrize("section", [None, *(name for name, value in SHIPPED.items() if isinstance(value, dict))])
def test_every_key_is_needed_and_no_other_is_known(section):
    whole = SHIPPED[section] if section else SHIPPED
    for key in whole:
        left = {name: value for name, value in whole.items() if name != key}
        place = f"{section}.{key}" if section else key
        values = {**SHIPPED, section: left} if section else left
        with pytest.raises(ValueError) as error:
            params.Params.model_validate(values)
        assert [faults.line(one) for one in error.value.errors()][0].startswith(f"{place}: missing; expected ")
    values = {**SHIPPED, section: {**whole, "zzzzzz": 1}} if section else {**SHIPPED, "zzzzzz": 1}
    with pytest.raises(ValueError) as error:
        params.Params.model_validate(values)
    known = ", ".join(sorted(whole))
    if section not in ("data", "layers"):
        assert f"zzzzzz: unknown key; known: {known}" in faults.line(error.value.errors()[0])


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ("batchsize", "did you mean 'batch_size'?"),
        ("shedule", "did you mean 'schedule'?"),
        ("sed", "did you mean 'seed'?"),
        ("lora__alpa", "did you mean 'lora.alpha'?"),
        ("qqqqqq", "known: adversarial, attention_dropout, backend, "),
        ("lora__qqqqqq", "known: alpha, bias, "),
    ],
)
def test_an_unknown_key_hints_at_the_nearest_or_lists_all(wrong, hint):
    assert refused(**{wrong: 1}).startswith(f"{wrong.replace('__', '.')}: unknown key; {hint}")


def test_a_wrong_value_within_a_list_names_its_place():
    text = refused(lora__target_modules=["q_proj", 5])
    assert "lora.target_modules.1: 5 is not allowed; expected text" in text.splitlines()
    assert "expected one of safetensors, gguf, ollama" in refused(export__formats=["gguf", "onnx"])
    assert "export.formats.1: 'onnx'" in refused(export__formats=["gguf", "onnx"])


def test_a_source_may_have_a_number_as_its_name():
    sources = {"7": SOURCE, "sample": SOURCE}
    assert check(data__sources=sources, data__source="7").data.chosen.url == "a.csv"
    sources["7"] = {**SOURCE, "url": 5}
    assert refused(data__sources=sources) == "data.sources.7.url: 5 is not allowed; expected text"


@pytest.mark.parametrize(
    "key, allowed",
    [
        ("lr", "a number > 0 and <= 1"),
        ("dropout", "a number >= 0 and < 1"),
        ("early_stopping_patience", "a whole number >= 1 and <= 1000 or null"),
        ("packing", "true or false or auto"),
        ("gradient_checkpointing", "true or false"),
        ("method", "one of lora, qlora, dora, full"),
        ("data.sources", "a section"),
        ("data.sources.sample.sha256", "64 hexadecimal digits or null"),
        ("openai.checkpoint", "a whole number >= 1 or one of last, best"),
        ("lora.target_modules", "a list or text"),
        ("lora.layers_to_transform.0", "a whole number >= 0"),
        ("export.formats.0", "one of safetensors, gguf, ollama"),
        ("layers.lr.mlp", "a number >= 0 and <= 1000"),
        ("evaluate", "a section"),
    ],
)
def test_what_is_allowed_is_said_in_words(key, allowed):
    assert schema.allowed(key) == allowed


@pytest.mark.parametrize(
    "value, said",
    [
        ({"trainingType": "Standard", "nested": {"a": [1, None, True]}}, None),
        ({"hyperparameters": {"lora": True}}, None),
        ({"model": "other"}, "openai.extra_body: 'model' is set by its own parameter"),
        ({"metadata": {}}, "openai.extra_body: 'metadata' is set by its own parameter"),
        ({"day": datetime.date(2026, 11, 25)}, "openai.extra_body: it must be what JSON can hold"),
        ({"rate": float("nan")}, "openai.extra_body: it must be what JSON can hold"),
        ({"hyperparameters": 3}, "openai.extra_body: 'hyperparameters' must be a section"),
    ],
)
def test_the_extra_body_is_json_and_sets_nothing_that_has_a_parameter(value, said):
    if said is None:
        assert check(openai__extra_body=value).openai.extra_body == value
    else:
        assert refused(openai__extra_body=value).startswith(said)
