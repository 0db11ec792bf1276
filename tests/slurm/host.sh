#!/bin/bash
# The first process of a host, in namespaces of its own: host.sh NAME FOLDER DAEMON...
name=$1 folder=$2
shift 2
set -e
ulimit -c 0
hostname "$name"
mount --make-rprivate /
mount --bind "$folder/etc" /etc/slurm
mount --bind "$folder/etc/hosts" /etc/hosts
mount --bind "$folder/etc/nsswitch.conf" /etc/nsswitch.conf
ip link set lo up
echo ready
read -r # until the host has its network
set +e
"$@" >>"$folder/log/$name.out" 2>&1 &
while :; do
    wait # as bash, collects whatever has lost its parent
    sleep 3600 &
done
