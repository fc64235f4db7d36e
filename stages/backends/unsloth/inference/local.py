"""Base and tuned model on this machine, run with plain transformers and peft, as users of the adapter would."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig, TextStreamer

from stages.backends.protocol import Likelihoods
from stages.backends.unsloth.common import device, memory, perturbation
from stages.backends.unsloth.inference.attention import speed_up_steps
from stages.backends.unsloth.reader import IGNORED, Chat, Example
from stages.core.cli import UserError, quiet_libraries
from stages.dataset.conversations import Conversation, Message

Found = TypeVar("Found")

_DTYPE = torch.bfloat16
# Most tokens per batch when a gradient is needed, since all activations are kept.
_GRADIENT_TOKENS = 2048
# Scored together are conversations at least so long as the longest, or padding would take most of the time.
_ALIKE = 0.75


@dataclass(frozen=True)
class LocalPair:
    """Base and tuned model: one model with an adapter that can be disabled, or two models."""

    base: Any
    tuned: Any
    chat: Chat
    batch_size: int

    @classmethod
    def load(cls, weights: Path, tuned: Path, chat: Chat, batch_size: int) -> "LocalPair":
        """Load the base model and the adapter or full model in `tuned`, on the GPU if there is one."""
        quiet_libraries()
        memory.keep_freed()
        base = plain(weights)
        if not (tuned / "adapter_config.json").exists():
            return cls(base, plain(tuned), chat, batch_size)
        biases = PeftConfig.from_pretrained(str(tuned)).bias != "none"
        # Trained biases overwrite the base's, and disabling the adapter would not restore them.
        under = plain(weights) if biases else base
        model = PeftModel.from_pretrained(under, str(tuned), local_files_only=True).eval()
        return cls(base if biases else model, model, chat, batch_size)

    @property
    def varies(self) -> bool:
        """On a GPU, where the order of sums is not fixed."""
        return bool(self.tuned.device.type != "cpu")

    def price(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> float | None:
        """Nothing: local answers cost only time."""
        return 0.0

    def likelihoods(self, conversations: Sequence[Conversation], tuned: bool) -> Likelihoods:
        """Score each conversation's response given its prompt."""
        return self._likelihoods(conversations, tuned, self.batch_size, _score)

    def perturbed(self, conversations: Sequence[Conversation], tuned: bool, epsilon: float) -> Likelihoods:
        """`likelihoods` with each conversation's embeddings shifted by an L2 norm of `epsilon` along the gradient."""
        longest = max(len(self.chat.example(one, last_only=True).input_ids) for one in conversations)
        return self._likelihoods(
            conversations,
            tuned,
            max(1, min(self.batch_size, _GRADIENT_TOKENS // longest)),
            lambda model, batch: _score_perturbed(model, batch, epsilon),
        )

    def _likelihoods(
        self,
        conversations: Sequence[Conversation],
        tuned: bool,
        batch_size: int,
        score: Callable[[Any, "_Batch"], torch.Tensor],
    ) -> Likelihoods:
        examples = [self.chat.example(conversation, last_only=True) for conversation in conversations]
        found = np.zeros((3, len(examples)))
        with self._which(tuned) as model:
            lengths = [len(one.input_ids) for one in examples]
            for rows in _batches(lengths, batch_size, "loss", tuned, _ALIKE):
                for part, scores in _fitting(rows, lambda part: score(model, self._batch([examples[r] for r in part]))):
                    found[:, part] = scores.cpu().numpy()
        return Likelihoods(*found)

    @torch.inference_mode()
    def answers(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> tuple[list[str], int]:
        """Return the greedy answer to each prompt, and how many were truncated at `max_new_tokens`."""
        tokenizer = self.chat.tokenizer
        prompts = [self.chat.render(conversation, -1, answer_next=True) for conversation in conversations]
        ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        greedy = self._greedy(max_new_tokens)
        texts, cut, ends = [""] * len(ids), 0, set(self.chat.end_ids)
        with self._which(tuned) as model:
            for rows in _batches([len(one) for one in ids], self.batch_size, "answers", tuned):
                for part, answers in _fitting(rows, lambda part: self._generate(model, [ids[r] for r in part], greedy)):
                    for row, answer in zip(part, answers, strict=True):
                        texts[row] = self.chat.spoken(answer, prompts[row])
                        cut += ends.isdisjoint(answer)
        return texts, cut

    def _generate(self, model: Any, prompts: Sequence[list[int]], how: GenerationConfig) -> list[list[int]]:
        batch = self._left_padded(prompts)
        answers: list[list[int]] = model.generate(**batch, generation_config=how)[
            :, batch["input_ids"].shape[1] :
        ].tolist()
        return answers

    @torch.inference_mode()
    def say(self, messages: Sequence[Message], tuned: bool, max_new_tokens: int, on_text: Callable[[str], Any]) -> str:
        """Stream the greedy answer to `on_text` word by word, then return it whole."""
        prompt = self.chat.render(Conversation(tuple(messages)), answer_next=True)
        inputs = self._left_padded([self.chat.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        words = _Words(self.chat.tokenizer, on_text)
        with self._which(tuned) as model:
            model.generate(**inputs, generation_config=self._greedy(max_new_tokens), streamer=words)
        return words.said.strip()

    def _greedy(self, max_new_tokens: int) -> GenerationConfig:
        """Greedy decoding, whatever the base's generation config says (it may sample or penalize repetition)."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.chat.end_ids,
            pad_token_id=self.chat.tokenizer.pad_token_id,
        )

    def facts(self) -> dict[str, Any]:
        """Nothing: local answers cost only time."""
        return {}

    @contextmanager
    def _which(self, tuned: bool) -> Iterator[Any]:
        if tuned or self.base is not self.tuned:
            yield self.tuned if tuned else self.base
        else:
            with self.tuned.disable_adapter():
                yield self.tuned

    def _left_padded(self, ids: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        batch = self.chat.tokenizer.pad({"input_ids": list(ids)}, padding_side="left", return_tensors="pt")
        return {name: batch[name].to(self.tuned.device) for name in ("input_ids", "attention_mask")}

    def _batch(self, examples: Sequence[Example]) -> "_Batch":
        inputs = self._left_padded([one.input_ids for one in examples])
        width = inputs["input_ids"].shape[1]
        labels = torch.full((len(examples), width), IGNORED)
        for row, one in enumerate(examples):
            labels[row, width - len(one.labels) :] = torch.tensor(one.labels)
        return _Batch(inputs, labels.to(self.tuned.device))


class _Words(TextStreamer):  # type: ignore[misc]
    """Passes on each word of an answer once it is complete."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.said, self._on_text = "", on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.said += text
        self._on_text(text)


@dataclass(frozen=True)
class _Batch:
    """Left-padded `input_ids` and `attention_mask`, and labels: each of shape (conversations, longest)."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor


def plain(folder: Path) -> Any:
    """Load a model for answers, on the GPU if there is one."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=_DTYPE, local_files_only=True)
    # transformers slices the hidden states, and torch copies the head's weights for each row of a slice.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    model = model.requires_grad_(False).to(device.kind()).eval()
    speed_up_steps(model)
    return model


def _batches(
    lengths: Sequence[int], batch_size: int, what: str, tuned: bool, alike: float = 0.0
) -> Iterator[list[int]]:
    """Batches of similar length, longest first: little padding, and running out of memory shows at once.

    No row is shorter than the share `alike` of its batch's longest.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not batches or len(batches[-1]) == batch_size or lengths[row] < alike * lengths[batches[-1][0]]:
            batches.append([])
        batches[-1].append(row)
    yield from tqdm(batches, desc=f"{'tuned' if tuned else 'base'} {what}", unit="batch", disable=None)


def _fitting(rows: list[int], compute: Callable[[list[int]], Found]) -> Iterator[tuple[list[int], Found]]:
    """The rows in parts, with what is computed for each; where memory runs out, in smaller parts.

    Raises:
        UserError: a single row does not fit.
    """
    parts = [rows]
    while parts:
        part = parts.pop(0)
        try:
            found = compute(part)
        except RuntimeError as error:
            if not device.out_of_memory(error):
                raise
            if len(part) == 1:
                raise UserError(
                    "out of memory with one conversation at a time; free memory, or choose a smaller model"
                ) from None
            parts[:0] = part[: len(part) // 2], part[len(part) // 2 :]
        else:
            yield part, found
            continue
        # Outside the except block, whose traceback would keep the tensors alive.
        device.free_unused()


def _score(model: Any, batch: _Batch) -> torch.Tensor:
    """Negative log-likelihood, correct tokens and all tokens of each row's labels: shape (3, conversations)."""
    with torch.inference_mode():
        return _sums(model, batch)


def _score_perturbed(model: Any, batch: _Batch, epsilon: float) -> torch.Tensor:
    embeddings = model.get_input_embeddings()
    rows = torch.arange(len(batch.labels), device=batch.labels.device)[:, None]
    members = torch.where(batch.inputs["attention_mask"] > 0, rows, -1)
    moved = perturbation.worst(lambda: _sums(model, batch)[0].sum(), embeddings, members, epsilon)
    with torch.inference_mode(), perturbation.disturbed(embeddings, moved):
        return _sums(model, batch)


def _sums(model: Any, batch: _Batch) -> torch.Tensor:
    labels, mask = batch.labels, batch.inputs["attention_mask"]
    first = int((labels != IGNORED).any(dim=0).nonzero()[0])
    # With left padding the responses are at the end: logits are needed from one before the first label on.
    logits = model(
        **batch.inputs,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        logits_to_keep=labels.shape[1] - first + 1,
        use_cache=False,
    ).logits[:, :-1]
    rows, places = torch.nonzero(labels[:, first:] != IGNORED, as_tuple=True)
    targets = labels[:, first:][rows, places]
    logits = logits[rows, places]
    nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()
    correct = (logits.argmax(dim=-1) == targets).double()
    found = torch.zeros(3, len(labels), dtype=torch.double, device=nll.device)
    return found.index_add(1, rows, torch.stack([nll, correct, torch.ones_like(nll)]))
