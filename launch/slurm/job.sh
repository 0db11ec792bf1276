# What the batch scripts beside this file share: they are submitted from the root of the repository, and source it.
#
# Who gets which signal: that of --signal=B:USR1@... before the time limit this shell alone; TERM at the beginning of
# a preemption's grace period the launchers alone; TERM of scancel, of the time limit and of a requeue by Slurm both.
# So this shell must not requeue once it got TERM: it was cancelled, or Slurm requeues by itself.

usr1=0 term=0
trap usr1=1 USR1 # handlers only set flags: bash runs them between two commands
trap term=1 TERM

starting=60 # seconds in which a launcher may still be importing, and would lose a signal
output=$SLURM_JOB_NAME-$SLURM_JOB_ID

say() {
    printf '%(%F %T)T %s\n' -1 "$*"
}

fail() {
    printf 'error: %s\n' "$*"
    exit 2
}

# launch SCRIPT ARGUMENTS...: runs it on all GPUs of all nodes, or in one process a node without GPU; sets $code
launch() {
    local gpus=${SLURM_GPUS_ON_NODE:-0} backend host port step
    local processes=$((gpus > 0 ? gpus : 1))
    backend=${BACKEND:-$( ((gpus > 0)) && echo machines || echo cpu)}
    [[ -f launch/backends/$backend.yaml ]] || fail "BACKEND=$backend: no launch/backends/$backend.yaml"
    host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    port=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 10000)) # a dying process may hold the last one
    # The launcher passes these signals on, and waits so many seconds before it kills its processes.
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=110
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
    say "start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST: $backend.yaml," \
        "$processes process(es) a node; their output is in $output.NODE.out"
    # The first launcher that ends gives the others half a minute; until it has its handlers it ignores USR1.
    srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=30 \
        --input=none --open-mode=append --output="$output.%N.out" \
        bash -c 'trap "" USR1; exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launch \
        --config_file "launch/backends/$backend.yaml" --num_machines "$SLURM_NNODES" \
        --num_processes $((SLURM_NNODES * processes)) --main_process_ip "$host" --main_process_port "$port" "$@" &
    step=$!
    while kill -0 "$step" 2>/dev/null; do # not wait: a signal that came just before would not end it
        if ((usr1 == 1 && SECONDS >= starting)); then
            usr1=2
            say "the time limit is near: USR1 to the launchers"
            scancel --signal=USR1 "$SLURM_JOB_ID" # not to this shell
        fi
        if ((term == 1)); then # said now: Slurm may kill this shell before the launchers have ended
            term=2
            say "TERM, by scancel, by a preemption or at the time limit: not requeued by this script"
        fi
        sleep 1
    done
    wait "$step"
    code=$?
}

# Whether a preemption ended this start of the job. Its processes may have died of it before they had handlers.
preempted() {
    local job
    job=$(scontrol show job --oneliner "$SLURM_JOB_ID")
    [[ $job =~ \ StartTime=([^ ]+) ]] && local start=${BASH_REMATCH[1]}
    [[ $job =~ \ PreemptTime=([0-9][^ ]*) && ! ${BASH_REMATCH[1]} < $start ]]
}

# Whether a node does not answer. The other nodes' processes end at once then; Slurm notices after its SlurmdTimeout.
node_lost() {
    ((SLURM_NNODES > 1)) && ! timeout 60 srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" \
        --ntasks-per-node=1 --input=none true
}

# requeue WHY: does so unless this shell got TERM.
requeue() {
    ((term)) && return
    say "requeued: $1"
    trap - TERM # with which Slurm ends this start; what is left after it only dies of KillWait
    scontrol requeue "$SLURM_JOB_ID" || exit 1
    exec sleep 60
}

# Ends the job with $code. Its last line is the error, from the file $1 or else as a process printed it.
finish() {
    if ((code == 0)); then
        say "done"
    elif ((term == 0)); then
        say "failed: exit code $code; all output is in $output.NODE.out"
        sed '$ s/^/error: /' "${1:-}" 2>/dev/null || grep -h '^error: ' "$output".*.out | tail -n 1 | grep . ||
            echo "error: no process left a message; see the end of $output.NODE.out"
    fi
    exit "$code"
}

command -v accelerate >/dev/null ||
    fail "accelerate: not found on $HOSTNAME; activate its environment in the marked section of the batch script"
