#!/usr/bin/env bash
# Run every stage in order; overrides are handed to each. A stage whose artifact is whole returns at once, so running
# this again is how to resume.
#   launch/all.sh                                 the embedded demo, on a CPU
#   launch/all.sh run=mine experiment=mine        a recipe of your own
#   launch/all.sh … +cluster=slurm_a100x4         as jobs, each after those it reads; wait=true follows them
#   launch/all.sh … preflight=true                only says whether each stage fits and how long all of it takes
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

case " $* " in
    *" preflight=true "* | *" preflight=sweep "*) # every stage has its say, also after one that does not fit
        status=0
        for stage in stages/[0-9][0-9]_*.py; do
            python "$stage" "$@" || status=$?
        done
        exit $status
        ;;
esac

case " $*" in
    *" experiment="* | *" model="* | *" data="* | *" --"* | *" -h"*) ;; # not the demo, or a question
    *) python -m vlm.demo ;;                                            # made on first use, like a download
esac

case " $*" in
    *" preflight=true"* | *" preflight=sweep"*) ;;
    *" +cluster="*) exec python launch/submit.py "$@" ;;
esac

for stage in stages/[0-9][0-9]_*.py; do
    python "$stage" "$@"
done
