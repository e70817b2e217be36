"""The arithmetic alone: known values, and what must hold for every model.

test_command.py measures.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toa_trl.training.estimate.generation import cache_bytes
from toa_trl.training.estimate.memory import BUCKET, LIVE, estimate, states
from toa_trl.training.estimate.sizes import GIB, Generation, Shape, Sharding, Training

LLAMA_8B = Shape(8_030_261_248, 218_112_000, 32, 4096, 14_336, 4096, 1024, 128_256)
FULL = Training(num_sequences=1, length=2048, num_trained=LLAMA_8B.num_parameters)
LORA = replace(FULL, num_trained=41_943_040, lora_rank=16, weight_bytes=2)
KINDS = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    heads, groups = draw(st.sampled_from([(4, 1), (8, 2), (16, 16)]))
    hidden, layers, words = 64 * heads, draw(st.integers(1, 40)), draw(st.integers(1000, 150_000))
    inner = draw(st.integers(hidden, 4 * hidden))
    block = hidden * (2 * hidden + 2 * 64 * groups + 3 * inner + 2)
    tied = draw(st.booleans())
    number = layers * block + words * hidden * (1 if tied else 2) + hidden
    return Shape(number, block, layers, hidden, inner, hidden, 64 * groups, words, tied)


@st.composite
def trainings(draw: st.DrawFn, shape: Shape) -> Training:
    rank = draw(st.sampled_from([0, 0, 8, 64]))
    inputs = 3 * (shape.hidden_size + shape.intermediate_size) + 2 * (
        2 * shape.hidden_size + shape.query_size + shape.key_size
    )
    return Training(
        num_sequences=draw(st.integers(1, 16)),
        length=draw(st.integers(16, 8192)),
        num_trained=rank * inputs * shape.num_layers if rank else shape.num_parameters,
        lora_rank=rank,
        lora_dropout=draw(st.booleans()),
        weight_bytes=draw(st.sampled_from([2, 4])),
        bf16=draw(st.booleans()),
        checkpointing=draw(st.booleans()),
        accumulates=draw(st.booleans()),
        has_reference=draw(st.booleans()),
        on_cpu=draw(st.booleans()),
    )


cases = shapes().flatmap(lambda shape: st.tuples(st.just(shape), trainings(shape)))
shardings = st.builds(
    Sharding, st.sampled_from(KINDS), st.sampled_from([2, 4, 8, 64]), st.booleans(), st.booleans()
)


def total(shape: Shape, training: Training, sharding: Sharding = Sharding()) -> float:  # noqa: B008
    return estimate(shape, training, sharding).total


@pytest.mark.parametrize(
    ("training", "sharding", "bytes_per_parameter"),
    [
        (FULL, Sharding(), 4 + 4 + 8),  # float32 weights under autocast
        (replace(FULL, weight_bytes=2), Sharding(), 2 + 2 + 4),  # everything in bfloat16
        (FULL, Sharding("ddp", 8), 4 + 4 + 8),
        (FULL, Sharding("zero1", 8), 2 + 2 + 12 / 8),  # ZeRO, figure 1: K = 12
        (FULL, Sharding("zero2", 8), 2 + (2 + 12) / 8),
        (FULL, Sharding("zero3", 8), (2 + 2 + 12) / 8),
        (
            replace(FULL, weight_bytes=2),
            Sharding("fsdp2", 8),
            (4 + 4 + 8) / 8,
        ),  # raised to float32 by accelerate
    ],
)
def test_states_per_parameter(
    training: Training, sharding: Sharding, bytes_per_parameter: float
) -> None:
    kept, host = states(LLAMA_8B, training, sharding)
    found = kept["weights"] + kept["gradients"] + kept["optimizer"]
    assert found / LLAMA_8B.num_parameters == pytest.approx(bytes_per_parameter)
    assert host == 0


def test_llama_3_8b_needs_what_is_said_of_it() -> None:
    # 18 bytes per parameter in a forward pass under autocast, with its copies in bfloat16:
    # transformers' documentation
    forward = estimate(LLAMA_8B, replace(FULL, length=1, accumulates=True), Sharding())
    assert forward.total / LLAMA_8B.num_parameters == pytest.approx(18, rel=0.02)
    # 120 GB of states in ZeRO's count for 7.5 B parameters, and 31.4, 16.6 and 1.9 GB on 64
    # devices: its figure 1
    shape = replace(LLAMA_8B, num_parameters=7_500_000_000)
    training = replace(FULL, num_trained=shape.num_parameters)
    for kind, said in (("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)):
        kept, _ = states(shape, training, Sharding(kind, 64))
        assert (kept["weights"] + kept["gradients"] + kept["optimizer"]) / 1e9 == pytest.approx(
            said, abs=0.1
        )


def test_lora_keeps_the_base_alone() -> None:
    kept, _ = states(LLAMA_8B, LORA, Sharding())
    assert (
        kept["weights"] == 2 * LLAMA_8B.num_parameters + 4 * LORA.num_trained
    )  # peft keeps adapters in float32
    assert kept["gradients"] + kept["optimizer"] == 12 * LORA.num_trained


def test_a_reference_is_a_second_model_and_a_reward_has_no_head() -> None:
    without, with_reference = (
        total(LLAMA_8B, replace(FULL, has_reference=has)) for has in (False, True)
    )
    assert with_reference - without == 4 * LLAMA_8B.num_parameters
    sharded = states(LLAMA_8B, replace(FULL, has_reference=True), Sharding("zero3", 8))[0][
        "reference"
    ]
    assert sharded == 2 * LLAMA_8B.num_parameters / 8
    rewards = replace(LORA, has_head=False)
    assert total(LLAMA_8B, rewards) <= total(LLAMA_8B, LORA)


def test_no_logits_of_the_whole_vocabulary() -> None:
    # 65,536 x 128,256 of them would be 31 GiB in float32; TRL goes through them in tiles
    long = replace(LORA, num_sequences=16, length=4096)
    parts = estimate(LLAMA_8B, long, Sharding()).parts
    assert parts.get("head", 0) < 5 * GIB


@pytest.mark.parametrize(("copies", "gib"), [(2.0, 31.3), (2.5, 39.1)])
def test_orpo_and_simpo_hold_the_logits_of_the_whole_vocabulary(copies: float, gib: float) -> None:
    # 4 sequences of 8,192 tokens x 128,256 words x 4 bytes are 15.66 GiB
    long = replace(LORA, num_sequences=4, length=8192, whole_logits=copies)
    tiles = estimate(LLAMA_8B, replace(long, whole_logits=0.0), Sharding()).total
    made = estimate(LLAMA_8B, long, Sharding())
    assert made.peak == "the head's backward pass"
    assert made.parts["head"] / GIB == pytest.approx(gib, rel=0.05)
    assert made.total > tiles
    # DeepSpeed returns them in bfloat16
    of_zero = estimate(LLAMA_8B, long, Sharding("zero2", 8)).parts["head"]
    assert of_zero < 0.6 * made.parts["head"]


LINEAR = replace(LLAMA_8B, linear_parameters=6_979_321_856, largest_linear=4096 * 14_336)


@pytest.mark.parametrize(
    ("bits", "gib"),
    [(4.5, 3.66 + 1.96), (4.127, 3.35 + 1.96), (8, 6.5 + 1.96)],  # layers, and what is not one
)
def test_quantized_weights(bits: float, gib: float) -> None:
    quantized = replace(LORA, quantized_bytes=bits / 8, adapter_bytes=2)
    kept, _ = states(LINEAR, quantized, Sharding())
    adapter = 2 * LORA.num_trained
    assert (kept["weights"] - adapter) / GIB == pytest.approx(gib, rel=0.01)
    assert kept["gradients"] + kept["optimizer"] == 3 * adapter  # all in bfloat16
    made = estimate(LINEAR, quantized, Sharding())
    assert made.total < total(LINEAR, LORA)
    assert made.parts["dequantized"] == 2 * LINEAR.largest_linear


def test_the_cache_of_what_is_sampled() -> None:
    # 128 KiB a token for Llama-3-8B: 32 layers x 2 x 1,024 x 2 bytes
    assert cache_bytes(LLAMA_8B, 1, 1, 2) == 128 * 1024
    sampled = Generation(num_sequences=256, length=4096)
    made = estimate(LLAMA_8B, replace(LORA, generation=sampled, prompt_length=512), Sharding())
    assert made.peak == "the sampling of completions"
    assert made.parts["cache"] == 256 * 4096 * 128 * 1024
    few = replace(LORA, generation=replace(sampled, num_sequences=1))
    assert total(LLAMA_8B, few) == total(LLAMA_8B, LORA)  # the training itself needs more
    whole = estimate(LLAMA_8B, replace(LORA, generation=sampled), Sharding("zero3", 8))
    assert whole.parts["gathered"] == 2 * LLAMA_8B.num_parameters  # ds3_gather_for_generation


def test_vllm_in_the_process_reserves_its_share() -> None:
    sampled = Generation(num_sequences=32, length=2560, in_vllm=True, vllm_share=0.35)
    on_80 = replace(LORA, generation=sampled, device_bytes=80 * GIB)
    made = estimate(LLAMA_8B, on_80, Sharding())
    assert made.parts["vLLM"] == pytest.approx(28 * GIB)
    assert made.total == pytest.approx(total(LLAMA_8B, LORA) + 28 * GIB)
    asleep = replace(on_80, generation=replace(sampled, vllm_sleeps=True))
    assert total(LLAMA_8B, asleep) < made.total
    unknown = estimate(LLAMA_8B, replace(on_80, device_bytes=None), Sharding())
    least = 2 * LLAMA_8B.num_parameters + cache_bytes(LLAMA_8B, 32, 2560, 2)
    assert unknown.parts["vLLM"] == least
    rewarded = replace(on_80, reward_bytes=16 * GIB)
    assert total(LLAMA_8B, rewarded) == made.total + 16 * GIB


on_a_busy_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@on_a_busy_machine
@given(cases, shardings)
def test_more_tokens_need_more(case: tuple[Shape, Training], sharding: Sharding) -> None:
    shape, training = case
    least = total(shape, training, sharding)
    assert least > 0
    # one token more changes nothing where the peak is the optimizer's step; many more always do
    for factor, more in ((1, least), (1000, least + 1)):
        sequences = training.num_sequences + factor
        assert total(shape, replace(training, num_sequences=sequences), sharding) >= more
        assert total(shape, replace(training, length=training.length + factor), sharding) >= more
    assert total(shape, replace(training, accumulates=True), sharding) >= least
    assert total(shape, replace(training, has_reference=True), sharding) >= least


@on_a_busy_machine
@given(cases, shardings)
def test_checkpointing_keeps_less_of_more_than_a_block(
    case: tuple[Shape, Training], sharding: Sharding
) -> None:
    shape, training = case
    deep = replace(shape, num_layers=max(shape.num_layers, 4))
    off, on = (total(deep, replace(training, checkpointing=it), sharding) for it in (False, True))
    assert on <= off


@on_a_busy_machine
@given(cases, st.sampled_from([2, 4, 8, 64]))
def test_sharding_divides_the_states(case: tuple[Shape, Training], number: int) -> None:
    shape, training = case
    training = replace(training, bf16=True)

    def of(kind: str) -> dict[str, float]:
        return states(shape, training, Sharding(kind, number))[0]

    ddp, one, two, three, fsdp = (of(kind) for kind in ("ddp", "zero1", "zero2", "zero3", "fsdp2"))
    assert (
        one["optimizer"]
        == two["optimizer"]
        == three["optimizer"]
        == 12 * training.num_trained / number
    )
    assert two["gradients"] == three["gradients"] == one["gradients"] / number
    assert one["weights"] == two["weights"]
    assert three["weights"] == pytest.approx(one["weights"] / number)
    assert fsdp["optimizer"] == 8 * training.num_trained / number
    assert fsdp["weights"] <= 2 * ddp["weights"] / number  # bfloat16 is raised to float32 at most
    # the buffers do not shrink with the number of devices, and are bounded
    assert three["buffers"] <= 2 * (LIVE + BUCKET)


@on_a_busy_machine
@given(cases, shardings)
def test_lora_has_smaller_states_than_the_whole_model(
    case: tuple[Shape, Training], sharding: Sharding
) -> None:
    def size(training: Training) -> float:
        kept, host = states(shape, training, sharding)
        return sum(kept.values()) + host

    # its activations may need more: an adapter keeps its input in a type of its own
    shape, training = case
    whole = replace(training, lora_rank=0, num_trained=shape.num_parameters)
    assert size(replace(whole, lora_rank=8, num_trained=shape.num_parameters // 100)) < size(whole)


def test_lora_needs_less_for_a_large_model() -> None:
    assert total(LLAMA_8B, LORA) < 0.5 * total(LLAMA_8B, replace(FULL, weight_bytes=2))


@on_a_busy_machine
@given(cases, st.sampled_from([2, 8]))
def test_what_is_offloaded_is_on_the_host(case: tuple[Shape, Training], number: int) -> None:
    shape, training = case
    training = replace(training, bf16=True)
    here, there = (
        estimate(shape, training, Sharding("zero3", number, it, it)) for it in (False, True)
    )
    assert there.total < here.total
    assert here.host == 0
    assert there.host >= (2 * shape.num_parameters + 12 * training.num_trained) / number
    assert "optimizer" not in there.parts
