#!/usr/bin/env bash
# One run by two machines: two network namespaces of this one, joined by a cable, each with a name, a network, a home and a
# working folder of its own.
#
#     tests/app/two_machines.sh FOLDER WORDS...     # torchrun … -m kshot.app run WORDS, in FOLDER/kshot-a and FOLDER/kshot-b
#
# As on Debian, each machine resolves its own name to 127.0.1.1 and that of the other to its address. It needs the right to
# add network namespaces, so mostly root. What the machines say goes to FOLDER/kshot-a.log and kshot-b.log, and the exit code
# is 1 if one of them failed. $PYTHON is the Python, by default that of .venv.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-$PWD/.venv/bin/python} folder=$1
export PYTHONPATH=$PWD:$PWD/tests OMP_NUM_THREADS=1
shift

a=kshot-a-$$ b=kshot-b-$$
clean() {
    ip netns del "$a" || true
    ip netns del "$b" || true
    rm -rf "/etc/netns/$a" "/etc/netns/$b"
}
trap clean EXIT
ip netns add "$a"
ip netns add "$b"
ip link add eth0 netns "$a" type veth peer name eth0 netns "$b"
ip -n "$a" address add 10.77.0.1/24 dev eth0
ip -n "$b" address add 10.77.0.2/24 dev eth0
for machine in "$a" "$b"; do
    ip -n "$machine" link set eth0 up
    ip -n "$machine" link set lo up
    mkdir -p "/etc/netns/$machine"
done
printf '127.0.0.1 localhost\n127.0.1.1 kshot-a\n10.77.0.2 kshot-b\n' >"/etc/netns/$a/hosts"
printf '127.0.0.1 localhost\n127.0.1.1 kshot-b\n10.77.0.1 kshot-a\n' >"/etc/netns/$b/hosts"

on() { # NAMESPACE NAME COMMAND...: run a command on a machine
    local namespace=$1 name=$2 place=$folder/$2
    shift 2
    mkdir -p "$place/tmp"
    cd "$place"
    HOME=$place TMPDIR=$place/tmp XDG_CACHE_HOME=$place/cache \
        ip netns exec "$namespace" unshare --uts sh -c 'hostname "$0"; exec "$@"' "$name" "$@" >>"$folder/$name.log" 2>&1
}

# The same command on each machine.
export GLOO_SOCKET_IFNAME=eth0 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
torchrun=("$python" -W ignore -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --max-restarts 3
    --rdzv-backend c10d --rdzv-endpoint kshot-a:29500)
(on "$a" kshot-a "${torchrun[@]}" -m kshot.app run "$@") & of_a=$!
(on "$b" kshot-b "${torchrun[@]}" -m kshot.app run "$@") & of_b=$!
failed=0
wait $of_a || failed=1
wait $of_b || failed=1
exit $failed
