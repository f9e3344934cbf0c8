"""One optimizer step: the gradient of a whole batch, clipping, the update.

With the kernels of `fused` both halves, gradient and update, are captured as CUDA graphs at a process's second step
(the twelfth if gradients are averaged over a group) and replayed from then on, so that the GPU does not wait for the
host to launch a thousand kernels. The host still reads the loss between the two halves, and skips the update if the
loss is not finite.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_

from smollm.model.llama import LlamaForCausalLM
from smollm.model.sharding import average_gradients, gradient_norm
from smollm.training.assembly import Assembly

_DATA_PARALLEL_WARM_UPS = 11
"""Steps after which DistributedDataParallel has rebuilt its buckets and no longer times itself."""


class _Loss(nn.Module):
    """The model's loss as a module, which DistributedDataParallel asks for."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor, seeds: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.model.training_loss(ids, targets, seeds)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """A context in which `torch._dynamo` is a stand-in, unless it is imported already.

    DistributedDataParallel asks it for one setting, and importing torch's compiler takes seconds at every start.
    """
    if "_dynamo" in vars(torch):
        yield
        return
    vars(torch)["_dynamo"] = SimpleNamespace(utils=SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization"))
    try:
        yield
    finally:
        del vars(torch)["_dynamo"]


class _DataParallelLoss(DistributedDataParallel):
    """The model's loss, whose backward pass averages the gradient over the group; does not import torch's compiler."""

    _inside_ddp_forward = contextmanager(inspect.unwrap(DistributedDataParallel._inside_ddp_forward))

    def __init__(self, model: LlamaForCausalLM) -> None:
        with warnings.catch_warnings(), _without_compiler():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch has another name for the buffers' part
            super().__init__(_Loss(model), broadcast_buffers=False, gradient_as_bucket_view=True)


class Step:
    """Computes gradients and applies updates, alternately."""

    def __init__(self, assembly: Assembly, scaler: torch.amp.GradScaler, gradient_clip: float) -> None:
        """
        Args:
            assembly: model and optimizer; their tensors must not be replaced after the first step.
            scaler: loss scaling, for fp16.
            gradient_clip: largest norm of the gradient.
        """
        self.model, self.optimizer, self.group = assembly.model, assembly.optimizer, assembly.group
        self.hardware, self.micro_batch = assembly.hardware, assembly.micro_batch
        self.scaler, self.gradient_clip = scaler, gradient_clip
        execution = self.model.execution
        # other work cannot use a graph's memory: validation with the plain model would need as much again
        self._captures = self.hardware.captures and execution.kernels is not None
        is_data_parallel = self.group.size > 1 and not execution.sharded
        self._data_parallel_loss = self._make_data_parallel() if is_data_parallel else None
        self._warm_ups = _DATA_PARALLEL_WARM_UPS if is_data_parallel else 1
        self._graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None = None

    def gradient(self, batch: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Compute the gradient of `batch` into the parameters' `grad`.

        Args:
            batch: inputs and targets, (2, B, T) int64, in pinned memory if the device is a GPU.
            seeds: of the dropout masks, (B,) int64, if there is dropout.

        Returns:
            (2,), on the device and overwritten by the next call: this process's mean loss, and the norm of the whole
            gradient before clipping.
        """
        if self._captures and self._warm_ups == 0 and self._graphs is None:
            self._capture(batch, seeds)
        if self._graphs is None:
            self._loss_and_norm = self._gradient(batch.to(self.hardware.device, non_blocking=True), seeds)
        else:
            self._batch.copy_(batch, non_blocking=True)
            if self._seeds is not None and seeds is not None:
                self._seeds.copy_(seeds, non_blocking=True)
            self._graphs[0].replay()
        return self._loss_and_norm

    def update(self, rate: float, skip: bool = False) -> None:
        """Clip the gradient, step with learning rate `rate`, clear the gradient.

        With `skip` no weight and no moment changes: fp16's loss scale was too large, and is lowered.
        """
        self.optimizer.set_learning_rate(rate)
        if self._graphs is None:
            if not skip:  # the scaler alone would skip only the optimizer whose gradient overflowed
                self._update()
            self.scaler.update()
            self.optimizer.zero_grad()
            self._warm_ups = max(0, self._warm_ups - 1)
        else:
            self._graphs[1].replay()  # the next gradient overwrites this one

    def _gradient(self, batch: Tensor, seeds: Tensor | None = None) -> Tensor:
        inputs, targets = (ids.split(self.micro_batch) for ids in batch)
        seeds_of = [None] * len(inputs) if seeds is None else torch.split(seeds.to(batch.device), self.micro_batch)
        total = torch.zeros((), device=self.hardware.device)
        for index, micro_batch in enumerate(zip(inputs, targets, seeds_of, strict=True)):
            with self._gradient_sync(is_last=index == len(inputs) - 1):
                with self.hardware.autocast():
                    objective, loss = (self._data_parallel_loss or self.model.training_loss)(*micro_batch)
                self.scaler.scale(objective / len(inputs)).backward()
            total += loss.detach() / len(inputs)
        for part in self.optimizer.parts:
            self.scaler.unscale_(part)
        return torch.stack((total, gradient_norm(self.model)))

    def _make_data_parallel(self) -> DistributedDataParallel:
        if self.model.execution.compiled:
            torch._dynamo.config.optimize_ddp = False  # it would split graphs that are small enough already
        # DDP accumulates gradients on the stream it is created on; a step is never captured on the default stream
        stream = torch.cuda.Stream() if self._captures else None  # type: ignore[no-untyped-call]
        if stream is not None:  # the steps before the capture run on another stream, which torch would warn about
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        with torch.cuda.stream(stream):
            return _DataParallelLoss(self.model)

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager[None]:
        """A context in which gradients are averaged over the group, but only for the last micro-batch of a step."""
        if self.model.execution.sharded:
            average_gradients(self.model, is_last)
        return nullcontext() if is_last or self._data_parallel_loss is None else self._data_parallel_loss.no_sync()

    def _update(self) -> None:
        clip_grads_with_norm_(self.model.parameters(), self.gradient_clip, self._loss_and_norm[1])
        for part in self.optimizer.parts:
            self.scaler.step(part)

    def _capture(self, batch: Tensor, seeds: Tensor | None) -> None:
        """Capture both halves; earlier steps have allocated everything that outlives a step, such as the moments."""
        self._batch = batch.to(self.hardware.device)
        self._seeds = None if seeds is None else seeds.to(self.hardware.device)
        graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # other threads keep using the GPU: one writes checkpoints
        with torch.cuda.graph(graphs[0], capture_error_mode="thread_local"):
            self._loss_and_norm = self._gradient(self._batch, self._seeds)
        with torch.cuda.graph(graphs[1], pool=graphs[0].pool(), capture_error_mode="thread_local"):
            self._update()
        self._graphs = graphs
