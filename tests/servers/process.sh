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

# start_all NAME…: runs the functions start_NAME side by side. Each starts its server and returns once that is ready.
start_all() {
    local name
    local -A jobs=()
    for name; do
        mkdir "$directory/$name"
        (
            trap - EXIT
            "start_$name" "$directory/$name"
        ) &
        jobs[$name]=$!
    done
    for name; do
        wait "${jobs[$name]}" || fail "$name did not start"
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
            echo "tests/run: ${1##*/} is not ready; the end of $log:" >&2
            tail -n 20 "$log" >&2
            return 1
        fi
        sleep 0.05
    done
}

# export_variable NAME VALUE: for the tests.
export_variable() {
    printf "%s='%s'\n" "$1" "$2" >>"$variables"
}

# exported NAME: the value of a variable that a server which runs already has exported.
exported() {
    sed -n "s/^$1='\(.*\)'\$/\1/p" "$variables"
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
        [[ ! -e $file ]] || "${sudo[@]}" sh -c "kill -s KILL -- -$(<"$file")" 2>/dev/null || true
    done
    [[ -n ${MAILQUEUE_TEST_KEEP-} ]] || "${sudo[@]}" rm -rf "$directory"
}

# A port on loopback on which nothing listens. Below the range from which the kernel takes ports for outgoing
# connections, so that it stays free until the server has it.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 10000))
        grep -qiE ":$(printf %04X "$port") [0-9A-F]+:0000 0A" /proc/net/tcp /proc/net/tcp6 || break
    done
    echo "$port"
}
