"""Parameters, FLOPs and MFU against published numbers and counts by hand."""

from dataclasses import replace

import pytest

from smollm.config.model import ModelConfig
from smollm.model.llama import LlamaForCausalLM
from smollm.model.throughput import (
    PEAK_TFLOPS,
    flops_per_token,
    model_flops_utilization,
    parameter_count,
    peak_tflops,
)

SMOLLM_135M = ModelConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=2048,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
    initializer_range=1 / 24,
    tie_word_embeddings=True,
)
SMOLLM_360M = replace(
    SMOLLM_135M,
    hidden_size=960,
    intermediate_size=2560,
    num_hidden_layers=32,
    num_attention_heads=15,
    num_key_value_heads=5,
)
SMOLLM_1700M = replace(
    SMOLLM_135M,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    num_key_value_heads=32,
)


@pytest.mark.parametrize(
    ("config", "published"),
    [(SMOLLM_135M, 134_515_008), (SMOLLM_360M, 361_821_120), (SMOLLM_1700M, 1_711_376_384)],
    ids=["135M", "360M", "1.7B"],
)
def test_parameters_are_those_of_the_published_models(config: ModelConfig, published: int) -> None:
    assert parameter_count(config) == published


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_parameters_are_those_of_the_built_model(model_config: ModelConfig, tied: bool, key_value_heads: int) -> None:
    config = replace(model_config, tie_word_embeddings=tied, num_key_value_heads=key_value_heads)
    assert parameter_count(config) == sum(p.numel() for p in LlamaForCausalLM(config).parameters())


def test_flops_of_a_token_are_those_counted_by_hand() -> None:
    # a layer: query and output 576 x 576, key and value 576 x 192, MLP three times 576 x 1536
    layer = 2 * 331_776 + 2 * 110_592 + 3 * 884_736
    head = 28_311_552  # 576 x 49,152, once: looking up an embedding multiplies nothing
    # a multiplication and an addition, forward once and backward twice
    matrices = 6 * (30 * layer + head)
    # scores and mixing, each over 2048 positions of 9 heads of 64
    attention = 30 * 6 * 2 * 9 * 64 * 2048
    assert flops_per_token(SMOLLM_135M, 2048) == matrices + attention


def test_flops_do_not_depend_on_whether_the_embedding_is_tied() -> None:
    untied = replace(SMOLLM_135M, tie_word_embeddings=False)
    assert flops_per_token(untied, 2048) == flops_per_token(SMOLLM_135M, 2048)


@pytest.mark.parametrize(
    ("device_name", "peak"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 3090", 71),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla T4", 65),
    ],
)
def test_the_peak_of_a_known_device_is_found_by_the_name_torch_gives_it(device_name: str, peak: float) -> None:
    assert peak_tflops(device_name) == peak


@pytest.mark.parametrize(
    "device_name", ["NVIDIA GeForce GTX 1080", "NVIDIA L40", "NVIDIA T400 4GB", "Intel(R) Xeon(R)", ""]
)
def test_an_unknown_device_has_no_peak(device_name: str) -> None:
    assert peak_tflops(device_name) is None


def test_every_peak_can_be_reached_by_its_own_name() -> None:
    assert {name: peak_tflops(name) for name in PEAK_TFLOPS} == PEAK_TFLOPS


def test_utilization_is_the_share_of_the_peak() -> None:
    # 400,000 tokens a second of 1.1 GFLOP each are 440 of the card's 1000 TFLOP/s
    assert model_flops_utilization(400_000, 1.1e9, 1000.0) == pytest.approx(0.44, rel=1e-12)
