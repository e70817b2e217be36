"""Sample held-out prompts from the model in training, score the responses, and log both."""

import asyncio
import logging
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError, ToaError
from toa_trl.evaluation.accuracy import Measurement, Scores, measure_model
from toa_trl.evaluation.outputs import Output, Outputs
from toa_trl.models.chat import ChatTemplate
from toa_trl.report.training_log import HELD_OUT, read_training_log, write_training_log
from toa_trl.training.held_out.options import PREFIX, HeldOutArguments
from toa_trl.training.held_out.prompts import HeldOut, random_states_kept
from toa_trl.training.held_out.trackers import log_examples
from toa_trl.types import Completion, as_dicts

NUM_EXAMPLES = 8  # prompts whose responses are logged at every evaluation
PLACE = "the model in training"
logger = logging.getLogger(__name__)


def add_evaluation(trainer: Any, held_out: HeldOut | None, options: HeldOutArguments) -> None:
    """Add what watches a training: responses to held-out prompts, early stopping, the log.

    Raises:
        ConfigError: the metric for early stopping is not measured, or the chat template refuses
            a held-out prompt.
    """
    from transformers import EarlyStoppingCallback

    log = as_callback(TrainingLog)(trainer)
    if held_out is not None:  # the first, as the others read what it measures
        trainer.add_callback(as_callback(HeldOutCallback)(trainer, held_out, log))
    if options.early_stopping_patience is not None:
        # a training that is killed resumes with the evaluations that it has counted
        trainer.args.restore_callback_states_from_checkpoint = True
        patience, threshold = options.early_stopping_patience, options.early_stopping_threshold
        trainer.add_callback(EarlyStoppingCallback(patience, threshold))
    trainer.add_callback(log)


def as_callback(kind: type) -> Any:
    """Return a class as a subclass of TrainerCallback, which has the events that it lacks."""
    from transformers import TrainerCallback

    return type(kind.__name__, (kind, TrainerCallback), {})


class TrainingLog:
    """Write the curves and the examples into the model's folder."""

    def __init__(self, trainer: Any) -> None:
        self._folder = Path(trainer.args.output_dir)
        self.setup: dict[str, Any] = {}
        self.examples: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the examples up to the checkpoint that the training resumes from."""
        if state.is_world_process_zero and state.global_step:
            examples = read_training_log(self._folder).get("examples", [])
            self.examples = [one for one in examples if one["step"] <= state.global_step]

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the log."""
        if state.is_world_process_zero:
            write_training_log(self._folder, state.log_history, self.examples, self.setup)

    on_save = on_train_end = on_evaluate


