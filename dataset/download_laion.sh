#!/usr/bin/env bash
# Shards for stage 1 from the links of LAION. How, and all options: download_links.py
# LINKS, SHARDS, PROCESSES and THREADS choose, or --input, --output, --processes and --threads.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${DATASET_ENV:-$here/../.dataset-env}/bin/python"
[ -x "$python" ] || { echo "error: $python: not there; run 'make dataset-env' first" >&2; exit 2; }
exec "$python" "$here/download_links.py" \
  --input "${LINKS:-data/laion_links}" --output "${SHARDS:-data/laion}" \
  --processes "${PROCESSES:-16}" --threads "${THREADS:-128}" "$@"
