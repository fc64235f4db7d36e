"""Chat completions of base and tuned models, compared with plain transformers and peft."""

import json
import shutil

import openai
import pytest

from tests.support.endpoint import ended, upload

ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Room 3?"}]


@pytest.fixture(scope="module")
def adapters(small_base, tmp_path_factory):
    """Folders of two adapters with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.bfloat16)
        config = LoraConfig(r=4 * seed, target_modules=["down_proj", "o_proj"][:seed], init_lora_weights=False)
        adapted = get_peft_model(model, config)
        for weight in (weight for name, weight in adapted.named_parameters() if "lora" in name):
            torch.nn.init.normal_(weight)
        made.append(tmp_path_factory.mktemp("adapter"))
        adapted.save_pretrained(made[-1])
    return made


def plainly(small_base, adapter=None, tokens=12):
    """The answer of plain libraries, and the tokens of prompt and answer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_base)
    model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    prompt = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    made = model.eval().generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    before = ids["input_ids"].shape[1]
    return tokenizer.decode(made[0, before:], skip_special_tokens=True).strip(), before, made.shape[1] - before


@pytest.fixture(scope="module")
def tuned(shared, asker, adapters):
    """The names of the tuned models, in the order of the adapters."""
    names = []
    for adapter in adapters:
        shared.model = lambda folder, adapter=adapter: shutil.copytree(adapter, folder)
        names.append(ended(asker, asker.fine_tuning.jobs.create(model="tiny", training_file=upload(asker)).id))
    return [job.fine_tuned_model for job in names]


def say(asker, model, **given):
    return asker.chat.completions.create(model=model, messages=ASKED, **{"temperature": 0, "max_tokens": 12, **given})


def refused(what, *given, **named):
    with pytest.raises(openai.APIStatusError) as error:
        what(*given, **named)
    return error.value


def test_base_and_tuned_models_answer_in_turn_as_plain_libraries_do(asker, tuned, small_base, adapters):
    expected = {
        "tiny": plainly(small_base),
        **{n: plainly(small_base, a) for n, a in zip(tuned, adapters, strict=True)},
    }
    assert len({text for text, _, _ in expected.values()}) == 3
    for name in ("tiny", *tuned, "tiny", *reversed(tuned), f"{tuned[0]}:ckpt-step-2"):
        text, prompt, tokens = expected[name.partition(":ckpt")[0]]
        answer = say(asker, name)
        assert answer.choices[0].message.content == text and answer.model == name
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, tokens)
        assert answer.choices[0].finish_reason == "length"
        assert answer.system_fingerprint.startswith("the model in the folder tiny")
    assert "fine-tuned by ftjob-" in say(asker, tuned[0]).system_fingerprint


def test_a_stream_has_the_same_text_and_ends_with_usage_if_asked(asker, tuned):
    whole = say(asker, tuned[0])
    chunks = list(say(asker, tuned[0], stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text.strip() == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in say(asker, "tiny", stream=True))


def test_an_answer_ends_before_a_stop_sequence(asker, tuned):
    text = say(asker, tuned[0]).choices[0].message.content
    stop = text[4:6]
    for given in (stop, ["never", stop]):
        answer = say(asker, tuned[0], stop=given).choices[0]
        assert answer.message.content == text[: text.index(stop)].strip() and answer.finish_reason == "stop"
    streamed = [c.choices[0].delta.content or "" for c in say(asker, tuned[0], stop=stop, stream=True)]
    assert "".join(streamed).strip() == text[: text.index(stop)].strip()


def test_sampling_is_repeated_by_its_seed_alone(asker):
    def texts(**given):
        return [say(asker, "tiny", temperature=1.5, **given).choices[0].message.content for _ in range(3)]

    assert len(set(texts(seed=5))) == 1 and texts(seed=5) != texts(seed=6)
    assert len(set(texts())) > 1
    # Only the most likely token is left.
    assert set(texts(top_p=0.0)) == {say(asker, "tiny").choices[0].message.content}


def test_a_prompt_beyond_the_context_is_refused(asker):
    long = [{"role": "user", "content": "x" * 2100}]
    error = refused(asker.chat.completions.create, model="tiny", messages=long)
    assert error.status_code == 400 and error.code == "context_length_exceeded"
    error = refused(asker.chat.completions.create, model="tiny", messages=long, stream=True)
    assert error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "given, param",
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"extra_body": {"top_k": 5}}, None),
    ],
)
def test_what_would_change_the_answer_and_is_not_there_is_refused(asker, given, param):
    error = refused(say, asker, "tiny", **given)
    assert error.status_code == 400 and error.param == param


def test_defaults_that_askers_send_along_are_accepted(asker):
    given = {"n": 1, "logprobs": False, "presence_penalty": 0, "response_format": {"type": "text"}, "user": "somebody"}
    assert say(asker, "tiny", **given).choices[0].message.role == "assistant"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "king", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}],
        [{"role": "user", "content": 5}],
    ],
)
def test_messages_that_no_model_here_can_read_are_refused(asker, messages):
    assert refused(asker.chat.completions.create, model="tiny", messages=messages).status_code == 400


def test_parts_of_text_a_developer_and_an_answer_sent_back_are_read_as_plain_messages(asker):
    answer = say(asker, "tiny").choices[0].message
    parts = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Room "}, {"type": "text", "text": "3?"}]},
    ]
    assert (
        asker.chat.completions.create(model="tiny", messages=parts, temperature=0, max_tokens=12).usage
        == say(asker, "tiny").usage
    )
    back = [*ASKED, json.loads(answer.to_json()), {"role": "user", "content": "Room 4?"}]
    assert asker.chat.completions.create(model="tiny", messages=back, max_tokens=2).choices
