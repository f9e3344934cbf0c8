#!/usr/bin/env bash
# Run a command on a machine whose disk does not outlive it: `deploy/spot.sh /state make repro`, where /state is a
# mounted bucket or any other folder that stays. Every minute it gets a copy of what the next machine needs to continue:
# the live states, DVC's cache and MLflow's runs. A copy that is cut short costs its newest checkpoint, no more.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
# shellcheck source=deploy/wait.sh
. deploy/wait.sh
state=$1
shift

command -v rsync >/dev/null || {
  echo "ERROR: rsync must be installed, is not; run \`apt install rsync\`" >&2
  exit 1
}

copy() {
  rsync --archive "$@" 2>/dev/null
  case $? in
    0 | 24) ;; # 24: a file was removed meanwhile
    *) echo "WARNING: $state has not got all of ${*: -2:1} this time" >&2 ;;
  esac
}

save() {
  # The journals go last, so that they know all steps of the checkpoints and of MLflow's runs. What MLflow has acknowledged
  # (delivery.json) goes before its database, which then has at least that.
  copy --exclude=/*/*/journal.jsonl --exclude=/*/*/complete .resume/ "$state/.resume/"
  copy --exclude='mlflow.db*' mlruns/ "$state/mlruns/"
  python3 - "$state/mlruns/mlflow.db" <<'EOF' # SQLite's own copy, since a run may be writing
import os, sqlite3, sys
if os.path.exists("mlruns/mlflow.db"):
    with sqlite3.connect(sys.argv[1] + ".part") as target:
        sqlite3.connect("mlruns/mlflow.db").backup(target)
    os.replace(sys.argv[1] + ".part", sys.argv[1])
EOF
  copy --include='*/' --include=journal.jsonl --include=complete --exclude='*' .resume/ "$state/.resume/"
  copy --delete --existing --ignore-existing .resume/ "$state/.resume/" # removes what is gone, copies nothing
  copy .dvc/cache/ "$state/.dvc/cache/"
  for result in dvc.lock params.yaml reports; do
    if [ -e "$result" ]; then copy "$result" "$state/"; fi
  done
}

for kept in .resume .dvc/cache mlruns; do
  mkdir -p "$kept" "$state/$kept"
  rsync --archive "$state/$kept/" "$kept/" || exit
done
while sleep "${SAVE_SECONDS:-60}"; do save; done &
saving=$!
trap 'kill -TERM $run' TERM
deploy/run.sh "$@" &
run=$!
wait_for $run
status=$?
kill $saving
wait $saving 2>/dev/null
save
exit "$status"
