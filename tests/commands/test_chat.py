"""Talking to models through the command, on either backend."""

import io
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages import params
from stages.backends.unsloth.reader import Chat
from stages.commands import chat
from stages.core import cli, files
from stages.core.paths import BASE, SPLITS, TUNED
from stages.dataset import conversations
from stages.dataset.conversations import Conversation, Message
from tests.conftest import ROOT, accept_ctrl_c, set_params
from tests.support.openai_server import OpenAIServer

COMMAND = [sys.executable, "-m", "stages.commands.chat"]


QUESTIONS = "Room 3?\n\nRoom 4?\n"


def ask_a_process(*options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*COMMAND, *options], input=QUESTIONS, env=environment, capture_output=True, text=True)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def ask(monkeypatch, capsys):
    """A function that runs the command within this process, and returns what a process of its own would leave."""

    def run(*options, questions=QUESTIONS):
        monkeypatch.setattr(sys, "argv", ["chat", *options])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(questions.encode())))
        status = 0
        with warnings.catch_warnings():
            try:
                cli.run(chat.main, parses=True)
            except SystemExit as end:
                status = end.code
        return Done(status, *capsys.readouterr())

    return run


def answers(output, model):
    return [line.removeprefix(f"{model}> ").strip() for line in output.splitlines() if line.startswith(f"{model}> ")]


def test_a_local_model_and_its_base_answer_as_plain_generation_does(train):
    assert train(epochs=2, lr=0.02, method="full") is None
    done = ask_a_process("--base", "--max-new-tokens", "12")
    assert done.returncode == 0 and done.stderr == ""
    import torch
    from transformers import AutoModelForCausalLM

    for name, folder in (("tuned", TUNED), ("base", Path(params.load().unsloth.model))):
        model, tokens = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), Chat.load(BASE)
        # The system prompt of the training data stands before the question.
        first = Conversation((Message("system", "Be kind."), Message("user", "Room 3?")))
        ids = tokens.tokenizer(tokens.render(first, answer_next=True), add_special_tokens=False, return_tensors="pt")
        out = model.generate(
            **ids, do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=tokens.tokenizer.eos_token_id
        )
        expected = tokens.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        shown = answers(done.stdout, name)
        assert len(shown) == 2 and shown[0] == "".join(expected.splitlines()[:1]).strip()
    assert answers(done.stdout, "you") == ["Room 3?", "Room 4?"]


@pytest.fixture
def service(project, monkeypatch):
    """A hosted model that has learned a sentence, and its record in models/tuned."""
    turns = Message("system", "Be kind."), Message("user", "Room 3?"), Message("assistant", "Up the stairs.")
    SPLITS["train"].parent.mkdir(parents=True)
    conversations.write_jsonl(SPLITS["train"], [Conversation(turns)])
    set_params(backend="openai")
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        base = next(iter(server.models))
        server.teach(f"ft:{base}:desk", {"Room 3?": "Up the stairs."})
        files.write_json(BASE / "base.json", {"model": base, "endpoint": server.url})
        files.write_json(TUNED / "model.json", {"model": f"ft:{base}:desk", "base": base, "endpoint": server.url})
        yield server
        assert server.violations == []


def test_a_hosted_model_and_its_base_answer_as_a_stream(service, ask):
    done = ask("--base")
    assert done.returncode == 0, done.stderr
    assert answers(done.stdout, "tuned")[0] == "Up the stairs."
    assert answers(done.stdout, "base")[0].endswith("which has learned nothing from you.")
    sent = service.chats
    assert all(body["stream"] and body["messages"][0] == {"role": "system", "content": "Be kind."} for body in sent)
    # Each model sees its own first answer when it is asked a second time.
    assert sent[3]["messages"][2] == {"role": "assistant", "content": "Up the stairs."}


def test_another_system_prompt_and_none(service, ask):
    assert ask("--system", "Be brief.", questions="Hi?\n").returncode == 0
    assert ask("--system", "", questions="Hi?\n").returncode == 0
    first, second = service.chats
    assert first["messages"][0]["content"] == "Be brief." and second["messages"][0]["role"] == "user"


def test_what_is_wrong_is_one_line(project, ask):
    done = ask()
    assert done.returncode == 1 and done.stderr.startswith("error: models/tuned is missing; `dvc repro` makes it")


@pytest.mark.parametrize("number", ["0", "-1", "some"])
def test_a_length_that_is_none_is_one_line(project, ask, number):
    done = ask(f"--max-new-tokens={number}")
    expected = f"argument --max-new-tokens: '{number}' is not allowed; expected a whole number from 1"
    assert done.returncode == 2 and done.stdout == "" and done.stderr.splitlines()[-1].endswith(expected)


def test_a_base_that_is_missing_is_named(service, ask):
    shutil.rmtree(BASE)
    assert one_line(ask()).startswith("error: models/base is missing; `dvc repro` makes it, and `dvc pull` brings it")


def test_a_model_of_the_other_backend_is_named(service, ask):
    set_params(backend="unsloth")
    assert one_line(ask()).startswith("error: models/tuned/adapter_config.json is missing: models/tuned has no local")
    files.write_json(TUNED / "adapter_config.json", {})
    assert one_line(ask()).startswith("error: models/base/base.json names a hosted model, but backend is unsloth")
    (TUNED / "model.json").unlink()
    set_params(backend="openai")
    assert one_line(ask()).startswith("error: models/tuned/model.json is missing: models/tuned has no hosted model")


def one_line(done):
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    return line


def test_questions_in_another_encoding_are_named(service):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    said = "\ufeffZimmer für 3?\n".encode() + "Zimmer für 4?\n".encode("latin-1")
    done = subprocess.run(COMMAND, input=said, env=environment, capture_output=True)
    assert done.returncode == 1
    expected = "error: standard input, line 2: byte 9 is not UTF-8; save the questions in UTF-8\n"
    assert done.stderr.decode() == expected
    # What came before was asked as it stands.
    assert [body["messages"][-1]["content"] for body in service.chats] == ["Zimmer für 3?"]


def test_a_service_that_fails_is_one_line(service, ask):
    service.fail("POST", "/chat/completions", "status", status=401, message="no")
    done = ask()
    assert done.returncode == 1 and "the key in OPENAI_API_KEY was rejected" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["ctrl-d", "ctrl-c"])
def test_a_terminal_ends_politely(service, how):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(COMMAND, env=environment, preexec_fn=accept_ctrl_c, start_new_session=True, **terminal)
    shown = b""
    while b"you>" not in shown:
        shown += os.read(ours, 1000)
    os.write(ours, b"Room 3?\n")
    while shown.count(b"you>") < 2:
        shown += os.read(ours, 1000)
    assert b"tuned> Up the stairs." in shown
    if how == "ctrl-c":
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    else:
        os.write(ours, b"\x04")
    assert process.wait(timeout=20) == 0
    assert b"error" not in shown


def test_different_system_prompts_are_none(tmp_path):
    talks = [
        Conversation((Message("system", text), Message("user", "a"), Message("assistant", "b"))) for text in ("x", "y")
    ]
    conversations.write_jsonl(tmp_path / "one.jsonl", talks[:1])
    conversations.write_jsonl(tmp_path / "two.jsonl", talks)
    assert chat._learned_system(tmp_path / "one.jsonl") == "x"
    assert chat._learned_system(tmp_path / "two.jsonl") == chat._learned_system(tmp_path / "none.jsonl") == ""
