"""The model card beside the tuned model, in Hugging Face's format: what it is, how it was made, how to load it.

It tells what finetune knows and nothing that varies between equal runs, so that equal runs write equal bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from stages import files
from stages.flat import flat
from stages.measures import LABELS
from stages.params import Params
from stages.paths import SPLITS

# What decides a training, in the order of params.yaml.
_KNOBS = (
    "seed", "lr", "epochs", "early_stopping_patience", "batch_size", "dropout", "attention_dropout", "weight_decay",
    "scheduler", "schedule", "warmup_ratio", "label_smoothing_factor", "optim", "max_grad_norm", "method", "lora",
    "layers", "adversarial",
)  # fmt: skip
_ADAPTER = """from peft import AutoPeftModelForCausalLM

# Here the base is {base}; with another path to it, load it with transformers and put PeftModel on top.
model = AutoPeftModelForCausalLM.from_pretrained("{folder}")"""
_WHOLE = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{folder}")"""
_TEXT = """---
{head}
---

# {base}, fine-tuned

Fine-tuned from `{base}` (revision `{revision}`) on {train} conversations with `method: {method}`, loss on the
assistant's messages only. Of {epochs} epochs the one with the best loss on {validation} validation conversations was
kept: epoch {best_epoch}, {validation_loss} nats per token.

## How to load it

```python
from transformers import AutoTokenizer
{load}
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

Prompts are written with the tokenizer's chat template.

## Training

| parameter | value |
| --- | --- |
{knobs}

| split | conversations | sha256 |
| --- | ---: | --- |
{splits}

## What is not known here

How it compares with its base on held-out conversations stands in `reports/metrics.json` of the project that made it.
The card says nothing on the licence of the base or of the conversations; ask their owners before you give it away.
"""


def write(
    folder: Path,
    knobs: Params,
    metrics: Mapping[str, Any],
    counts: Mapping[str, int],
    adapter: bool,
    results: Mapping[str, Any] | None = None,
) -> None:
    """Write `README.md` into `folder`, which holds an adapter or else a whole model.

    `metrics` are the training's, `counts` the conversations of each split, `results` the metrics on the test split,
    each with its `value`, where they are known.
    """
    base = knobs.unsloth.model
    chosen = {name: value for name, value in knobs.model_dump(by_alias=True).items() if name in _KNOBS}
    text = _TEXT.format(
        head=_head(base, adapter, results or {}).to_yaml(),
        base=base,
        revision=knobs.unsloth.revision,
        method=knobs.method,
        epochs=f"{knobs.numbers[0]:g}",
        best_epoch=metrics["best_epoch"],
        validation_loss=metrics["validation_loss"],
        load=(_ADAPTER if adapter else _WHOLE).format(base=base, folder=folder.as_posix()),
        folder=folder.as_posix(),
        knobs=_rows({name: f"`{value}`" for name, value in flat(chosen, str).items()}),
        splits=_rows({name: f"{count} | `{files.sha256(SPLITS[name])}`" for name, count in counts.items()}),
        **counts,
    )
    files.write_text(folder / "README.md", text)


def _head(base: str, adapter: bool, results: Mapping[str, Any]) -> ModelCardData:
    # A wheel or a directory is no model of the Hub, which is what base_model must name.
    on_the_hub = not base.startswith("pypi:") and not Path(base).is_dir()
    return ModelCardData(
        base_model=base if on_the_hub else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["fine-tuned", "chat", "unsloth", *(["lora"] if adapter else [])],
        model_name=f"{base}, fine-tuned" if results else None,
        eval_results=[_result(name, one["value"]) for name, one in results.items()] or None,
    )


def _result(name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type="held-out-conversations",
        dataset_name="held-out conversations of the same source",
        metric_type=name,
        metric_name=LABELS[name],
        metric_value=value,
    )


def _rows(values: dict[str, str]) -> str:
    return "\n".join(f"| `{name}` | {value} |" for name, value in values.items())
