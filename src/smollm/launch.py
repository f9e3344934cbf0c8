"""One process or many: starts those that train together, by torchrun's agent, and ends as they do.

A stage is a program that DVC starts once. Where several are to train, that process becomes the agent: it starts the
stage again as often as needed, starts all anew when one is killed, and says in one line why they ended where they fail.
torchrun's own settings of several machines are taken from the environment, under torchrun's names (PET_NNODES,
PET_RDZV_ENDPOINT and so on); a process that torchrun itself started is one of the group right away.
"""

import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from smollm.config.fields import Auto
from smollm.config.runtime import DeviceKind, RuntimeConfig
from smollm.errors import Interrupted, NonFinite, PipelineError, TrainingError, user_error
from smollm.group import Group

_VERDICT = "SMOLLM_VERDICT"
"""Names, for the processes, the file that the first error goes to."""

_MET = "met"
"""A file beside it, made by the first process: the machines have met."""

_JOIN_SECONDS, _SPARE_SECONDS = 600, 20
"""How long machines wait for each other (torchrun's own figure, PET_RDZV_CONF), and how much longer for any answer."""

_GRACE_SECONDS = 5
"""How long a process lives on when another of its machine has died."""

_done = threading.Event()
"""Set when this process needs the others no longer."""

_CHIEFS_TURN, _CHIEFS_LONG_TURN = 20.0, 600.0
"""Seconds in which the chief may say better what another process found as well."""


def run(stage: str, runtime: RuntimeConfig, sequences: int, work: Callable[[Group], None]) -> None:
    """Do `work` in every process of the stage's group, of which this one may be the only one.

    Args:
        stage: its name, and that of its module in `stages`.
        runtime: says how many processes.
        sequences: of a step; each process takes as many.
        work: called with the group.

    Raises:
        PipelineError: of the work, from whatever process; or why its processes ended.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _work(runtime, work)
        return
    processes = count(runtime, sequences)
    if processes == 1 and "PET_NNODES" not in os.environ:
        work(Group.alone())
    else:
        _start(stage, processes, runtime.max_restarts)


def count(runtime: RuntimeConfig, sequences: int) -> int:
    """How many processes this machine gets: one a GPU, as far as the sequences of a step can be dealt out evenly.

    Raises:
        TrainingError: there are not as many GPUs as are wanted.
    """
    is_gpu = _takes_gpus(runtime)
    gpus = torch.cuda.device_count() if is_gpu else 0
    if isinstance(runtime.processes, Auto):
        return max(n for n in range(1, max(1, gpus) + 1) if sequences % n == 0)
    has_apple = runtime.device in (DeviceKind.AUTO, DeviceKind.MPS) and torch.backends.mps.is_available()
    if runtime.processes > 1 and has_apple:
        raise TrainingError(
            f"params.yaml: runtime.processes must be 1 on a Mac's GPU, got {runtime.processes}; or set runtime.device "
            "to cpu"
        )
    if is_gpu and runtime.processes > gpus:
        raise TrainingError(
            f"params.yaml: runtime.processes must be at most the {gpus} GPUs of this machine, "
            f"got {runtime.processes}; use auto"
        )
    return runtime.processes


def _takes_gpus(runtime: RuntimeConfig) -> bool:
    return runtime.device in (DeviceKind.AUTO, DeviceKind.CUDA) and torch.cuda.is_available()


def starts_before() -> int:
    """How often the processes of this group were started already, and one of them was killed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _start(stage: str, processes: int, restarts: int) -> None:
    """Be the agent of the stage's processes on this machine."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they would tell all that the one line tells
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    # a store that outlives a start still has the addresses of killed processes, which the next would call in vain
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # a checkpoint is on its way to the disk when all are asked to stop
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    with tempfile.TemporaryDirectory() as directory:
        arguments = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", f"--log-dir={directory}"]
        if "PET_NNODES" not in os.environ:
            arguments.append("--standalone")
        verdict = Path(directory) / "verdict.json"
        os.environ[_VERDICT] = str(verdict)
        _give_up_waiting(stage, verdict.with_name(_MET))
        try:
            torchrun(parse_args([*arguments, "-m", f"stages.{stage}"]))  # type: ignore[no-untyped-call]
            if verdict.exists():
                raise _of_verdict(verdict)
        except (ChildFailedError, SignalException, RendezvousError) as error:
            if verdict.exists():
                raise _of_verdict(verdict) from None
            raise TrainingError(f"{stage}: {_why(error)}; `dvc repro` goes on from the last checkpoint") from None


def _give_up_waiting(stage: str, met: Path) -> None:
    """End where the machines do not meet: torchrun waits for ever for what listens at the port and is no agent."""
    limit = re.search(r"join_timeout=(\d+)", os.environ.get("PET_RDZV_CONF", ""))
    seconds = _JOIN_SECONDS if limit is None else int(limit[1])

    def end() -> None:
        time.sleep(seconds + _SPARE_SECONDS)
        if not met.exists() and met.parent.exists():
            sys.stderr.write(f"\nERROR: {stage}: {_no_meeting('no answer')}\n")
            shutil.rmtree(met.parent, ignore_errors=True)
            os._exit(1)

    threading.Thread(target=end, name="meeting", daemon=True).start()


def _why(error: Exception) -> str:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

    if isinstance(error, ChildFailedError):
        rank, failure = error.get_first_failure()
        how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"failed with {failure.exitcode}"
        return f"all processes must live, got rank {rank}, which {how} after all restarts (runtime.max_restarts)"
    if isinstance(error, SignalException):
        return f"stopped by {error.sigval.name}"
    where = os.environ.get("PET_RDZV_ENDPOINT", "this machine")
    if isinstance(error, RendezvousTimeoutError):
        nodes = os.environ.get("PET_NNODES", "1")
        return f"{nodes} machines must meet at {where} in time, got fewer; start it on all of them"
    return _no_meeting(str(error))


def _no_meeting(answer: str) -> str:
    where = os.environ.get("PET_RDZV_ENDPOINT", "this machine")
    return f"the machines must be able to meet at {where} (PET_RDZV_ENDPOINT), got {answer}; is the port free and open?"


def _work(runtime: RuntimeConfig, work: Callable[[Group], None]) -> None:
    """Do `work` as one of the group; its first error ends all of them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # the agent says how all of it ended
    _end_with(os.getppid())
    group: Group | None = None
    try:
        # DVC keeps the outputs of the machine that it runs on
        _verdict().with_name(_MET).touch()
        group = Group.join(leads="DVC_ROOT" in os.environ, has_gpu=_takes_gpus(runtime))
        _end_without(group)
        work(group)
    except Exception as error:
        found = user_error(error)
        if found is None:
            if not _is_of_others(error):  # what has happened to them is theirs to say
                traceback.print_exc()
            os._exit(1)  # not by way of the exchange with the others, which might wait for them
        _tell(found, group)
    else:
        _done.set()
        group.leave()


