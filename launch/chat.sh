#!/usr/bin/env bash
# Talk with a trained model, in a browser or in the terminal; --help says how.
#   launch/chat.sh run=demo                                      a page on this machine
#   launch/chat.sh run=demo --image a.jpg --prompt "What is it?" one answer
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

exec python -m vlm.eval.chat "$@"
