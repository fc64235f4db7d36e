"""Losses and gradients of an adapter from plain transformers and peft, in float32, without Unsloth's patches.

    python -m tests.support.gpu_reference BASE ADAPTER EXAMPLES OUT

EXAMPLES is JSON: pairs of token ids and labels. OUT gets the mean loss over all learned tokens, computed one
conversation at a time, and its gradient by name.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base: str, adapter: str, examples: str, out: str) -> None:
    place = "cuda" if torch.cuda.is_available() else "cpu"
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").to(place)
    model = PeftModel.from_pretrained(plain, adapter, is_trainable=True)
    pairs = json.loads(Path(examples).read_text())
    count = sum(label != -100 for _, labels in pairs for label in labels[1:])
    total = 0.0
    for ids, labels in pairs:
        logits = model(input_ids=torch.tensor([ids], device=place), use_cache=False).logits[0, :-1]
        targets = torch.tensor(labels[1:], device=place)
        loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / count
        loss.backward()
        total += loss.item()
    gradients = {name: weight.grad.cpu() for name, weight in model.named_parameters() if weight.grad is not None}
    torch.save({"loss": total, "gradients": gradients}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
