# MariaDB Galera: a cluster of three nodes for one test, which kills some of them. It is started by the test itself, with
# the script that MAILQUEUE_TEST_GALERA names: its answer is a line for each node, `URL PID`.
#
# No state is transferred between nodes, so that no tools for that are needed: all begin as copies of one data directory
# that was a cluster of one, and with the note of Galera's that the three were a cluster before the lights went out.

start_galera() {
    installed usr/lib/galera/libgalera_smm.so >/dev/null
    {
        echo '#!/usr/bin/env bash'
        echo 'set -euo pipefail'
        for part in process packages galera; do
            printf 'source %q\n' "$root/tests/servers/$part.sh"
        done
        declare -p directory cache packaged
        echo 'galera_cluster "$(mktemp -d "$directory/galera.XXXXXX")"'
    } >"$1/cluster"
    chmod 755 "$1/cluster"
    export_variable MAILQUEUE_TEST_GALERA "$1/cluster"
}

galera_cluster() {
    local home=$1 server base node
    local -a databases replications
    server=$(installed usr/sbin/mariadbd)
    base=${server%/sbin/mariadbd}
    for node in 1 2 3; do
        mkdir "$home-$node"
        databases[node]=$(free_port)
        replications[node]=$(free_port)
    done
    local cluster="gcomm://127.0.0.1:${replications[1]},127.0.0.1:${replications[2]},127.0.0.1:${replications[3]}"
    chown "$owner" "$home" "$home"-[123]

    local ready='Synchronized with group, ready for connections'
    galera_seed "$home-1"
    galera_node 1 --wsrep-new-cluster --init-file="$home-1/init.sql"
    wait_for_line "$home-1" "$ready" || return
    "${sudo[@]}" kill "$(<"$home-1/pid")"
    wait_for_line "$home-1" 'mariadbd: Shutdown complete' || return
    : >"$home-1/log"
    for node in 2 3; do
        "${sudo[@]}" cp -a "$home-1/data" "$home-$node/data"
    done
    for node in 1 2 3; do
        galera_members "$node" | "${unprivileged[@]}" tee "$home-$node/data/gvwstate.dat" >/dev/null
        galera_node "$node"
    done
    for node in 1 2 3; do
        wait_for_line "$home-$node" "$ready" || return
        echo "mysql://root:mailqueue@127.0.0.1:${databases[node]} $(<"$home-$node/pid")"
    done
}

# An empty data directory, as for the one server.
galera_seed() {
    cat >"$1/init.sql" <<'END'
ALTER USER 'root'@'localhost' IDENTIFIED BY 'mailqueue';
ALTER USER 'root'@'127.0.0.1' IDENTIFIED BY 'mailqueue';
END
    (
        cd "$base" # where the script looks for its parts
        "${unprivileged[@]}" "${packaged[@]}" "$base/bin/mariadb-install-db" --no-defaults --basedir="$base" \
            --datadir="$1/data" --auth-root-authentication-method=normal --skip-test-db >"$1/install.log" 2>&1
    ) || fail "mariadb-install-db: $(tail -n 20 "$1/install.log")"
}

# galera_node NUMBER [OPTION…]: starts it. Commits are durable, as on one server.
galera_node() {
    local home=$home-$1 node=$1
    shift
    background "$home" "${unprivileged[@]}" "${packaged[@]}" "$server" --no-defaults --basedir="$base" \
        --datadir="$home/data" --bind-address=127.0.0.1 --port="${databases[node]}" --socket="$home/socket" \
        --pid-file="$home/server.pid" --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=1 \
        --binlog-format=ROW --innodb-autoinc-lock-mode=2 \
        --wsrep-on=ON --wsrep-provider="$(installed usr/lib/galera/libgalera_smm.so)" --wsrep-cluster-name=mailqueue \
        --wsrep-cluster-address="$cluster" --wsrep-node-name="node$node" --wsrep-node-address=127.0.0.1 \
        --wsrep-sst-method=skip --wsrep-provider-options="base_host=127.0.0.1;base_port=${replications[node]};$(
        )gmcast.listen_addr=tcp://127.0.0.1:${replications[node]};gcache.size=32M" "$@"
}

# The last view of a cluster of three, as node NUMBER has seen it.
galera_members() {
    local members=(- 11111111-1111-11e1-8111-111111111111 22222222-1111-11e1-8111-111111111111
        33333333-1111-11e1-8111-111111111111)
    echo "my_uuid: ${members[$1]}"
    echo '#vwbeg'
    echo "view_id: 3 ${members[1]} 3"
    echo 'bootstrap: 0'
    printf 'member: %s 0\n' "${members[@]:1}"
    echo '#vwend'
}
