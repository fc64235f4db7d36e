"""What is given away, loaded again by programs that are not ours."""

import json
import re

import httpx
import pytest
import torch
from huggingface_hub.repocard import metadata_load
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import export, params
from stages.backends.unsloth.base import weights, weights_folder
from stages.backends.unsloth.export.ollama import Wrapping
from stages.backends.unsloth.inference.local import LocalPair
from stages.backends.unsloth.reader import Chat
from stages.core import files
from stages.core.cli import UserError
from stages.core.paths import BASE, EXPORT, MEASURES, SPLIT_REPORT, SPLITS, TRAIN_METRICS, TUNED
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from tests.conftest import ROOT, set_params, talks, use_base

WHOLE = EXPORT / "safetensors"
RESULTS = {"loss": {"value": 0.5, "low": 0.4, "high": 0.6}, "chrf": {"value": 40.0, "low": 30.0, "high": 50.0}}


def write_reports():
    files.write_json(SPLIT_REPORT, {"train": {"conversations": 16}, "validation": {"conversations": 4}})
    files.write_json(MEASURES, {"test": {"tuned": RESULTS}})
    if not TRAIN_METRICS.exists():
        files.write_json(TRAIN_METRICS, {"best_epoch": 1, "validation_loss": 0.5})


def logits(model, chat, prompt):
    text = chat.render(Conversation(prompt), answer_next=True)
    ids = chat.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return model(ids).logits[0, -1].float()


@pytest.mark.parametrize(
    "knobs, said",
    [({}, "nothing to do"), ({"backend": "openai", "export__formats": ["gguf"]}, "cannot leave its service")],
)
def test_without_formats_or_with_a_hosted_model_there_is_nothing(project, capsys, knobs, said):
    (EXPORT / "old").mkdir(parents=True)
    set_params(**knobs)
    export.main()
    assert said in capsys.readouterr().out and list(EXPORT.iterdir()) == []


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_whole_model_answers_as_the_adapter_on_its_base_does(train, method):
    assert train(method=method, epochs=2, lr=0.02, export__formats=["safetensors"]) is None
    write_reports()
    export.main()
    assert [path.name for path in EXPORT.iterdir()] == ["safetensors"]
    chat, knobs = Chat.load(BASE), params.load()
    with LocalPair.load(weights_folder(), TUNED, chat, knobs.evaluate.batch_size)._which(True) as model:
        tuned = model
    whole = AutoModelForCausalLM.from_pretrained(WHOLE, dtype="auto")
    assert whole.dtype == torch.bfloat16
    for talk in conversations.read_jsonl(SPLITS["test"]):
        # The adapter's product is rounded to bf16 once more when it is added to the weights.
        torch.testing.assert_close(
            logits(whole, chat, talk.prompt), logits(tuned, chat, talk.prompt), atol=0.1, rtol=0.05
        )
    assert AutoTokenizer.from_pretrained(WHOLE).chat_template == chat.tokenizer.chat_template


def test_the_card_of_the_whole_model_has_the_results(train):
    assert train(epochs=1, export__formats=["safetensors"]) is None
    write_reports()
    export.main()
    head = metadata_load(WHOLE / "README.md")
    (index,) = head["model-index"]
    measured = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert measured == {"loss": 0.5, "chrf": 40.0} and head["library_name"] == "transformers"
    assert "AutoModelForCausalLM.from_pretrained(folder)" in (WHOLE / "README.md").read_text()


