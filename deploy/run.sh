#!/usr/bin/env bash
# Run a command of the pipeline where a scheduler may take the machine away: `deploy/run.sh make repro`. Start the same
# command again in the same folder, and it continues.
#
# SIGTERM or SIGUSR1 to this script ends the command as Ctrl-C does: the stage finishes its step, saves a checkpoint,
# and DVC waits for it. (On SIGTERM itself DVC would end at once, and leave the stage behind.)
set -uo pipefail
cd "$(dirname "$0")/.." || exit

mkdir -p .dvc/tmp
exec 9>.dvc/tmp/deploy.lock
flock --nonblock 9 || {
  echo "ERROR: only one job may run in $PWD, got a second one; wait for the first, or give this one its own clone" >&2
  exit 1
}
# DVC refuses to run while a process exists that has the PID of one that held this file, and PIDs recur in containers
rwlock=.dvc/tmp/rwlock
while read -r pid; do
  grep -qs dvc "/proc/$pid/cmdline" && rwlock=
done < <(grep -oPs '"pid": \K\d+' "$rwlock")
rm -f "$rwlock"

stop() {
  trap '' TERM USR1 # a second signal would kill the stage while it saves
  kill -INT -- "-$command"
}
trap stop USR1
# Slurm sends SIGTERM to every process of a job, the stage included
if [ -n "${SLURM_JOB_ID-}" ]; then trap : TERM; else trap stop TERM; fi

set -m # a process group of its own
"$@" 9>&- &
command=$!
set +m
while true; do
  wait "$command"
  status=$?
  kill -0 "$command" 2>/dev/null || break # else a signal ended the `wait`
done
while kill -0 -- "-$command" 2>/dev/null; do sleep 1; done # DVC has ended, its stage is still saving
exit "$status"