def _verdict() -> Path:
    """Where the agent finds the first error; of torchrun started by hand, a place of its own."""
    if _VERDICT in os.environ:
        return Path(os.environ[_VERDICT])
    directory = Path(tempfile.gettempdir()) / f"smollm-{os.getppid()}-{starts_before()}"
    directory.mkdir(exist_ok=True)
    return directory / "verdict.json"


def _tell(error: PipelineError, group: Group | None) -> None:
    """Leave `error` to the agent to say, and have it end all of us, not start us again; then end."""
    _done.set()
    path = _verdict()
    # the chief has more to do about what all of them meet: it writes down why, or waits for the disk
    turn = _CHIEFS_LONG_TURN if isinstance(error, Interrupted | NonFinite) else _CHIEFS_TURN
    deadline = time.monotonic() + turn
    while group is not None and not group.is_chief and not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    if _VERDICT not in os.environ:
        sys.stderr.write(f"\nERROR: {error}\n")
    draft = path.with_name(f"{os.getpid()}.json")
    draft.write_text(json.dumps({"message": str(error), "exit_code": error.exit_code}), encoding="utf-8")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    else:
        if not isinstance(error, Interrupted):  # in which case all stop
            os.kill(os.getppid(), signal.SIGTERM)
    # to the agent a group that was asked to stop has not failed: it would start it anew
    os._exit(0 if isinstance(error, Interrupted) and _VERDICT in os.environ else error.exit_code)


def _is_of_others(error: Exception) -> bool:
    """Whether another process of the group is gone."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _of_verdict(path: Path) -> PipelineError:
    values = json.loads(path.read_text(encoding="utf-8"))
    error = PipelineError(values["message"])
    error.exit_code = values["exit_code"]
    return error


def _end_with(parent: int) -> None:
    """End this process, as a kill would, when the agent is gone: nobody else would."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="agent", daemon=True).start()


def _end_without(group: Group) -> None:
    """End this process soon after another of the machine has: GPUs wait for one that is gone, and hear no signal."""
    others = group.gather(os.getpid())[group.rank - group.local_rank :][: group.local_size]

    def watch() -> None:
        while all(map(psutil.pid_exists, others)):
            time.sleep(0.5)
        if not _done.wait(_GRACE_SECONDS):
            os._exit(1)

    threading.Thread(target=watch, name="others", daemon=True).start()
