"""Base and tuned model on this machine, through plain transformers and peft: what any user of the adapter runs."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig

from stages.backends import Likelihoods
from stages.backends.unsloth.chat import IGNORED, Chat, Example
from stages.command import quiet_transformers
from stages.conversations import Conversation


@dataclass(frozen=True)
class Pair:
    """A base model with an adapter that can be switched off."""

    model: Any
    chat: Chat
    batch_size: int

    @classmethod
    def load(cls, weights: Path, adapter: Path, chat: Chat, batch_size: int) -> "Pair":
        """Load the base model's weights and the adapter on the GPU where there is one."""
        quiet_transformers()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        base = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.bfloat16, local_files_only=True)
        model = PeftModel.from_pretrained(base, str(adapter), local_files_only=True).to(device).eval()
        return cls(model, chat, batch_size)

    @torch.inference_mode()
    def likelihoods(self, conversations: Sequence[Conversation], tuned: bool) -> Likelihoods:
        """Score each conversation's response, given its prompt."""
        examples = [self.chat.example(conversation, last_only=True) for conversation in conversations]
        found = np.zeros((3, len(examples)))
        with self._which(tuned):
            for rows in self._batches([len(one.input_ids) for one in examples], "loss", tuned):
                found[:, rows] = self._score([examples[row] for row in rows])
        return Likelihoods(*found)

    @torch.inference_mode()
    def answers(self, conversations: Sequence[Conversation], tuned: bool, max_new_tokens: int) -> tuple[list[str], int]:
        """The greedy answer to each prompt, and how many of them were cut because they reached `max_new_tokens`."""
        tokenizer = self.chat.tokenizer
        prompts = [self.chat.render(conversation, -1, answer_next=True) for conversation in conversations]
        ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        # A configuration of our own: that of the base may sample, or punish repetition.
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts, cut = [""] * len(ids), 0
        with self._which(tuned):
            for rows in self._batches([len(one) for one in ids], "answers", tuned):
                batch = self._left_padded([ids[row] for row in rows])
                out = self.model.generate(**batch, generation_config=greedy)[:, batch["input_ids"].shape[1] :]
                for row, answer in zip(rows, out.tolist(), strict=True):
                    texts[row] = tokenizer.decode(answer, skip_special_tokens=True).strip()
                    cut += tokenizer.eos_token_id not in answer
        return texts, cut

    def facts(self) -> dict[str, Any]:
        """Nothing: answers on this machine cost time alone."""
        return {}

    def _which(self, tuned: bool) -> AbstractContextManager[Any]:
        return nullcontext() if tuned else self.model.disable_adapter()

    def _batches(self, lengths: Sequence[int], what: str, tuned: bool) -> Iterator[list[int]]:
        """Indices of similar length together, the longest first: little padding, and a lack of memory shows at once."""
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, desc=f"{'tuned' if tuned else 'base'} {what}", unit="batch", disable=None):
            yield order[start : start + self.batch_size]

    def _left_padded(self, ids: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        batch = self.chat.tokenizer.pad({"input_ids": list(ids)}, padding_side="left", return_tensors="pt")
        return {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def _score(self, examples: Sequence[Example]) -> np.ndarray:
        """Negative log-likelihood, correct and all tokens of each example's labels: shape (3, examples)."""
        batch = self._left_padded([one.input_ids for one in examples])
        width = batch["input_ids"].shape[1]
        labels = torch.full((len(examples), width), IGNORED)
        for row, one in enumerate(examples):
            labels[row, width - len(one.labels) :] = torch.tensor(one.labels)
        labels = labels.to(self.model.device)
        first = int((labels != IGNORED).any(dim=0).nonzero()[0])
        # Left padding puts the responses at the end, so logits are needed from the first learned token's left on.
        logits = self.model(
            **batch,
            position_ids=(batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=width - first + 1,
            use_cache=False,
        ).logits[:, :-1]
        rows, places = torch.nonzero(labels[:, first:] != IGNORED, as_tuple=True)
        targets = labels[:, first:][rows, places]
        logits = logits[rows, places]
        nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()
        correct = (logits.argmax(dim=-1) == targets).double()
        found = torch.zeros(3, len(examples), dtype=torch.double, device=nll.device)
        found.index_add_(1, rows, torch.stack([nll, correct, torch.ones_like(nll)]))
        return found.cpu().numpy()
