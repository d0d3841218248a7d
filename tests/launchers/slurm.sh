#!/usr/bin/env bash
# A real SLURM on the loopback device, for as long as the command that is given runs: slurm.sh COMMAND…
# Needs root; installs Debian's slurmctld, slurmd and munge if they are missing. Where that cannot be done: one line, exit 0.
set -euo pipefail

give_up() { echo "test-slurm skipped: $1"; exit 0; }

[ "$(id -u)" = 0 ] || give_up "it needs root, to install and start SLURM"
if ! command -v slurmctld slurmd munged squeue > /dev/null; then
  command -v apt-get > /dev/null || give_up "SLURM is not installed, and there is no apt-get"
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  install="apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge"
  $install > /dev/null 2>&1 || { apt-get update -qq > /dev/null 2>&1 && $install > /dev/null 2>&1; } ||
    give_up "apt-get cannot install slurmctld, slurmd and munge here"
fi

here=$(mktemp -d /tmp/slurm.XXXXXX)
chmod 755 "$here"
mkdir -m 755 "$here"/{state,spool,log,munge}
host=$(hostname -s)
daemons=()
stop() {
  scancel --quiet --me 2> /dev/null || true
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do kill "${daemons[i]}" 2> /dev/null || true; done
  wait "${daemons[@]}" 2> /dev/null || true
  rm -rf "$here"
}
trap stop EXIT

cat > "$here/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$here/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/log/slurmctld
SlurmdLogFile=$here/log/slurmd
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=short Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
head -c 1024 /dev/urandom > "$here/munge/key"
chmod 600 "$here/munge/key"
munged --force --foreground --socket="$here/munge/socket" --key-file="$here/munge/key" --log-file="$here/log/munged" \
  --pid-file="$here/munge/pid" --seed-file="$here/munge/seed" > /dev/null 2>&1 & daemons+=($!)
export SLURM_CONF="$here/slurm.conf"
for _ in $(seq 50); do [ -S "$here/munge/socket" ] && break; sleep 0.1; done
slurmctld -D -c > /dev/null 2>&1 & daemons+=($!)
slurmd -D > /dev/null 2>&1 & daemons+=($!)
for _ in $(seq 100); do sinfo --noheader --format=%T 2> /dev/null | grep -q idle && break; sleep 0.2; done
if ! sinfo --noheader --format=%T | grep -q idle; then
  tail -n 20 "$here"/log/*
  echo "SLURM did not start" >&2
  exit 1
fi
"$@"
