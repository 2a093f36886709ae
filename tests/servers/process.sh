# The temporary directory, and the processes in it: started, waited for with a deadline, and stopped whatever happens.

directory=
variables= # a file of lines NAME='value' for the tests

if ((EUID == 0)); then
    sudo=()
    # The databases refuse to run as root, or should.
    unprivileged=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    owner=nobody:nogroup
else
    sudo=(sudo -n)
    unprivileged=()
    owner=$(id -u):$(id -g)
fi

fail() {
    echo "tests/run: $*" >&2
    exit 1
}

require_rights() {
    ((EUID == 0)) || sudo -n true 2>/dev/null ||
        fail "the tests on Postfix and Exim need root, or sudo without a password; what needs no server:" \
            "tests/run --embedded-only"
}

prepare_directory() {
    directory=$(mktemp -d "${TMPDIR:-/tmp}/mailqueue-tests.XXXXXX")
    variables=$directory/variables
    mkdir "$directory/ports"
    # Several users run servers in here, and each looks after its own directory.
    chmod 711 "$directory"
    : >"$variables"
    trap clean_up EXIT
    guard </dev/null >/dev/null 2>&1 &
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

clean_up() {
    local status=$?
    trap '' INT TERM HUP
    stop_all
    [[ -z ${MAILQUEUE_TEST_KEEP-} ]] || echo "tests/run: logs and data are left in $directory" >&2
    exit "$status"
}

# Cleans up after a script that was killed.
guard() {
    trap - EXIT
    trap '' INT TERM HUP
    tail --pid=$$ -f /dev/null
    stop_all
}

# start_all NAME…: runs the functions start_NAME side by side. Each starts its server and returns once that is ready. One
# that fails is run a second time, by itself: side by side, a slow machine can keep a server from starting in time.
start_all() {
    local name
    local -A jobs=()
    for name; do
        start "$name"
        jobs[$name]=$!
    done
    for name; do
        wait "${jobs[$name]}" && continue
        echo "tests/run: $name did not start; second try" >&2
        set_aside "$name"
        start "$name"
        wait $! || fail "$name did not start"
    done
}

# start NAME: runs start_NAME in the background.
start() {
    mkdir "$directory/$1"
    (
        trap - EXIT
        "start_$1" "$directory/$1"
    ) &
}

# set_aside NAME: stops what a failed start has left running, and keeps its logs under another name.
set_aside() {
    local home
    for home in "$directory/$1" "$directory/$1"-*; do
        [[ -d $home ]] || continue
        stop "$home/pid"
        "${sudo[@]}" mv "$home" "$home.failed"
    done
}

# background DIRECTORY COMMAND…: starts a server whose output goes to DIRECTORY/log, and notes it for stop_all. With
# setsid, because Ctrl-C is for this script alone, and so that the whole process group can be stopped.
background() {
    local directory=$1
    shift
    setsid "$@" >>"$directory/log" 2>&1 </dev/null &
    echo "$!" >"$directory/pid"
}

# wait_for_line DIRECTORY PATTERN [FILE]: until the server in DIRECTORY has logged a line like PATTERN.
wait_for_line() {
    local log=${3-$1/log} deadline=$((SECONDS + 60)) pid
    pid=$(<"$1/pid")
    until grep -qE "$2" "$log" 2>/dev/null; do
        if [[ ! -d /proc/$pid ]] || ((SECONDS > deadline)); then
            not_ready "$1" "$pid" "$log" >&2
            return 1
        fi
        sleep 0.05
    done
}

# wait_for_port DIRECTORY PORT: until the server in DIRECTORY listens.
wait_for_port() {
    local deadline=$((SECONDS + 60)) pid
    pid=$(<"$1/pid")
    until listens "$2"; do
        if [[ ! -d /proc/$pid ]] || ((SECONDS > deadline)); then
            not_ready "$1" "$pid" "$1/log" >&2
            return 1
        fi
        sleep 0.05
    done
}

# listens PORT: a process listens on this port.
listens() {
    grep -qiE ":$(printf %04X "$1") [0-9A-F]+:0000 0A" /proc/net/tcp /proc/net/tcp6
}

# not_ready DIRECTORY PID LOG: what is known of a server that did not become ready. Postfix says nothing at all when
# another process has its port, so the ports are listed too.
not_ready() {
    local ended=
    [[ -d /proc/$2 ]] || ended=" its process has ended;"
    echo "tests/run: ${1##*/} is not ready;$ended the end of $3:"
    tail -n 20 "$3"
    [[ $3 == "$1/log" ]] || { echo "the end of $1/log:" && tail -n 20 "$1/log"; }
    echo "ports of this run: $(ls "$directory/ports" | xargs)"
    echo "processes that listen:"
    "${sudo[@]}" ss -Hltnp 2>&1 | grep -E ":2[0-9]{4} |not found" || true
}

# export_variable NAME VALUE: for the tests.
export_variable() {
    printf "%s='%s'\n" "$1" "$2" >>"$variables"
}

# exported NAME: the value of a variable that a server which runs already has exported. The last one, if it was started
# twice.
exported() {
    sed -n "s/^$1='\(.*\)'\$/\1/p" "$variables" | tail -n 1
}

# tool DIRECTORY PROGRAM [ARGUMENT…]: a script that runs a program with its libraries, wherever it is from.
tool() {
    local path=$1/${2##*/}
    printf '#!/bin/sh\nexec %s "$@"\n' "${packaged[*]} ${*:2}" >"$path"
    chmod 755 "$path"
    echo "$path"
}

# Runs a command with the servers' variables set, and returns its status.
run_with_servers() {
    (
        set -a
        source "$variables"
        set +a
        "$@"
    )
}

wait_for_interrupt() {
    sleep infinity &
    wait $!
}

# Data is thrown away, so nothing is asked to finish its work.
stop_all() {
    local file
    for file in "$directory"/*/pid; do
        stop "$file"
    done
    [[ -n ${MAILQUEUE_TEST_KEEP-} ]] || "${sudo[@]}" rm -rf "$directory"
}

# stop FILE: kills the process group that a server's file `pid` names.
stop() {
    [[ ! -e $1 ]] || "${sudo[@]}" sh -c "kill -s KILL -- -$(<"$1")" 2>/dev/null || true
}

# A port on loopback on which nothing listens, and that no other call of this run has returned: servers start side by
# side, and a port is free until its server listens. Below the range from which the kernel takes ports for outgoing
# connections, so that it stays free until the server has it.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 10000))
        ! listens "$port" || continue
        # mkdir takes the port: of two calls at the same time it fails for one.
        mkdir "$directory/ports/$port" 2>/dev/null && break
        [[ -d $directory/ports/$port ]] || fail "could not note port $port in $directory/ports"
    done
    echo "$port"
}
