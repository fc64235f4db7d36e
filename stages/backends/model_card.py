"""The tuned model's Hugging Face model card: what it is, how it was trained, how to load it.

It contains nothing that varies between identical runs, so they write identical bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from stages import params
from stages.core import files
from stages.core.flatten import flat
from stages.core.paths import SPLITS
from stages.core.text import printable
from stages.params import Params

# Loading code for each kind of model. The path to the base on the reader's machine is unknown.
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
In the project that trained this model, `make doctor` prints the path to the base's weights.
"""
_TEXT = """---
{head}
---

# {base}, fine-tuned

Fine-tuned from `{base}` (revision `{revision}`) on {train} conversations with `method: {method}`; only the
assistant's messages contribute to the loss. Trained for {epochs} epochs; the checkpoint with the lowest loss on
{validation} validation conversations was kept: epoch {best_epoch}, {validation_loss} nats per token.

## How to load it

```python
{load}
tokenizer = AutoTokenizer.from_pretrained(folder)
```
{where}
Format prompts with the tokenizer's chat template.

## Training

| parameter | value |
| --- | --- |
{knobs}

| split | conversations | sha256 |
| --- | ---: | --- |
{splits}

## Not covered here

For a comparison with the base on held-out conversations, see `reports/report.md` in the project that trained this
model. Check the licences of the base model and of the training data before you redistribute it.
"""


def write(
    folder: Path,
    knobs: Params,
    metrics: Mapping[str, Any],
    counts: Mapping[str, int],
    adapter: bool,
    results: Mapping[str, tuple[str, float]] | None = None,
) -> None:
    """Write `README.md` to `folder`, which contains an adapter or a full model.

    `metrics` are those of training, `counts` the number of conversations in each split, and `results`, if known, the
    test metrics by name as (label, value).
    """
    # The name of a folder may be any text.
    base = _code(knobs.unsloth.model)
    on_hub = _on_the_hub(knobs.unsloth.model)
    chosen = params.select(knobs, shown())
    text = _TEXT.format(
        head=_head(knobs.unsloth.model, adapter, results or {}).to_yaml(),
        base=base,
        revision=knobs.unsloth.revision,
        method=knobs.method,
        epochs=f"{knobs.numbers[0]:g}",
        best_epoch=metrics["best_epoch"],
        validation_loss=metrics["validation_loss"],
        load=_WHOLE if not adapter else _ON_HUB_BASE if on_hub else _ON_OTHER_BASE.format(base=base),
        where=_WHERE if adapter and not on_hub else "",
        knobs=_rows({name: f"`{_code(value)}`" for name, value in flat(chosen, str).items()}),
        splits=_rows({name: f"{count} | `{files.sha256(SPLITS[name])}`" for name, count in counts.items()}),
        **counts,
    )
    files.write_text(folder / "README.md", text)


def shown() -> list[str]:
    """The parameters that determine the result of training; the base model's are in the card's text."""
    decide = params.read_by("finetune", "unsloth", decides=["result"])
    return [name for name in decide if name != "backend" and not name.startswith("unsloth.")]


def _on_the_hub(base: str) -> bool:
    """Whether the base is a Hub model, not a wheel or a directory."""
    return not base.startswith("pypi:") and not Path(base).is_dir()


def _head(base: str, adapter: bool, results: Mapping[str, tuple[str, float]]) -> ModelCardData:
    return ModelCardData(
        # The Hub accepts only its own model names.
        base_model=base if _on_the_hub(base) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["fine-tuned", "chat", "unsloth", *(["lora"] if adapter else [])],
        model_name=f"{base}, fine-tuned" if results else None,
        eval_results=[_result(name, label, value) for name, (label, value) in results.items()] or None,
    )


def _result(name: str, label: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type="held-out-conversations",
        dataset_name="held-out conversations of the same source",
        metric_type=name,
        metric_name=label,
        metric_value=value,
    )


def _code(value: Any) -> str:
    """Any text as code within a line or a cell of a table, neither of which it can end."""
    return printable(str(value)).replace("`", "'").replace("|", r"\|")


def _rows(values: dict[str, str]) -> str:
    return "\n".join(f"| `{_code(name)}` | {value} |" for name, value in values.items())
