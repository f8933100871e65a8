#!/usr/bin/env bash
# Tests and measurements of a machine with a CUDA GPU, in at most six minutes; the last lines are rows for RESULTS.md.
#
#     benchmarks/gpu.sh                 # its files go to runs/gpu, or to $OUT
#     DEVICE=cpu benchmarks/gpu.sh      # tries the same commands on small problems without a GPU
#
# $PYTHON is the Python, by default that of .venv; libraries that it lacks are left out of the comparison. Omniglot must
# be in the library before, by `kshot data add omniglot`, where the machine has no network. A part that fails or takes too
# long does not stop the others; the exit code is then 1.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} device=${DEVICE:-cuda} out=${OUT:-runs/gpu}
export PYTHONPATH=$PWD KSHOT_TEST_DEVICE=$device

if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "There is no CUDA GPU here that PyTorch can use: nothing was measured."
    exit 1
fi

peers=(--only "Conv4-64, 5" "sinusoid MLP, 5" --tasks 32 --repeats 5)
omniglot=(--minutes 1.2) largest=() precisions=() tests=()
if [ "$device" = cpu ]; then
    tests=(-k protonet) largest=(--most 1 --size 28) precisions=(--tasks 1 --size 28)
    peers=(--only "MLP, 1" --tasks 2 --repeats 1 --modes loop vmap)
    omniglot=(--minutes 0.2 --set "source={kind: glyphs, ways: 5, shots: 1, queries: 5}" pretrain.steps=2)
    omniglot+=(train.steps_per_round=2 evaluate.num_val_tasks=2 evaluate.num_test_tasks=2)
fi

failed=0 rows=()
part() { # NAME SECONDS COMMAND...: print what a command says, note whether it ended well, and keep its rows
    local name=$1 seconds=$2 said
    shift 2
    echo "== $name"
    said=$(timeout "$seconds" "$@" 2>&1) || { failed=1 && said+=$'\n'"$name failed, or took longer than $seconds s"; }
    echo "$said"
    while IFS= read -r line; do [[ $line == "|"* ]] && rows+=("$line"); done <<<"$said"
}

mkdir -p "$out"
run=$(mktemp -d "$out/omniglot-XXXX")
part tests 95 "$python" -m pytest -q -p no:cacheprovider -m "gpu and not slow" tests/training/test_gpu.py "${tests[@]}"
part peers 80 "$python" benchmarks/peers.py --device "$device" --json "$out/peers.json" "${peers[@]}"
rows+=("" "| what | device | measured | |" "| --- | --- | --- | --- |")
part largest 35 "$python" benchmarks/gpu.py largest --device "$device" "${largest[@]}"
part precisions 35 "$python" benchmarks/gpu.py precisions --device "$device" "${precisions[@]}"
part omniglot 115 "$python" benchmarks/gpu.py omniglot "$run/run" --device "$device" "${omniglot[@]}"
echo "== rows"
printf '%s\n' "${rows[@]}"
exit $failed
