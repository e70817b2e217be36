"""ORPO and SimPO: faults of TRL's experimental trainers, and the defaults of SimPO."""

from collections.abc import Callable
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.training.templates import load_student_tokenizer

BETA = 2.5  # of SimPO's Llama-3-8B-Instruct; its README advises 2 to 10
GAMMA_BETA_RATIO = 0.5  # where SimPO's README advises to start


def with_ends(trainer_class: Any) -> Any:
    """Return a subclass of TRL's CPO or ORPO trainer that pads and ends responses as DPO does.

    TRL 1.16:

    - creates the collator before it gives a tokenizer without a padding token one, and stops at the
      first batch, for instance with Llama-3;
    - appends an eos where the template ends with a newline after it, so that Qwen2.5 would learn
      to end its turn twice.
    """

    class ReferenceFreeTrainer(trainer_class):  # type: ignore[misc]
        def __init__(self, model: str, args: Any, **kwargs: Any) -> None:
            revision = (args.model_init_kwargs or {}).get("revision")
            tokenizer = load_student_tokenizer(model, args, revision)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            super().__init__(model=model, args=args, processing_class=tokenizer, **kwargs)

        def build_tokenized_answer(self, prompt: str, answer: str) -> Any:
            """Tokenize a response without the whitespace that a template puts after its eos."""
            if answer.rstrip().endswith(self.processing_class.eos_token):
                answer = answer.rstrip()
            return super().build_tokenized_answer(prompt, answer)

    return ReferenceFreeTrainer


def set_simpo_defaults(training: Any, given: Callable[[str], Any]) -> None:
    """Set the loss of SimPO and its defaults in place of CPO's, for the keys that are not given.

    Args:
        training: TRL's CPOConfig.
        given: returns the value that the user gave for a key, or None.

    Raises:
        ConfigError: another loss is given.
    """
    if given("loss_type") not in (None, "simpo"):
        raise ConfigError("loss_type: method simpo is TRL's CPO with loss simpo; omit the key")
    training.loss_type = "simpo"
    if given("cpo_alpha") is None:
        training.cpo_alpha = 0.0  # no term of behavior cloning
    if given("beta") is None:
        training.beta = BETA
    if given("simpo_gamma") is None:
        training.simpo_gamma = GAMMA_BETA_RATIO * training.beta
