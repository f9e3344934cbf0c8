#!/usr/bin/env bash
# The entry point of the image: clone its repository into the volume unless that has one, and run a command there.
set -euo pipefail
if [ ! -e smollm ]; then
  rm -rf smollm.part
  git clone --quiet /opt/smollm smollm.part
  mv smollm.part smollm
fi
cd smollm
exec "$@"
