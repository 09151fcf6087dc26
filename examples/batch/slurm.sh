#!/bin/sh
#SBATCH --job-name=vmm-grade
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --output=results/%a.log
#
# Grades a shard of a batch as a task of a Slurm array. From a directory that all nodes see:
#
#   mkdir -p results
#   export EXERCISE=sum.toml LIST=list.txt SEED=7
#   sbatch --wait --array=1-16 slurm.sh
#   vmm grade merge results/*.jsonl --feedback feedback
#
# LIST has the path of a submission in each line. A task that failed goes on where it was if it is submitted again with the same
# SEED. The environment may have VMM (the program), RESULTS (a directory) and OPTIONS of `vmm grade`.
set -u
"${VMM:-vmm}" grade "$EXERCISE" --from "$LIST" --shard auto --seed "$SEED" --jobs "${SLURM_CPUS_PER_TASK:-1}" \
    --results "${RESULTS:-results}/$SLURM_ARRAY_TASK_ID.jsonl" --resume ${OPTIONS:-}
status=$?
# 111 is a batch in which a submission has lost points. For Slurm, that is no failure.
[ "$status" -eq 111 ] || exit "$status"
