"""Parts that more than one test file is made of: a tiny model, a tiny tokenizer, the CPU."""

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries that read it

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # without a GPU kernels are interpreted, where Triton is installed

from support.clone import SHARED
from support.corpus import END_OF_TEXT
from tokenizers import Tokenizer

from smollm.config.model import ModelConfig
from smollm.config.runtime import Precision
from smollm.corpus import tokenizer as tokenizers_here
from smollm.device.hardware import Hardware

if TYPE_CHECKING:
    from support.trainers import TrainerFactory


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove what the tests of the session shared, once all processes that ran them are done."""
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(SHARED, ignore_errors=True)


@pytest.fixture
def model_config() -> ModelConfig:
    """A tiny Llama with grouped heads and tied embeddings."""
    return ModelConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE of 275 tokens: 256 bytes, end-of-text (id 0) and a few merges."""
    documents = ["the cat sat on the mat, and the dog sat on the cat\n", "the end of the mat: 10 cats and 20 dogs\n"]
    return tokenizers_here.check(tokenizers_here.train(documents, 275, END_OF_TEXT), END_OF_TEXT, "tokenizer")


@pytest.fixture
def trainers(model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware) -> "TrainerFactory":
    """Builds trainers of the tiny model on the CPU."""
    from support.trainers import TrainerFactory  # imports all of training

    return TrainerFactory(model_config, tokenizer, cpu)


@pytest.fixture
def gpu() -> Hardware:
    """The NVIDIA GPU as the pipeline would use it; the test is skipped without one."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    torch.set_float32_matmul_precision("high")
    return Hardware(torch.device("cuda"), Precision.BF16, compile=True, name="this GPU")


@pytest.fixture
def wide_config(model_config: ModelConfig) -> ModelConfig:
    """A tiny Llama whose heads have a size that the kernels cut well, and whose other sizes are odd ones."""
    return replace(
        model_config,
        hidden_size=96,
        intermediate_size=144,
        num_attention_heads=3,
        num_key_value_heads=1,
    )


@pytest.fixture
def cpu() -> Hardware:
    return Hardware(torch.device("cpu"), Precision.FP32, compile=False, name="this CPU")
