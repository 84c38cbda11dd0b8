#!/bin/bash
# What runs on a virtual machine of the level "nodes", in namespaces of its own. rig/nodes.py and rig/images.py
# call it:
#   machine.sh enter           joins the node's cgroups, then namespaces, then boots as their PID 1
#   machine.sh bake STORE TAR… imports images into a containerd store, on a machine with nothing else
# Of the environment it reads RIG_* only.
set -eu

export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
OWN_CG='$3 ~ /^cgroup/ && $2 ~ "^/sys/fs/cgroup"'

enter() {
    local cgroup
    for cgroup in $RIG_CGROUPS; do echo $$ > "$cgroup/cgroup.procs"; done
    # A cgroup namespace's root is where its maker is.
    exec unshare --cgroup -- bash "$0" isolate
}

isolate() {
    local cgroup
    for cgroup in $RIG_CGROUPS; do echo $$ > "$cgroup/system/cgroup.procs"; done
    # --kill-child: the machine dies with this process, which the rig's keeper watches over.
    exec unshare --net --mount --pid --uts --ipc --fork --mount-proc --kill-child --propagation private -- \
        bash "$0" boot
}

see_own_cgroups() {
    local mounted at kind options
    mounted=$(awk "$OWN_CG"'{print $2, $3, $4}' /proc/mounts)
    while read -r at kind options; do
        options=$(tr , '\n' <<< "$options" | grep -vxE 'rw|ro|relatime|nosuid|nodev|noexec|nsdelegate|memory_.*' | paste -sd, || true)
        case $options in name=*) options=none,$options ;; esac
        umount "$at"
        mount -t "$kind" ${options:+-o "$options"} "$kind" "$at"
    done <<< "$mounted"
}

# The machine's / is the host's, with /var and /run of its own. /run/rig has what it is given: these paths hold
# wherever the rig's cache is.
see_own_files() {
    mkdir -p "$RIG_NODE/run"
    mount -t tmpfs -o mode=755 tmpfs "$RIG_NODE/run"
    mkdir -p "$RIG_NODE"/run/{lock,netns,rig/node,rig/bin}
    mount --bind "$RIG_NODE" "$RIG_NODE/run/rig/node"
    mount --bind "$RIG_BIN" "$RIG_NODE/run/rig/bin"
    mount --rbind "$RIG_NODE/run" /run
    cd /run/rig/node
    mount --bind /run/rig/node/var /var
    if [ -s /etc/machine-id ]; then mount --bind /run/rig/node/machine-id /etc/machine-id; fi
    if [ -f /etc/resolv.conf ]; then mount --bind /run/rig/node/resolv.conf /etc/resolv.conf; fi
}

# kubelet sets these for the whole kernel. It is shown files with the values it wants; the host's stay as they are.
see_own_sysctls() {
    local setting file
    for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
        kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
        file=/run/rig/node/sysctl/${setting%%=*}
        mkdir -p "${file%/*}"
        echo "${setting#*=}" > "$file"
        mount --bind "$file" "/proc/sys/${setting%%=*}"
    done
}

# What kubelet takes for the machine's size.
pretend_size() {
    local system=/sys/devices/system i
    if [ -n "${RIG_MEMORY_KIB:-}" ]; then
        sed "s/^MemTotal:.*/MemTotal: $RIG_MEMORY_KIB kB/" /proc/meminfo > meminfo
        mount --bind meminfo /proc/meminfo
    fi
    [ -n "${RIG_CPUS:-}" ] || return 0
    mount -t tmpfs tmpfs $system/node
    mount -t tmpfs tmpfs $system/cpu
    mkdir $system/node/node0
    sed "s/^/Node 0 /" /proc/meminfo > $system/node/node0/meminfo
    for i in $(seq 0 $((RIG_CPUS - 1))); do
        mkdir -p "$system/cpu/cpu$i/topology"
        echo "$i" > "$system/cpu/cpu$i/topology/core_id"
        echo 0 > "$system/cpu/cpu$i/topology/physical_package_id"
        ln -s "../../cpu/cpu$i" "$system/node/node0/cpu$i"
    done
    echo "0-$((RIG_CPUS - 1))" | tee $system/cpu/online $system/cpu/present > $system/cpu/possible
}

