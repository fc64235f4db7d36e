"""Chat completions of base and tuned models, one at a time, so that no answer depends on what else is asked."""

import functools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import GenerationConfig, StoppingCriteria, TextStreamer

from stages.backends.unsloth.base import weights
from stages.backends.unsloth.inference.models import plain
from stages.backends.unsloth.reader import Chat
from stages.core import artifacts
from stages.core.cli import UserError, quiet_libraries
from stages.core.paths import BASE, TUNED
from stages.dataset.conversations import Conversation
from stages.endpoint.exchange import Answer, Asked, Served
from stages.endpoint.refusals import RefusedError

# Loaded at the same time: models with weights of their own, and adapters of each.
_MODELS, _ADAPTERS = 2, 8
DEFAULT_TOKENS = 512


class Answers:
    """Models that are loaded when they are first asked."""

    def __init__(self) -> None:
        quiet_libraries()
        self._loaded: OrderedDict[Path, Any] = OrderedDict()
        # The digest of a folder of weights takes long, so it is taken once.
        self._weights = functools.cache(_weights)
        self._lock = threading.Lock()

    def answer(
        self, served: Served, asked: Asked, on_text: Callable[[str], Any], abandoned: Callable[[], bool]
    ) -> Answer:
        """Answer, with each piece of text passed to `on_text`; stop early if `abandoned`.

        Raises:
            RefusedError: the prompt does not fit the model, or its template rejects it.
        """
        with self._lock, torch.inference_mode():
            chat = Chat.load((served.job or served.base) / BASE)
            prompt, ids = _rendered(chat, asked.conversation)
            room = chat.context - len(ids)
            if room < 1:
                message = f"This model's context is {chat.context} tokens; the messages take {len(ids)}."
                raise RefusedError(400, message, "messages", "context_length_exceeded")
            most = min(room, asked.most or DEFAULT_TOKENS)
            pieces = _Pieces(chat.tokenizer, asked.stop, on_text)
            with self._model(served) as model, torch.random.fork_rng(enabled=asked.temperature > 0):
                if asked.temperature > 0:
                    torch.manual_seed(secrets.randbits(62) if asked.seed is None else asked.seed)
                row = model.generate(
                    input_ids=torch.tensor([ids], device=model.device),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
                    generation_config=_how(chat, asked, most),
                    streamer=pieces,
                    stopping_criteria=[_Stop(lambda: pieces.stopped or abandoned())],
                )[0, len(ids) :].tolist()
            text = pieces.said.strip() if pieces.stopped else chat.spoken(row, prompt)
            done = pieces.stopped or not set(chat.end_ids).isdisjoint(row)
            return Answer(text, "stop" if done else "length", len(ids), len(row))

    @contextmanager
    def _model(self, served: Served) -> Iterator[Any]:
        """The model, ready to generate. Adapters share their base's weights."""
        folder = self._weights((served.job or served.base) / BASE)
        if served.job is None:
            model = self._held(folder, lambda: plain(folder))
            if isinstance(model, PeftModel):
                with model.disable_adapter():
                    yield model
                return
            yield model
            return
        tuned = served.job / TUNED
        if not (tuned / "adapter_config.json").exists():
            yield self._held(tuned, lambda: plain(tuned))
        elif PeftConfig.from_pretrained(str(tuned)).bias != "none":
            # Trained biases overwrite the base's, so it cannot be shared.
            yield self._held(tuned, lambda: PeftModel.from_pretrained(plain(folder), str(tuned)).eval())
        else:
            yield self._adapted(folder, tuned, served.job.name)

    def _held(self, key: Path, load: Callable[[], Any]) -> Any:
        """The model under this key, loaded if need be; the one that was not used for longest makes room."""
        if key not in self._loaded:
            while len(self._loaded) >= _MODELS:
                self._loaded.popitem(last=False)
            self._loaded[key] = load()
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _adapted(self, folder: Path, tuned: Path, name: str) -> Any:
        model = self._held(folder, lambda: plain(folder))
        if not isinstance(model, PeftModel):
            model = PeftModel.from_pretrained(model, str(tuned), adapter_name=name, local_files_only=True)
            self._loaded[folder] = model
        elif name not in model.peft_config:
            if len(model.peft_config) >= _ADAPTERS:
                model.delete_adapter(next(iter(model.peft_config)))
            model.load_adapter(str(tuned), adapter_name=name, local_files_only=True)
        model.set_adapter(name)
        return model.eval()


def _weights(prepared: Path) -> Path:
    with artifacts.intact(str(prepared / "base.json")):
        record = artifacts.numbers((prepared / "base.json").read_text(encoding="utf-8"))
        model, revision, content = record["model"], record["revision"], record["content"]
    return weights.resolve(model, revision, expected=content).folder


def _rendered(chat: Chat, conversation: Conversation) -> tuple[str, list[int]]:
    try:
        prompt = chat.render(conversation, answer_next=True)
    except UserError as error:
        raise RefusedError(400, str(error), "messages") from None
    # Chat templates are third-party code that can raise anything.
    except Exception as error:
        message = f"the model's chat template rejects the messages: {error or type(error).__name__}"
        raise RefusedError(400, message, "messages") from None
    return prompt, list(chat.tokenizer(prompt, add_special_tokens=False)["input_ids"])


def _how(chat: Chat, asked: Asked, most: int) -> GenerationConfig:
    """Nothing of the base's own generation config: it may sample or penalize repetition."""
    sampling = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": 0} if asked.temperature > 0 else {}
    return GenerationConfig(
        do_sample=bool(sampling),
        max_new_tokens=most,
        eos_token_id=chat.end_ids,
        pad_token_id=chat.tokenizer.pad_token_id,
        **sampling,
    )


class _Stop(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, when: Callable[[], bool]) -> None:
        self._when = when

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._when(), device=input_ids.device)


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Passes text on as it becomes final, up to the first stop sequence; what may begin one waits."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], on_text: Callable[[str], Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.said, self.stopped = "", False
        self._stop, self._on_text, self._passed = stop, on_text, 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.stopped:
            return
        self.said += text
        places = [place for word in self._stop if (place := self.said.find(word)) >= 0]
        if places:
            self.said, self.stopped = self.said[: min(places)], True
        waiting = 0 if self.stopped or stream_end else _may_begin(self.said, self._stop)
        ready = self.said[self._passed : len(self.said) - waiting]
        if ready:
            self._passed += len(ready)
            self._on_text(ready)


def _may_begin(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of the text with which a stop sequence may begin."""
    lengths = (size for word in stop for size in range(1, len(word)) if text.endswith(word[:size]))
    return max(lengths, default=0)