class HeldOutCallback:
    """Measure the model on held-out prompts at every evaluation.

    The figures become part of the evaluation's metrics, for metric_for_best_model.

    Args:
        trainer: of TRL.
        held_out: the prompts, and how they are sampled and scored.
        log: gets the examples.

    Raises:
        ConfigError: the metric for the best model is not measured, or the chat template refuses a
            prompt.
    """

    def __init__(self, trainer: Any, held_out: HeldOut, log: TrainingLog) -> None:
        self._trainer, self._held_out, self._log = trainer, held_out, log
        self._runner: asyncio.Runner | None = None
        self._tokenizer = trainer.processing_class
        self._tokens = self._prompt_tokens()
        self._is_main = trainer.accelerator.is_main_process
        if self._is_main:
            self._check_metric()
            log.setup = {
                "num_prompts": len(self._tokens),
                "max_tokens": held_out.sampling.max_tokens,
                "temperature": held_out.sampling.temperature,
                **held_out.scorers,
            }

    def _prompt_tokens(self) -> dict[int, list[int]]:
        """Return the token ids of the prompts that fit into the context, by number."""
        config = self._trainer.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or math.inf
        tokens: dict[int, list[int]] = {}
        template = ChatTemplate(self._tokenizer)
        pairs = zip(self._held_out.prompts, self._held_out.texts, strict=True)
        for number, (prompt, text) in enumerate(pairs):
            try:
                ids = (
                    template.render(as_dicts(prompt.messages), add_generation_prompt=True)
                    if text is None
                    else self._tokenizer(text)["input_ids"]
                )
            except ValueError as error:
                raise ConfigError(f"held_out_samples: prompt {prompt.id!r}: {error}") from error
            if len(ids) < context:
                tokens[number] = ids
        num_long = len(self._held_out.prompts) - len(tokens)
        if not tokens:
            raise ConfigError(
                f"held_out_samples: every held-out prompt fills the context of {context} tokens"
            )
        if num_long:
            logger.warning("%d held-out prompts are left out: they fill the context", num_long)
        return tokens

    def _check_metric(self) -> None:
        metric = (self._trainer.args.metric_for_best_model or "").removeprefix("eval_")
        needs = {"reward": self._held_out.reward, "accuracy": self._held_out.verifier}
        needs["verifier_score"] = self._held_out.verifier
        for name, model in needs.items():
            if metric == PREFIX + name and model is None:
                key = "held_out_reward" if name == "reward" else "held_out_verifier"
                raise ConfigError(
                    f"metric_for_best_model: {metric} is not measured, because the run has no "
                    f"such scorer for these prompts; name it with {key}"
                )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that responses can be scored, before the first step."""
        for model in (self._held_out.reward, self._held_out.verifier):
            if model is not None:
                self._run(model.check())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Release the reward model."""
        for model in (self._held_out.reward, self._held_out.verifier):
            if model is not None:
                self._run(model.aclose())
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Sample, score and log; at most once in a step."""
        figures = self._logged(state)
        if not figures:
            with undisturbed(self._trainer.model):
                completions = self._sample()
                figures, examples = self._score(completions, state.global_step)
            if figures:
                self._trainer.log(dict(figures))
            if self._is_main:
                self._log.examples += examples
                log_examples(self._trainer, state.global_step, examples)
        if metrics is not None:
            # not a number: no better than any other, where scoring failed
            names = ("reward", "accuracy", "verifier_score")
            metrics |= dict.fromkeys((HELD_OUT + name for name in names), math.nan)
            metrics |= figures

    def _logged(self, state: Any) -> dict[str, float]:
        """Return the figures of this step, if they were logged before a restart."""
        found: dict[str, float] = {}
        for entry in state.log_history:
            if entry["step"] == state.global_step:
                found |= {name: entry[name] for name in entry if name.startswith(HELD_OUT)}
        return found

    def _sample(self) -> dict[int, Completion]:
        """Return the responses by number of the prompt; each process samples a share."""
        from accelerate.utils import gather_object

        from toa_trl.agents.generation import complete

        accelerator, held_out = self._trainer.accelerator, self._held_out
        numbers = [*self._tokens][accelerator.process_index :: accelerator.num_processes]
        seeds = []
        for number in numbers:
            rng = random.Random(f"{held_out.seed} {held_out.prompts[number].id}")
            seeds.append(rng.getrandbits(32))
        with generating_model(self._trainer) as model, accelerator.autocast():
            completions = complete(
                PLACE,
                model,
                self._tokenizer,
                [self._tokens[number] for number in numbers],
                held_out.sampling,
                seeds,
                held_out.batch_size,
            )
        return dict(sorted(gather_object(list(zip(numbers, completions, strict=True)))))

    def _score(
        self, completions: Mapping[int, Completion], step: int
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the figures, which all processes need, and the examples of the main process."""
        from accelerate.utils import broadcast_object_list

        figures: list[dict[str, float]] = [{}]
        examples: list[dict[str, Any]] = []
        if self._is_main:
            held_out, prompts = self._held_out, [self._held_out.prompts[n] for n in completions]
            outputs = [Output(one.text, one.finish_reason) for one in completions.values()]
            scores = Scores()
            try:
                measured, scores = self._run(
                    measure_model(
                        prompts,
                        [Outputs(output) for output in outputs],
                        held_out.task,
                        verifier=held_out.verifier,
                        reward_model=held_out.reward,
                    )
                )
                figures = [figures_of(measured)]
            except ToaError as error:
                logger.warning("held-out responses of step %d are not scored: %s", step, error)
            for number, prompt in enumerate(prompts[:NUM_EXAMPLES]):
                example = {"step": step, "prompt_id": prompt.id}
                example["prompt"] = held_out.task.question(prompt)
                example["response"] = outputs[number].text
                example["reward"] = scores.reward[number] if scores.reward else None
                example["score"] = scores.verifier[number] if scores.verifier else None
                examples.append(example)
        broadcast_object_list(figures, from_process=0)
        return figures[0], examples

    def _run(self, coroutine: Any) -> Any:
        """Run in one event loop, to which the connections to a server belong."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(coroutine)


def figures_of(measured: Measurement) -> dict[str, float]:
    """Return the figures of an evaluation under the names of the Trainer's log."""
    figures = {
        "reward": measured.mean_reward,
        "accuracy": measured.accuracy,
        "verifier_score": measured.mean_verifier_score,
        "truncated": measured.num_truncated / measured.num_problems,
        "words": measured.mean_length,
    }
    return {HELD_OUT + name: value for name, value in figures.items() if value is not None}


def held_out_facts(trainer: Any) -> dict[str, Any]:
    """Return the first held-out figures and those of the saved model; empty without any."""
    points: dict[int, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        own = {key.removeprefix(HELD_OUT): entry[key] for key in entry if key.startswith(HELD_OUT)}
        if own:
            points[entry["step"]] = {"step": entry["step"], **own}
    if not points:
        return {}
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    last = best if best in points else max(points)
    held_out = {"first": points[min(points)], "model": points[last]}
    logs = [one for one in trainer.callback_handler.callbacks if isinstance(one, TrainingLog)]
    return {"held_out": {**logs[0].setup, "num_steps": trainer.state.global_step, **held_out}}


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluate without a trace in the training: random states and the modes of all modules."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with random_states_kept():
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def generating_model(trainer: Any) -> Iterator[Any]:
    """Yield the model that generates: unwrapped, with the parameters that ZeRO-3 shards gathered.

    The layers of an adapter are in its base model.
    """
    accelerator = trainer.accelerator
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != 3:
        yield _without_adapter(accelerator.unwrap_model(trainer.model_wrapped))
        return
    from trl.models import unwrap_model_for_generation

    model = accelerator.unwrap_model(trainer.model_wrapped)
    with unwrap_model_for_generation(trainer.model_wrapped, accelerator) as gathered:
        yield _without_adapter(gathered)
    if model.is_gradient_checkpointing:
        options = trainer.args.gradient_checkpointing_kwargs
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _without_adapter(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