see_network() {
    local setting
    ip link set lo up
    until ip link show eth0 > /dev/null 2>&1; do sleep 0.01; done # rig/nodes.py plugs it in
    ip addr add "$RIG_ADDRESS/24" dev eth0
    ip link set eth0 up
    ip route add default via "$RIG_ROUTER"
    for setting in ipv4/ip_forward=1 ipv4/conf/all/send_redirects=0 ipv4/conf/default/send_redirects=0 \
        ipv4/conf/eth0/send_redirects=0 bridge/bridge-nf-call-iptables=1; do
        if [ -e "/proc/sys/net/${setting%%=*}" ]; then echo "${setting#*=}" > "/proc/sys/net/${setting%%=*}"; fi
    done
}

start_containerd() { # CONFIGURATION LOG
    containerd --config "$1" > "$2" 2>&1 &
    containerd_pid=$!
    until ctr version > /dev/null 2>&1; do
        kill -0 $containerd_pid || { cat "$2"; exit 1; }
        sleep 0.02
    done
}

# As a service manager does: what ends by itself is started again, twice as late each time, up to 5 s. kubelet counts
# on it where something is not there yet, such as the CRI of a containerd that answers; and inotify instances, of which
# all machines here share a few, may be there later. What is killed stays dead, as a test may want it.
keep_running() { # NAME COMMAND…
    local name=$1 tenths=1 code
    shift
    while :; do
        "$@" >> "$name.log" 2>&1 &
        echo $! > "$name.pid"
        code=0
        wait $! || code=$?
        ((code < 128)) || break
        sleep "$((tenths / 10)).$((tenths % 10))"
        tenths=$((tenths < 25 ? tenths * 2 : 50))
    done
    touch "$name.ended"
}

run_kubelet() {
    keep_running kubelet /run/rig/bin/kubelet --config kubelet.json --kubeconfig kubelet.kubeconfig \
        --hostname-override "$RIG_NAME" --node-ip "$RIG_ADDRESS" --node-labels "$RIG_LABELS" \
        --register-with-taints "$RIG_TAINTS" --provider-id "$RIG_PROVIDER_ID" \
        ${RIG_CLOUD_PROVIDER:+--cloud-provider="$RIG_CLOUD_PROVIDER"} --v=2
}

boot() {
    hostname "$RIG_NAME"
    see_own_cgroups
    see_own_files
    see_own_sysctls
    pretend_size
    see_network
    keep_running containerd containerd --config containerd.toml &
    until ctr version > /dev/null 2>&1; do sleep 0.02; done
    run_kubelet &
    keep_running proxy /run/rig/bin/kube-proxy --config proxy.json &
    trap 'exit 0' TERM
    # PID 1 stays, and reaps; a kubelet that was killed stays dead until somebody asks.
    trap 'run_kubelet &' HUP
    while :; do sleep infinity & wait $! || true; done
}

bake() {
    local store=$1 tar
    shift
    # The tars may be below /run: take hold of them first.
    local open=()
    for tar; do exec {descriptor}< "$tar"; open+=("$descriptor"); done
    exec {here}< "$store"
    mkdir -p "$store.run"
    mount -t tmpfs tmpfs "$store.run"
    mkdir -p "$store.run/store"
    mount --bind "$store" "$store.run/store"
    mount --rbind "$store.run" /run
    printf 'version = 2\nroot = "/run/store"\ndisabled_plugins = ["io.containerd.grpc.v1.cri", %s]\n' \
        '"io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"' \
        > /run/containerd.toml
    start_containerd /run/containerd.toml /run/containerd.log
    for descriptor in "${open[@]}"; do ctr --namespace k8s.io images import - <&"$descriptor" > /dev/null; done
    ctr --namespace k8s.io images list -q
    kill "$containerd_pid"
    wait "$containerd_pid" || true
}

"$@"
