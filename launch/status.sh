#!/usr/bin/env bash
# The jobs of a run on a cluster: state, last step and loss, why something ended.
#   launch/status.sh run=mine               once
#   launch/status.sh run=mine wait=true     until all have ended; the status is theirs
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m vlm.pipeline.follow "$@"
