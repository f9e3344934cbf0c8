#!/usr/bin/env bash
# For the other scripts to source: `wait_for $child` returns the status of a child, however many signals arrive meanwhile.
wait_for() {
  local status
  while true; do
    wait "$1"
    status=$?
    kill -0 "$1" 2>/dev/null || return $status # else a signal ended the `wait`
  done
}
