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
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from smollm.config.runtime import RuntimeConfig
from smollm.device.group import Group
from smollm.device.hardware import count_processes, takes_gpus
from smollm.errors import Interrupted, NonFinite, PipelineError, TrainingError, user_error
from smollm.state.lock import LEADER

_VERDICT = "SMOLLM_VERDICT"
"""Names, for the processes, the file that the first error goes to."""

_MET, _LOST = "met", "lost"
"""Files beside it: made by the first process, when the machines have met; what an exchange of theirs failed with."""

_JOIN_SECONDS, _SPARE_SECONDS = 600, 20
"""How long machines wait for each other (torchrun's own figure, PET_RDZV_CONF), and how much longer for any answer."""

_GRACE_SECONDS = 5
"""How long a process lives on when another of its machine has died, or one anywhere has said why all end."""

_done = threading.Event()
"""Set when this process needs the others no longer."""

_RANK_ZERO_SECONDS, _RANK_ZERO_LONG_SECONDS = 90.0, 600.0
"""Seconds in which rank 0 may say better what another process found as well, and tells MLflow."""


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
    processes = count_processes(runtime, sequences)
    if processes == 1 and "PET_NNODES" not in os.environ:
        work(Group.single())
    else:
        _start(stage, processes, runtime.max_restarts)


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
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    # a store that outlives a start still has the addresses of killed processes, which the next would call in vain
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # a checkpoint is on its way to the disk when all are asked to stop
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    # what ends one process by itself ends the agent, and what it ignores (`nohup`) they ignore
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT")
    os.environ[LEADER] = str(os.getpid())
    with tempfile.TemporaryDirectory() as directory:
        arguments = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", f"--log-dir={directory}"]
        if "PET_NNODES" not in os.environ:
            arguments.append("--standalone")
        verdict = Path(directory) / "verdict.json"
        os.environ[_VERDICT] = str(verdict)
        if "PET_NNODES" in os.environ:
            _wait_for_others(stage, verdict.with_name(_MET))
        try:
            torchrun(parse_args([*arguments, "-m", f"stages.{stage}"]))  # type: ignore[no-untyped-call]
            if verdict.exists():
                raise _of_verdict(verdict)
        except (ChildFailedError, SignalException, RendezvousError, ValueError, torch.distributed.DistError) as error:
            if verdict.exists():
                raise _of_verdict(verdict) from None
            why = _why(error, verdict.with_name(_LOST))
            raise TrainingError(f"{stage}: {why}; `dvc repro` goes on from the last checkpoint") from None


def _wait_for_others(stage: str, met: Path) -> None:
    """Wait for other machines as long as for each other's answers, and no longer.

    By itself torchrun gives a machine that is not there yet two minutes, and one that listens at the port and is no
    agent for ever.

    Raises:
        TrainingError: the number of machines is not one number.
    """
    nodes, settings = os.environ["PET_NNODES"], os.environ.get("PET_RDZV_CONF", "")
    if not nodes.isdecimal():
        raise TrainingError(f"{stage}: PET_NNODES must be the number of machines, got {nodes!r}; set it to one number")
    limit = re.search(r"join_timeout=(\d+)", settings)
    seconds = _JOIN_SECONDS if limit is None else int(limit[1])
    if "read_timeout" not in settings:
        os.environ["PET_RDZV_CONF"] = f"{settings},read_timeout={seconds}".lstrip(",")

    def end() -> None:
        time.sleep(seconds + _SPARE_SECONDS)
        if not met.exists() and met.parent.exists():
            sys.stderr.write(f"\nERROR: {stage}: {_no_meeting('no answer')}\n")
            shutil.rmtree(met.parent, ignore_errors=True)
            os._exit(1)

    threading.Thread(target=end, name="meeting", daemon=True).start()


