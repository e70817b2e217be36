"""Tiny random models, built once per session: real transformers folders without a download."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from collections.abc import Callable, Iterator
from functools import wraps
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.browser import CHROMIUM, DRIVER, chromium
from toa_trl import Rollouts, TOASampler

settings.register_profile(
    "toa_trl", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("toa_trl")


# Files with long tests, the longest first: what starts last is short, and no process is left alone
# with it.
LONGEST = (
    "test_commands",
    "test_launch",
    "test_ray",
    "test_faults",
    "test_training",
    "test_pipeline",
    "test_comet",
    "test_iterate",
    "test_run",
    "test_hub",
    "test_notebook",
    "test_alpaca_eval",
    "test_real_text",
    "test_data_table",
    "test_wheel",
)


@pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run one more fast test at a time than there are cores: most wait for a process or a disk."""
    cores = os.cpu_count() or 1
    # a worker imports torch, so more than a few only cost memory
    return min(4, cores + ("not heavy" in config.option.markexpr))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the integration tests of a file in one process: they share servers and models."""
    ranks = {name: rank for rank, name in enumerate(LONGEST, start=-len(LONGEST))}
    items.sort(key=lambda item: ranks.get(item.path.stem, "integration" not in item.path.parts))
    for item in items:
        in_group = item.get_closest_marker("xdist_group") is not None
        if item.path.parent.name == "integration" and not in_group:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def tiny_picture(folder: Path, configuration: object, identity: object) -> str:
    """Stands for `write_reward_picture`, which takes half the time of an export."""
    (folder / "rewards.png").write_bytes(b"\x89PNG Software\0toa_trl")
    return "rewards.png"


@pytest.fixture(autouse=True, scope="session")
def _quick_exports() -> Iterator[None]:
    """`sample` exports only where a test asks for it, and `save` draws no picture."""
    sample: Callable[..., Rollouts] = TOASampler.sample
    save: Callable[..., Any] = Rollouts.save

    @wraps(sample)
    def without_export(*args: Any, **options: Any) -> Rollouts:
        return sample(*args, **{"export": False, **options})

    @wraps(save)
    def without_picture(*args: Any, **options: Any) -> Any:
        from toa_trl.report import picture  # matplotlib

        draw = unwrap(picture.write_reward_picture)
        patch.setattr(picture, "write_reward_picture", wraps(draw)(tiny_picture))
        return save(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TOASampler, "sample", without_export)
        patch.setattr(Rollouts, "save", without_picture)
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, which waits for the elements that a test looks for."""
    pytest.importorskip("selenium", reason="selenium is not installed (pip install 'toa_trl[dev]')")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    with chromium() as driver:
        driver.implicitly_wait(10)
        yield driver


ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
END, PAD = "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 256


def make_tokenizer(*, pad: str | None = PAD, template: bool = True) -> Any:
    """One token per byte, whatever the text, and one per role."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([PAD, END, *ROLES])}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=pad, additional_special_tokens=[*ROLES]
    )
    if template:
        fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that builds a model folder; labels=None: a causal model."""

    def make(
        name: str,
        *,
        labels: int | None = None,
        pad: str | None = PAD,
        template: bool = True,
        seed: int = 0,
        spread: float = 0.3,
    ) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        tokenizer = make_tokenizer(pad=pad, template=template)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=spread,
            **({} if labels is None else {"num_labels": labels}),
        )
        model = (
            LlamaForCausalLM(config) if labels is None else LlamaForSequenceClassification(config)
        )
        folder = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def causal(build: Callable[..., Path]) -> Path:
    """A causal language model with a chat template."""
    return build("causal")


@pytest.fixture(scope="session")
def causal_no_pad(build: Callable[..., Path]) -> Path:
    """One whose tokenizer has no padding token."""
    return build("causal-no-pad", pad=None)


@pytest.fixture(scope="session")
def causal_no_template(build: Callable[..., Path]) -> Path:
    """One whose tokenizer has no chat template: a base model."""
    return build("causal-no-template", template=False)


@pytest.fixture(scope="session")
def no_weights(causal: Path) -> Path:
    """A folder with configuration and tokenizer, but no weights."""
    folder = causal.with_name("no-weights")
    shutil.copytree(causal, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(scope="session")
def classifier(build: Callable[..., Path]) -> Path:
    """A reward model."""
    return build("classifier", labels=1)


@pytest.fixture(scope="session")
def classifier_pad_is_eos(build: Callable[..., Path]) -> Path:
    """A reward model that pads with the token that ends every turn."""
    return build("classifier-pad-is-eos", labels=1, pad=END)


@pytest.fixture(scope="session")
def classifier_no_pad(build: Callable[..., Path]) -> Path:
    """A reward model without a padding token."""
    return build("classifier-no-pad", labels=1, pad=None)


@pytest.fixture(scope="session")
def classifier_no_template(build: Callable[..., Path]) -> Path:
    """A reward model without a chat template."""
    return build("classifier-no-template", labels=1, template=False)


@pytest.fixture(scope="session")
def classifier_two_labels(build: Callable[..., Path]) -> Path:
    """A classifier, but no reward model."""
    return build("classifier-two-labels", labels=2)
