#!/bin/sh
# Grades the shards of a batch on several hosts with GNU parallel, and merges their results.
#
#   parallel.sh EXERCISE.toml LIST SHARDS [HOST...]
#
# LIST has the path of a submission in each line. Without HOST, all shards run on this host. A HOST is a name for ssh; `:` is this
# host. All hosts need `vmm`, the exercise and the submissions under the same paths, such as on a shared file system.
# The environment may have VMM (the program), SEED, and RESULTS (a directory on the shared file system).
set -eu
exercise=$1 list=$2 shards=$3
shift 3
vmm=${VMM:-vmm} seed=${SEED:-$(date +%s)} results=${RESULTS:-results}
hosts=$(IFS=,; echo "${*:-:}")
mkdir -p "$results"

# 0 and 111 have grades. The other shards go on where they were if this script is started again with the same SEED.
parallel --will-cite --sshlogin "$hosts" --workdir "$PWD" --jobs 1 --joblog "$results/jobs.log" \
    "'$vmm' grade '$exercise' --from '$list' --shard {}/$shards --seed $seed \
        --results '$results/{}.jsonl' --resume >/dev/null; test \$? -eq 0 -o \$? -eq 111" \
    ::: $(seq "$shards") || echo "parallel.sh: some shards failed: $results/jobs.log says which" >&2

set --
for shard in $(seq "$shards"); do set -- "$@" "$results/$shard.jsonl"; done
exec "$vmm" grade merge "$@" --feedback "$results/feedback" --format "csv=$results/grades.csv" --format "jsonl=$results/grades.jsonl"