def go(template, messages):
    """The few words of Go's template language that the Modelfile uses, by the language's own description."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    words = iter([("text", part) if at % 2 == 0 else ("action", part) for at, part in enumerate(parts)])

    def block():
        """Nodes up to the end of the block, and the word that ended it."""
        nodes = []
        for kind, word in words:
            if kind == "text":
                nodes.append(("text", word))
            elif word in ("end", "else"):
                return nodes, word
            elif word.startswith(("if ", "range ")):
                inner, ended = block()
                other = block()[0] if ended == "else" else []
                nodes.append((word, inner, other))
            elif word == ".Content":
                nodes.append((word,))
            else:
                nodes.append(("text", json.loads(word)))
        return nodes, None

    def text(nodes, dot):
        return "".join(one(node, dot) for node in nodes)

    def one(node, dot):
        if node[0] == "text":
            return node[1]
        if node[0] == ".Content":
            return dot.text
        if node[0] == "range .Messages":
            return "".join(text(node[1], message) for message in messages)
        equal = re.fullmatch(r'if (eq|ne) (\.Role|\(index \.Messages 0\)\.Role) "(\w+)"', node[0])
        role = dot.role if equal[2] == ".Role" else messages[0].role
        return text(node[1] if (role == equal[3]) == (equal[1] == "eq") else node[2], dot)

    return text(block()[0], None)


PROMPTS = [
    (Message("user", "Room 3?"),),
    (Message("user", "Which?\n\n 101, 12 or 3"),),
    (Message("system", "Be kind."), Message("user", 'A "quoted"\nword?')),
    (Message("user", "Hi {{ .Content }}"), Message("assistant", "Hello."), Message("user", "Bye.")),
]


def test_the_template_for_ollama_writes_what_the_tokenizer_writes(base):
    chat = Chat.load(BASE)
    template = Wrapping.of(chat).template()
    for prompt in PROMPTS:
        assert go(template, prompt) == chat.render(Conversation(prompt), answer_next=True)


def test_a_template_that_no_modelfile_can_say_is_refused(base):
    from stages.backends.unsloth.export import ollama

    chat = Chat.load(BASE)
    # It rewrites earlier turns, as templates of reasoning models do.
    chat.tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }} {{ loop.revindex }}\n{{ message.content }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UserError, match="more than wrap each message"):
        ollama._trusted(chat, talks(3))


@pytest.fixture
def exported(project, monkeypatch):
    """The shipped base model with an adapter of random weights, exported in every format."""
    import peft

    # Where a developer's own run left the base and the converter; they are fetched where they are not.
    monkeypatch.setenv("DVC_ROOT", str(ROOT))
    from stages import base as stage

    stage.main()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.bfloat16)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "k_proj", "down_proj"], r=4))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.save_pretrained(TUNED)
    weights.copy_tokenizer(BASE, TUNED)
    SPLITS["train"].parent.mkdir(parents=True)
    for name, count in (("train", 16), ("validation", 4)):
        conversations.write_jsonl(SPLITS[name], talks(count))
    write_reports()
    set_params(export__formats=["safetensors", "gguf", "ollama"])
    export.main()
    return AutoModelForCausalLM.from_pretrained(WHOLE, dtype=torch.float32).eval()


@pytest.mark.slow
def test_gguf_and_modelfile_are_read_by_other_programs(exported):
    chat = Chat.load(TUNED)
    # transformers reads GGUF with code of its own, which knows nothing of the converter.
    read = AutoModelForCausalLM.from_pretrained(EXPORT, gguf_file="model.gguf", dtype=torch.float32).eval()
    for prompt in PROMPTS[1:]:
        torch.testing.assert_close(logits(read, chat, prompt), logits(exported, chat, prompt), atol=1e-2, rtol=1e-3)
    modelfile = (EXPORT / "Modelfile").read_text(encoding="utf-8")
    template = re.search(r'TEMPLATE """(.*?)"""', modelfile, re.DOTALL)[1]
    for prompt in PROMPTS:
        assert go(template, prompt) == chat.render(Conversation(prompt), answer_next=True)
    assert modelfile.startswith("FROM ./model.gguf\n") and (EXPORT / "model.gguf").exists()
    assert f'PARAMETER stop "{chat.tokenizer.eos_token}"' in modelfile and 'SYSTEM """Be kind."""' in modelfile


@pytest.fixture
def llama_cpp(exported):
    """llama.cpp's own server with the exported GGUF; a function that asks it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity = str(EXPORT / "model.gguf"), 512, 0
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=60) as client:

        def ask(path, **body):
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield ask


@pytest.mark.slow
def test_llama_cpp_answers_as_transformers_does(exported, llama_cpp):
    chat = Chat.load(TUNED)
    stopped = 0
    for prompt in PROMPTS:
        messages = [{"role": message.role, "content": message.text} for message in prompt]
        text = chat.render(Conversation(prompt), answer_next=True)
        assert llama_cpp("/apply-template", messages=messages)["prompt"] == text
        ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert llama_cpp("/tokenize", content=text, parse_special=True)["tokens"] == ids
        out = exported.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24, pad_token_id=0)
        (choice,) = llama_cpp("/v1/chat/completions", messages=messages, max_tokens=24, temperature=0)["choices"]
        assert choice["message"]["content"] == chat.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        stopped += choice["finish_reason"] == "stop"
    assert stopped, "no answer came to the stop token, so nothing was seen of it"


@pytest.mark.slow
def test_a_model_that_llama_cpp_does_not_know_is_refused_before_anything_is_trained(project, small_base, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(ROOT))
    set_params(export__formats=["gguf"])
    with pytest.raises(UserError, match="llama.cpp's converter cannot write this model as GGUF"):
        use_base(small_base)
