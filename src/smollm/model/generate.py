"""Text samples, with a key-value cache.

Legend: B batch (one row a prompt), T time, V vocabulary.
"""

from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from torch import Tensor

from smollm.config.evaluation import EvaluationConfig
from smollm.device.hardware import Hardware
from smollm.model.llama import KeyValueCache, LlamaForCausalLM
from smollm.state.tokens import special_ids, vocabulary_size

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What the bytes of an incomplete character are decoded to."""

_WORTH_A_PASS = 4
"""Fewer positions than this are replayed one by one; on an NVIDIA GPU a pass takes as long as ten replays."""


class Sampler:
    """Continues each prompt by `sample_tokens` tokens, or up to the end-of-text token.

    The positions of the shortest prompt are computed in one pass, unless they are too few. From there all rows advance
    together, one position at a time: a row takes its prompt's next token while there is one, and samples afterwards. On
    an NVIDIA GPU one position is captured as a CUDA graph and replayed; launching its hundreds of small kernels one by
    one would take ten times as long.
    """

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: Tokenizer, evaluation: EvaluationConfig, hardware: Hardware
    ) -> None:
        """
        Args:
            model: with a vocabulary no smaller than the tokenizer's; ids beyond it are never sampled.
            tokenizer: encodes prompts, decodes samples.
            evaluation: prompts, length, temperature and top_k.
            hardware: device and precision.
        """
        self.model, self.tokenizer, self.evaluation, self.hardware = model, tokenizer, evaluation, hardware
        prompts = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in evaluation.prompts]
        longest = model.config.max_position_embeddings - evaluation.sample_tokens
        self._prompts = [prompt[-longest:] for prompt in prompts]
        length = max(map(len, self._prompts)) + evaluation.sample_tokens
        start = torch.zeros(len(prompts), length, dtype=torch.long)
        is_prompt = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(self._prompts):
            start[row, : len(prompt)] = torch.tensor(prompt)
            is_prompt[row, : len(prompt)] = True
        device = hardware.device
        self._start, self._is_prompt, self._ids = start.to(device), is_prompt.to(device), start.to(device, copy=True)
        self._known = vocabulary_size(tokenizer)
        self._cache = KeyValueCache.empty(model.config, len(prompts), length, device, hardware.dtype)
        self._generator = torch.Generator(device)
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def __call__(self, seed: int, on_progress: Callable[[list[str]], object] | None = None) -> list[str]:
        """A text for each prompt; the same seed gives the same texts.

        Args:
            seed: of the choice among tokens.
            on_progress: called after each token with the texts so far, without an incomplete last character.
        """
        if self._graph is None and self.hardware.captures and not self.model.execution.sharded:
            self._graph = self._capture()
        self._rewind()
        self._generator.manual_seed(seed)
        shared, length = min(map(len, self._prompts)) - 1, self._ids.shape[1]
        with self.hardware.autocast():
            if shared < _WORTH_A_PASS:
                shared = 0
            else:
                with self.model.uncompiled():  # lengths vary
                    self.model(self._ids[:, :shared], self._cache)
            for length in range(shared + 2, self._ids.shape[1] + 1):
                self._advance() if self._graph is None else self._graph.replay()
                if on_progress is not None:
                    rows = self._continuations(length)
                    on_progress([_text(self.tokenizer, ids).rstrip(INCOMPLETE) for ids in rows])
                    if all(map(self._is_complete, rows)):
                        break
        return [_text(self.tokenizer, ids) for ids in self._continuations(length)]

    def _continuations(self, length: int) -> list[list[int]]:
        """What follows each prompt among the first `length` ids of its row."""
        ends = (min(length, len(prompt) + self.evaluation.sample_tokens) for prompt in self._prompts)
        rows = zip(self._ids.tolist(), self._prompts, ends, strict=True)
        return [ids[len(prompt) : end] for ids, prompt, end in rows]

    def _is_complete(self, ids: list[int]) -> bool:
        return len(ids) == self.evaluation.sample_tokens or not special_ids(self.tokenizer).isdisjoint(ids)

    def _rewind(self) -> None:
        self._ids.copy_(self._start)
        for tensor in (self._cache.keys, self._cache.values, self._cache.length):
            tensor.zero_()

    def _advance(self) -> None:
        """Compute one position, and write the ids of the next."""
        here = self._cache.length.view(1)
        with self.model.uncompiled():  # one position is not worth compiling for
            logits = self.model(self._ids.index_select(1, here), self._cache)[:, -1, : self._known].float()  # (B, V)
        sampled = sample(logits, self.evaluation.temperature, self.evaluation.top_k, self._generator)
        # `here` has moved on
        following = torch.where(self._is_prompt.index_select(1, here), self._ids.index_select(1, here), sampled)
        self._ids.index_copy_(1, here, following)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture one position, to be replayed: its index and all that it reads and writes are on the device."""
        self._rewind()
        with self.hardware.autocast():
            self._advance()  # loads kernels, which must not be loaded during the capture
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        # autocast begins inside the capture: weights that it had cached before would never be updated
        with torch.cuda.graph(graph, capture_error_mode="thread_local"), self.hardware.autocast():
            self._advance()
        return graph


def sample(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    """Draw one id a row, (B, 1), from the `top_k` likeliest of `logits` (B, V)."""
    best, ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    probabilities = torch.softmax(best / temperature, dim=-1)
    # as in torch.multinomial, except that non-finite logits raise no error here: the loss reports them
    waits = torch.empty_like(probabilities).exponential_(generator=generator)
    return ids.gather(-1, (probabilities / waits).argmax(dim=-1, keepdim=True))


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Decode up to the first special token, which ends the text."""
    special = special_ids(tokenizer)
    end = next((index for index, id in enumerate(ids) if id in special), len(ids))
    text: str = tokenizer.decode(ids[:end])
    return text
