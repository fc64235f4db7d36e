"""How the adapter's parameters are applied, with a fake Unsloth that uses plain transformers and peft."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from stages import params
from stages.backends.unsloth.training import model as training_model
from stages.backends.unsloth.training import prefix_tree
from stages.backends.unsloth.training.micro_batches import PADDED, TREE
from stages.core.cli import UserError
from tests.conftest import set_params
from tests.support.small import make_base


@pytest.fixture
def unsloth(monkeypatch):
    """A fake Unsloth; `loaded` and `adapted` are its arguments."""
    given = SimpleNamespace()

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(folder, **options):
            from transformers import AutoModelForCausalLM, AutoTokenizer

            given.folder, given.loaded = folder, options
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=options.get("dtype", torch.bfloat16))
            model.is_loaded_in_4bit = options["load_in_4bit"] and not given.__dict__.get("no_4bit")
            return model, AutoTokenizer.from_pretrained(folder)

        @staticmethod
        def get_peft_model(model, random_state, use_gradient_checkpointing, **options):
            from peft import LoraConfig, get_peft_model

            given.adapted = {"use_gradient_checkpointing": use_gradient_checkpointing, **options}
            torch.manual_seed(random_state)
            return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))

    module = ModuleType("unsloth")
    module.FastLanguageModel = FastLanguageModel
    monkeypatch.setitem(sys.modules, "unsloth", module)
    return given


@pytest.fixture
def load(project, small_base, unsloth):
    """load(**knobs) prepares the small base for training."""

    def run(base=small_base, **values):
        set_params(**values)
        return training_model.load(base, params.load())

    return run


def test_every_adapter_parameter_is_passed_on(load, unsloth, small_base):
    """None of the values is any library's default."""
    load(
        unsloth__max_length=777,
        lora__r=6,
        lora__alpha=9.5,
        dropout=0.13,
        lora__target_modules=["q_proj", "up_proj"],
        lora__use_rslora=True,
        lora__init_lora_weights="gaussian",
        lora__layers_to_transform=[1],
        gradient_checkpointing=True,
    )
    assert unsloth.folder == str(small_base)
    assert unsloth.loaded == {
        "max_seq_length": 777,
        "load_in_4bit": False,
        "full_finetuning": False,
        "use_gradient_checkpointing": "unsloth",
        "local_files_only": True,
    }
    assert unsloth.adapted == {
        "r": 6,
        "lora_alpha": 9.5,
        "lora_dropout": 0.13,
        "target_modules": ["q_proj", "up_proj"],
        "bias": "none",
        "use_rslora": True,
        "init_lora_weights": "gaussian",
        "layers_to_transform": [1],
        "use_dora": False,
        "use_gradient_checkpointing": "unsloth",
    }


@pytest.mark.parametrize(
    "method, in_4bit, whole, dora",
    [("lora", False, False, False), ("qlora", True, False, False), ("dora", False, False, True)],
)
def test_the_options_of_each_method(load, unsloth, method, in_4bit, whole, dora):
    made = load(method=method)
    assert (unsloth.loaded["load_in_4bit"], unsloth.loaded["full_finetuning"]) == (in_4bit, whole)
    assert unsloth.adapted["use_dora"] is dora and unsloth.adapted["init_lora_weights"] is True
    assert unsloth.adapted["use_gradient_checkpointing"] is False
    assert all("lora_" in name for group in made.groups for name in group.names)


def test_full_training_uses_float32_and_no_adapter(load, unsloth):
    made = load(method="full")
    assert unsloth.loaded["full_finetuning"] is True and unsloth.loaded["dtype"] == torch.float32
    assert not hasattr(unsloth, "adapted") and made.model.dtype == torch.float32
    assert sum(len(group.tensors) for group in made.groups) == len(list(made.model.parameters()))


def test_on_a_gpu_float32_weights_are_requested_with_unsloths_own_option(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_model._in_float32() == {"float32_mixed_precision": True}


def test_the_adapter_is_initialised_with_the_configured_seed(load):
    def start(seed):
        return [
            weight.clone() for group in load(seed=seed).groups for weight in group.tensors if weight.abs().sum() > 0
        ]

    one, same, other = start(1234), start(1234), start(4321)
    assert len(one) == 14 and all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_base_that_cannot_be_loaded_in_4_bit_is_rejected(load, unsloth):
    unsloth.no_4bit = True
    with pytest.raises(UserError, match="method: qlora: bitsandbytes cannot load this model in 4 bit"):
        load(method="qlora")


@pytest.mark.parametrize("bias, where", [("lora_only", "the target modules have"), ("all", "the model has")])
def test_training_biases_of_a_model_without_any_is_rejected(load, bias, where):
    with pytest.raises(UserError, match=f"lora.bias: {bias} has no effect, because {where} no biases; set it to none"):
        load(lora__bias=bias)


def test_biases_are_trained_if_the_model_has_them(load, tmp_path):
    made = load(make_base(tmp_path / "qwen", "qwen2"), lora__bias="all")
    # q, k and v of two layers.
    assert sum(name.endswith("bias") for group in made.groups for name in group.names) == 6


@pytest.mark.parametrize("numbers, wrong", [([0, 1], None), ([2], 2), ([1, 5, 9], 5)])
def test_layers_are_counted_from_zero(numbers, wrong):
    if wrong is None:
        assert training_model._layers(numbers, 2) == numbers
        assert training_model._layers(None, 2) is None
    else:
        with pytest.raises(UserError, match=f"the model has no layer {wrong}; choose from 0 to 1$"):
            training_model._layers(numbers, 2)


MODULES = ["", "model", "model.layers.0", "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize("name", ["up_proj", "mlp.up_proj", "model.layers.0.mlp.up_proj", "layers.0.mlp.up_proj"])
def test_a_module_may_be_named_by_a_suffix(name):
    training_model._refuse_unknown_modules([name], MODULES)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("p_proj", "did you mean 'up_proj'?"),
        ("p.up_proj", "did you mean 'up_proj'?"),
        # The model itself has an empty name.
        ("zzz", "choose from model, q_proj, up_proj"),
    ],
)
def test_an_unknown_module_is_rejected_with_the_known_ones(name, hint):
    with pytest.raises(UserError) as raised:
        training_model._refuse_unknown_modules(["q_proj", name], MODULES)
    assert str(raised.value) == f"lora.target_modules: the model has no module '{name}'; {hint}"