def _why(error: Exception, lost: Path) -> str:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

    if isinstance(error, ChildFailedError):
        # those who lost another fail too, perhaps within the same second
        rank, failure = min(error.failures.items(), key=lambda one: (one[1].exitcode > 0, one[1].timestamp))
        how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"failed with {failure.exitcode}"
        found = f" ({lost.read_text(encoding='utf-8')})" if failure.exitcode > 0 and lost.exists() else ""
        return f"all processes must live, got rank {rank}, which {how}{found} after all restarts (runtime.max_restarts)"
    if isinstance(error, SignalException):
        return f"stopped by {error.sigval.name}"
    where = os.environ.get("PET_RDZV_ENDPOINT", "this machine")
    if isinstance(error, RendezvousTimeoutError):
        nodes = os.environ.get("PET_NNODES", "1")
        return f"{nodes} machines must meet at {where} in time, got fewer; start it on all of them"
    if isinstance(error, ValueError):
        return f"torchrun's settings (PET_...) must be ones that it takes, got {error}; mend them"
    return _no_meeting(_first_line(error.__cause__ or error))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _no_meeting(answer: str) -> str:
    where = os.environ.get("PET_RDZV_ENDPOINT", "this machine")
    return f"the machines must be able to meet at {where} (PET_RDZV_ENDPOINT), got {answer}; is the port free and open?"


def _work(runtime: RuntimeConfig, work: Callable[[Group], None]) -> None:
    """Do `work` as one of the group; its first error ends all of them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # the agent says how all of it ended
    _end_with(int(os.environ.get(LEADER, os.getppid())))
    group: Group | None = None
    try:
        # DVC keeps the outputs of the machine that it runs on
        _verdict().with_name(_MET).touch()
        group = Group.join(is_dvc_here="DVC_ROOT" in os.environ, has_gpu=takes_gpus(runtime))
        _watch(group)
        work(group)
    except Exception as error:
        found = user_error(error)
        if found is None:
            if _is_of_others(error):  # what has happened to them is theirs to say, if it has
                with suppress(OSError):
                    _verdict().with_name(_LOST).write_text(_first_line(error), encoding="utf-8")
            else:
                traceback.print_exc()
            os._exit(1)  # not by way of the exchange with the others, which might wait for them
        _tell(found, group)
    else:
        _done.set()
        group.close()


def _verdict() -> Path:
    """Where the agent finds the first error; of torchrun started by hand, a place of its own."""
    if _VERDICT in os.environ:
        return Path(os.environ[_VERDICT])
    directory = Path(tempfile.gettempdir()) / f"smollm-{os.environ['TORCHELASTIC_RUN_ID']}-{starts_before()}"
    directory.mkdir(exist_ok=True)
    return directory / "verdict.json"


def _tell(error: PipelineError, group: Group | None) -> None:
    """Leave `error` to the agent to say, and have it end all of us, not start us again; then end."""
    _done.set()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the agent, once told, would end this process amid its telling others
    path = _verdict()
    # rank 0 has more to do about what all of them meet: it writes down why, or waits for the disk
    turn = _RANK_ZERO_LONG_SECONDS if isinstance(error, Interrupted | NonFinite) else _RANK_ZERO_SECONDS
    deadline = time.monotonic() + turn
    while group is not None and not group.is_rank_zero and not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    if _VERDICT not in os.environ:
        sys.stderr.write(f"\nERROR: {error}\n")
    text = json.dumps({"message": str(error), "exit_code": error.exit_code})
    _leave(text)
    if group is not None:
        group.announce(text, _GRACE_SECONDS)
    # to the agent a group that was asked to stop has not failed: it would start it anew
    os._exit(0 if isinstance(error, Interrupted) and _VERDICT in os.environ else error.exit_code)


def _leave(verdict: str) -> None:
    """Write down why this machine's processes end, unless that is done, and have the agent end them."""
    path = _verdict()
    draft = path.with_name(f"{os.getpid()}-{threading.get_ident()}.json")
    try:
        draft.write_text(verdict, encoding="utf-8")
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # the disk is full, perhaps that is the verdict
        sys.stderr.write(f"\nERROR: {json.loads(verdict)['message']}\n")
    os.kill(os.getppid(), signal.SIGTERM)


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


def _watch(group: Group) -> None:
    """End this process soon after another of the machine has, or one anywhere has said why all end.

    GPUs wait for one that is gone, and hear no signal.
    """
    others = group.all_gather(os.getpid())[group.rank - group.local_rank :][: group.local_size]

    def watch() -> None:
        with suppress(torch.distributed.DistError):  # the first process, which keeps what is announced, is gone
            while all(map(psutil.pid_exists, others)):
                if (verdict := group.announced()) is not None:
                    _leave(verdict)
                    break
                time.sleep(0.5)
        if not _done.wait(_GRACE_SECONDS):
            os._exit(1)

    threading.Thread(target=watch, name="others", daemon=True).start()
