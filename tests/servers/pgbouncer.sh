# PgBouncer in front of PostgreSQL, as its package configures it: a client may say nothing in its startup message that
# PgBouncer does not know. One for each way of pooling, and one (`lenient`) that drops what it does not know, as many are
# configured for drivers that say more. Who may log in is asked of PostgreSQL, because tests make users.

start_pgbouncer() {
    pgbouncer "$1" session 'pool_mode = session'
    pgbouncer "$1" transaction 'pool_mode = transaction'
    pgbouncer "$1" statement 'pool_mode = statement'
    pgbouncer "$1" lenient 'pool_mode = transaction' 'ignore_startup_parameters = extra_float_digits, options'
}

# pgbouncer DIRECTORY NAME SETTING…
pgbouncer() {
    local home=$1-$2 name=$2 server port backend
    server=$(exported MAILQUEUE_TEST_POSTGRES)
    backend=${server##*:}
    backend=${backend%/*}
    port=$(free_port)
    mkdir "$home"
    chown "$owner" "$home"
    echo '"postgres" "mailqueue"' >"$home/users"
    # Databases of tests that are over keep no connection for long: PostgreSQL has room for 300.
    cat >"$home/pgbouncer.ini" <<END
[databases]
* = host=127.0.0.1 port=$backend
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $home/users
auth_user = postgres
server_idle_timeout = 15
$(printf '%s\n' "${@:3}")
END
    background "$home" "${unprivileged[@]}" "${packaged[@]}" "$(installed usr/sbin/pgbouncer)" "$home/pgbouncer.ini"
    wait_for_line "$home" 'process up' || return
    export_variable "MAILQUEUE_TEST_PGBOUNCER_${name^^}" "${server/:$backend\//:$port/}"
}
