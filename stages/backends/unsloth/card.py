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
# How a model is loaded, by what is in the folder. Where the base lies on the reader's machine is not known here.
_ON_HUB_BASE = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "path/to/this/folder"  # or OWNER/NAME, once it is on the Hub
model = AutoPeftModelForCausalLM.from_pretrained(folder)"""
_ON_OTHER_BASE = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"  # or OWNER/NAME, once it is on the Hub
base = "path/to/base"  # a folder with the weights of {base}
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)"""
_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"  # or OWNER/NAME, once it is on the Hub
model = AutoModelForCausalLM.from_pretrained(folder)"""
_WHERE = """
Where the base's weights lie on a machine is told by `make doctor` there, in the project that made this.
"""
_TEXT = """---
{head}
---

# {base}, fine-tuned

Fine-tuned from `{base}` (revision `{revision}`) on {train} conversations with `method: {method}`, loss on the
assistant's messages only. Of {epochs} epochs the one with the best loss on {validation} validation conversations was
kept: epoch {best_epoch}, {validation_loss} nats per token.

## How to load it

```python
{load}
tokenizer = AutoTokenizer.from_pretrained(folder)
```
{where}
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
        load=_WHOLE if not adapter else _ON_HUB_BASE if _on_the_hub(base) else _ON_OTHER_BASE.format(base=base),
        where=_WHERE if adapter and not _on_the_hub(base) else "",
        knobs=_rows({name: f"`{value}`" for name, value in flat(chosen, str).items()}),
        splits=_rows({name: f"{count} | `{files.sha256(SPLITS[name])}`" for name, count in counts.items()}),
        **counts,
    )
    files.write_text(folder / "README.md", text)


def _on_the_hub(base: str) -> bool:
    """Whether the base is no wheel and no directory."""
    return not base.startswith("pypi:") and not Path(base).is_dir()


def _head(base: str, adapter: bool, results: Mapping[str, Any]) -> ModelCardData:
    return ModelCardData(
        # It must name a model of the Hub.
        base_model=base if _on_the_hub(base) else None,
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