def test_attention_dropout_is_set_on_the_modules_and_not_saved(load):
    model = load(attention_dropout=0.25).model
    shares = [module.attention_dropout for module in model.modules() if hasattr(module, "attention_dropout")]
    assert shares == [0.25] * 2 and model.config.attention_dropout == 0.0


def test_attention_dropout_is_rejected_if_the_model_has_none():
    model = torch.nn.Linear(2, 2)
    model.config = SimpleNamespace(model_type="some")
    training_model._set_attention_dropout(model, 0.0)
    with pytest.raises(UserError, match="attention_dropout: not supported by some models; set it to 0"):
        training_model._set_attention_dropout(model, 0.1)


class Model:
    def __init__(self, kind):
        self.config, self.attention = SimpleNamespace(model_type=kind), None

    def set_attn_implementation(self, name):
        self.attention = name


@pytest.mark.parametrize(
    "kind, packing, form, fallbacks",
    [
        ("llama", "auto", TREE, [PADDED]),
        ("llama", True, TREE, [PADDED]),
        ("llama", False, PADDED, []),
        ("gemma2", "auto", PADDED, []),
    ],
)
def test_when_batches_are_packed(project, kind, packing, form, fallbacks):
    set_params(packing=packing)
    model = Model(kind)
    found = training_model._micro_batches(model, SimpleNamespace(pad_token_id=17), params.load())
    expected = form, fallbacks, True, 17, prefix_tree.TREE_TOKENS
    assert (found.form, found.fallbacks, found.share, found.pad, found.budget) == expected
    assert model.attention == ("eager" if form == TREE else None)


def test_packing_that_is_required_and_impossible_is_refused(project):
    set_params(packing=True)
    with pytest.raises(UserError, match="packing: not tested with gemma2 models"):
        training_model._micro_batches(Model("gemma2"), SimpleNamespace(pad_token_id=17), params.load())


@pytest.mark.parametrize("method, share", [("none", True), ("fgm", False), ("neftune", False)])
def test_prefixes_are_shared_only_without_perturbations(project, method, share):
    set_params(adversarial__method=method)
    found = training_model._micro_batches(Model("llama"), SimpleNamespace(pad_token_id=0), params.load())
    assert found.share is share


@pytest.mark.parametrize("gpu, refused", [(False, True), (True, False)])
def test_an_8_bit_optimizer_needs_a_gpu(project, monkeypatch, gpu, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    set_params(optim="adamw_8bit")
    if refused:
        with pytest.raises(UserError, match="optim: adamw_8bit needs an NVIDIA GPU, and none was found"):
            training_model.refuse_impossible(params.load())
    else:
        training_model.refuse_impossible(params.load())


@pytest.mark.parametrize(
    "chosen, names",
    [
        ("mlp", ["down_proj", "gate_proj", "up_proj"]),
        ("attention", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("all-linear", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
    ],
)
def test_a_set_of_modules_means_the_model_s_own(load, unsloth, chosen, names):
    load(lora__target_modules=chosen)
    assert unsloth.adapted["target_modules"] == names


def linear(**children):
    """A module of linear layers and modules, by name."""
    module = torch.nn.Module()
    for name, child in children.items():
        module.add_module(name, torch.nn.Linear(2, 2) if child is None else child)
    return module


def test_sets_of_modules_are_found_where_they_have_other_names():
    # As in GPT-NeoX, Phi-3 and a mixture of experts; the head is no part of a block.
    blocks = torch.nn.ModuleList([linear(attention=linear(query_key_value=None), mlp=linear(gate_up_proj=None))])
    moe = linear(router=None, experts=torch.nn.ModuleList([linear(w1=None)]))
    blocks.append(linear(self_attn=linear(qkv_proj=None), block_sparse=moe))
    model = linear(layers=blocks, lm_head=None)
    assert training_model._modules("attention", model) == ["qkv_proj", "query_key_value"]
    assert training_model._modules("mlp", model) == ["gate_up_proj", "w1"]


def test_where_experts_are_one_tensor_the_attention_is_trained_instead(capsys):
    model = linear(layers=torch.nn.ModuleList([linear(attn=linear(qkv=None), mlp=linear(router=None))]))
    assert training_model._modules("mlp", model) == ["qkv"]
    assert "this model's mlp has no linear layers, so its attention is trained" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", ["mlp", "attention", "all-linear"])
def test_a_model_without_linear_layers_in_its_blocks_is_refused(wanted):
    model = linear(layers=torch.nn.ModuleList([linear()]), lm_head=None)
    model.config = SimpleNamespace(model_type="odd")
    with pytest.raises(UserError, match=f"target_modules: odd models have no linear layers that belong to {wanted}"):
        training_model._modules(wanted, model)


@pytest.mark.parametrize("depth, upper", [(1, [0]), (2, [1]), (5, [2, 3, 4]), (6, [3, 4, 5])])
def test_the_upper_half_of_a_model_is_the_half_next_to_the_head(depth, upper):
    assert training_model._layers("upper_half", depth) == upper
