"""Starts the processes that train one model together, and ends them together.

DVC starts a stage once. Where several processes are to train, that process becomes torchrun's agent: it starts the
stage again once per process, restarts all of them when one is killed, and reports in one line why they ended if they
fail. torchrun's settings for several machines come from the environment, under torchrun's names (PET_NNODES,
PET_RDZV_ENDPOINT and so on). A process that torchrun itself started joins the group right away.
"""

import json
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError

from smollm.config.runtime import RuntimeConfig
from smollm.device.group import Group
from smollm.device.hardware import count_processes
from smollm.errors import PipelineError, TrainingError
from smollm.operate.worker import REPORT, run_worker
from smollm.state.state_lock import LEADER

_JOIN_SECONDS = 600
"""How long machines wait for each other by default: torchrun's own figure (join_timeout in PET_RDZV_CONF)."""

_ANSWER_SECONDS = 20
"""How much longer the agent waits before it concludes that the program at the port is not torchrun."""


def run(stage: str, runtime: RuntimeConfig, sequences: int, work: Callable[[Group], None]) -> None:
    """Call `work` in every process of the stage's group, which may be this process alone.

    Args:
        stage: its name, which is also the name of its module in `stages`.
        runtime: says how many processes.
        sequences: per step; the number of processes divides it.
        work: called with the group.

    Raises:
        PipelineError: the first error of `work` in any process, or why the processes ended.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        run_worker(runtime, work)
    processes = count_processes(runtime, sequences)
    if processes == 1 and "PET_NNODES" not in os.environ:
        work(Group.single())
    else:
        _run_agent(stage, processes, runtime.max_restarts)


def count_restarts(group: Group) -> int:
    """How many times the processes of `group` have been restarted because one of them ended; every rank asks at once.

    Only the agent of the machine where one ended counts the restart; the others may see just a new rendezvous.
    """
    return group.all_reduce(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), max)


def _run_agent(stage: str, processes: int, restarts: int) -> None:
    """Start the stage's processes on this machine, and return when they have all succeeded."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the one-line error says it all
    is_alone = "PET_NNODES" not in os.environ
    with tempfile.TemporaryDirectory() as directory:
        arguments = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", f"--log-dir={directory}"]
        if is_alone:
            # by address: in many containers the machine's own name does not resolve
            arguments += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
        _set_defaults(processes, is_alone)
        os.environ[LEADER] = str(os.getpid())
        if not is_alone:
            _limit_rendezvous(stage, Path(directory))
        try:
            torchrun.run(torchrun.parse_args([*arguments, "-m", f"stages.{stage}"]))  # type: ignore[no-untyped-call]
        except (ChildFailedError, SignalException, RendezvousError, ValueError, torch.distributed.DistError) as error:
            raise _reported_error(Path(directory)) or TrainingError(f"{stage}: {_describe(error)}") from None


def _set_defaults(processes: int, is_alone: bool) -> None:
    """Set the environment of the processes, except for what the user has set."""
    defaults = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes)),
        # a store that outlives a restart would hand out the addresses of the killed processes
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # a stop is followed by a checkpoint
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",
        # other signals end the agent as they would a single process, or are ignored (`nohup`)
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT",
    }
    if is_alone:
        defaults["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _limit_rendezvous(stage: str, directory: Path) -> None:
    """End this process if machines have not met in time: torchrun waits forever for a peer that is not torchrun.

    Args:
        stage: named in the error.
        directory: torchrun's log directory, which gets an entry once the machines have met.

    Raises:
        TrainingError: PET_NNODES is not one number.
    """
    nodes, settings = os.environ["PET_NNODES"], os.environ.get("PET_RDZV_CONF", "")
    if not nodes.isdecimal():
        raise TrainingError(f"{stage}: PET_NNODES must be the number of machines, got {nodes!r}; set it to one number")
    limit = re.search(r"join_timeout=(\d+)", settings)
    seconds = int(limit[1]) if limit else _JOIN_SECONDS
    if "read_timeout" not in settings:  # its default gives a machine that starts later one minute
        os.environ["PET_RDZV_CONF"] = f"{settings},read_timeout={seconds}".lstrip(",")

    def end() -> None:
        if directory.exists() and not any(directory.iterdir()):
            sys.stderr.write(f"\nERROR: {stage}: {_no_rendezvous('no answer')}\n")
            directory.rmdir()
            os._exit(1)  # the main thread is inside torch and cannot be interrupted

    timer = threading.Timer(seconds + _ANSWER_SECONDS, end)
    timer.daemon = True
    timer.start()


def _describe(error: Exception) -> str:
    """What happened, and what to do; the traceback of a process that failed first goes to stderr."""
    go_on = "`dvc repro` continues from the last checkpoint"
    if isinstance(error, ChildFailedError):
        # ranks that lose a peer fail as well, within the same second
        rank, failure = min(error.failures.items(), key=lambda item: (item[1].exitcode > 0, _failed_at(item[1])))
        record = failure.error_file_data["message"]
        if failure.exitcode < 0:
            event = f"was killed by {failure.signal_name()}"
        elif isinstance(record, dict):
            sys.stderr.write(record["extraInfo"]["py_callstack"])
            event = f"failed: {record['message']}"
        else:
            event = f"ended with exit code {failure.exitcode}"
        return f"rank {rank} {event}; no restarts left (runtime.max_restarts); {go_on}"
    if isinstance(error, SignalException):
        return f"stopped by {error.sigval.name}; {go_on}"
    if isinstance(error, RendezvousTimeoutError):
        where, nodes = os.environ.get("PET_RDZV_ENDPOINT"), os.environ.get("PET_NNODES")
        return f"fewer than {nodes} machines (PET_NNODES) joined at {where} in time; start the stage on all of them"
    if isinstance(error, ValueError):
        return f"torchrun refuses its settings (PET_...): {error}; correct them"
    reason = error.__cause__ or error
    return _no_rendezvous(next(iter(str(reason).splitlines()), type(reason).__name__))


def _failed_at(failure: ProcessFailure) -> float:
    """When a process failed: the time that it recorded, else torchrun's, in whole seconds."""
    record = failure.error_file_data["message"]
    return float(record["extraInfo"]["timestamp"] if isinstance(record, dict) else failure.timestamp)


def _no_rendezvous(answer: str) -> str:
    where = os.environ.get("PET_RDZV_ENDPOINT", "127.0.0.1")
    return f"the machines could not meet at {where} (PET_RDZV_ENDPOINT): {answer}; is the port free and open?"


def _reported_error(directory: Path) -> PipelineError | None:
    """The user error that a process on this machine left below torchrun's log directory, if one did."""
    path = next(directory.rglob(REPORT), None)
    if path is None:
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    error = PipelineError(report["message"])
    error.exit_code = report["exit_code"]
    return error
