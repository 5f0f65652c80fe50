#!/bin/bash
# A real SLURM on this machine, for one test run: installs Debian's packages (as root), starts munge,
# slurmctld and slurmd on localhost, runs the tests beside this file, and ends them again.
#
#   tests/cluster/run.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v slurmctld >/dev/null || {
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends slurm-wlm munge
}
place=$(mktemp -d -t slurm.XXXXXX)
host=$(hostname -s)
cores=$(nproc)
export SLURM_CONF=$place/slurm.conf
cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge.socket,cred_expire=5
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=15
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=6000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
mkdir "$place/state" "$place/spool"
dd if=/dev/urandom of="$place/munge.key" bs=128 count=1 status=none
chmod 600 "$place/munge.key"
munged --force --key-file="$place/munge.key" --socket="$place/munge.socket" \
  --pid-file="$place/munged.pid" --seed-file="$place/munge.seed" --log-file="$place/munged.log"
slurmctld
slurmd
trap 'for name in slurmd slurmctld munged; do kill "$(cat "$place/$name.pid")" || true; done' EXIT
for _ in $(seq 30); do sinfo -h -o %T | grep -q idle && break; sleep 1; done
sinfo
python -m pytest -n 0 -v tests/cluster "$@"
