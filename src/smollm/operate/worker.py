"""One of several processes that train together: does its part, and ends when the group ends.

The first error that a user can fix, in any rank, ends all of them on all machines with the same line. A lost process
ends its peers, so that their agent restarts all of them.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil
import torch

from smollm.config.runtime import RuntimeConfig
from smollm.device.group import Group
from smollm.device.hardware import takes_gpus
from smollm.errors import Interrupted, NonFinite, PipelineError, user_error
from smollm.state.state_lock import LEADER

REPORT = "report.json"
"""The error that ends the group, in torchrun's log directory of the attempt."""

_GRACE_SECONDS = 5
"""How long a process may take to end once it knows that the group is ending."""

_CLOSE_SECONDS = 60
"""How long a rank that is done may take to leave the group."""

_RANK_ZERO_SECONDS = 10.0
"""How long a failed rank waits for rank 0 to fail as well."""

_RANK_ZERO_REPORT_SECONDS = 600.0
"""How long rank 0 may take from there to report its error: it saves, and informs MLflow."""


def run_worker(runtime: RuntimeConfig, work: Callable[[Group], None]) -> NoReturn:
    """Call `work` in one process of the group, and end the process; the first error in any of them ends all."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # outside the training loop a signal simply ends the process
    watch = _Watch()
    try:
        # DVC keeps the outputs of the machine it runs on
        group = Group.join(is_dvc_here="DVC_ROOT" in os.environ, has_gpu=takes_gpus(runtime))
        watch.follow(group)
        work(group)
    except Exception as error:
        watch.is_ending.set()
        expected = user_error(error)
        if expected is not None:
            watch.report(expected)
        _fail(f"{type(error).__name__}: {error}".splitlines()[0], traceback.format_exc())
    watch.is_ending.set()
    # All outputs are published. A failure from here on would start them all again, but other machines are done.
    with suppress(OSError):  # nobody reads them any more
        sys.stdout.flush()
        sys.stderr.flush()
    timer = threading.Timer(_CLOSE_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()
    group.close()
    os._exit(0)  # an orderly exit aborts where it finds a thread, such as the watch, inside PyTorch


def _fail(message: str, trace: str = "") -> NoReturn:
    """End this process with the reason in torchrun's error file; torchrun restarts the group if restarts are left."""
    details = {"py_callstack": trace, "timestamp": time.time()}
    path = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
    with suppress(OSError):  # a full disk costs the message
        path.with_suffix(".tmp").write_text(json.dumps({"message": {"message": message, "extraInfo": details}}))
        path.with_suffix(".tmp").replace(path)
    os._exit(1)  # an orderly exit might wait for the other processes


class _Watch:
    """A thread that ends its process when the agent or a peer is gone, or when a rank has announced an error.

    A process that waits for a lost peer on the GPU waits forever, and handles no signal.
    """

    def __init__(self) -> None:
        self.is_ending = threading.Event()
        """Set when the main thread is about to end the process anyway."""
        self._agent = os.getppid()
        self._group: Group | None = None
        self._peers: list[int] = []
        self._is_announced = threading.Event()
        self._has_ended_agent, self._ending_agent = False, threading.Lock()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def follow(self, group: Group) -> None:
        """Watch the other processes of this machine, and what any rank announces."""
        self._peers = group.all_gather(os.getpid())[group.rank - group.local_rank :][: group.local_size]
        self._group = group

    def report(self, error: PipelineError) -> NoReturn:
        """Make all ranks, and the agents of all machines, end with `error`; then end this process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the agent sends them once it ends
        report = json.dumps({"message": str(error), "exit_code": error.exit_code})
        if self._group is not None:
            if not self._group.is_rank_zero:
                self._wait_for_rank_zero(self._group, error)
            if not self._is_announced.is_set():
                report = self._group.announce(report, _GRACE_SECONDS)
        self._end_agent(report)
        os._exit(error.exit_code)

    def _wait_for_rank_zero(self, group: Group, error: PipelineError) -> None:
        """Return when rank 0 has announced the error, if it has one too."""
        all_have_it = isinstance(error, Interrupted | NonFinite)
        if not self._is_announced.wait(_RANK_ZERO_SECONDS) and (all_have_it or group.has_rank_zero_failed()):
            self._is_announced.wait(_RANK_ZERO_REPORT_SECONDS)

    def _run(self) -> None:
        try:
            while all(map(psutil.pid_exists, self._peers)):
                if os.getppid() != self._agent:
                    os._exit(1)  # nobody else would end this process
                if self._group is not None and (report := self._group.announced()) is not None:
                    self._end_agent(report)
                    self._group.acknowledge()  # not before: the rank that announced it may take the rendezvous along
                    break
                time.sleep(0.2)
        except torch.distributed.DistError:
            pass  # the rank that serves the store is gone
        self._is_announced.set()
        if not self.is_ending.wait(_GRACE_SECONDS):
            _fail("another process is gone")

    def _end_agent(self, report: str) -> None:
        """Hand `report` to this machine's agent and end it, once, by a signal: after a failure it would restart all."""
        with self._ending_agent:
            if self._has_ended_agent:
                return
            self._has_ended_agent = True
            message = json.loads(report)["message"]
            if LEADER not in os.environ:  # torchrun was started by hand, and would not print it
                sys.stderr.write(f"\nERROR: {message}\n")
                return
            path = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1] / REPORT
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(report)
            except FileExistsError:  # another process did; a second signal would cut the end short
                return
            except OSError:  # the disk is full, which may be what the report says
                sys.stderr.write(f"\nERROR: {message}\n")
                path.unlink(missing_ok=True)
            os.kill(os.getppid(), signal.SIGTERM)
