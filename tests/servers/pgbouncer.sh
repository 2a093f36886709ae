# PgBouncer in front of PostgreSQL, as its package configures it: a client may say nothing in its startup message that
# PgBouncer does not know. One for each way of pooling. Who may log in is asked of PostgreSQL, because tests make users.

start_pgbouncer() {
    local home=$1 mode server port backend
    server=$(exported MAILQUEUE_TEST_POSTGRES)
    backend=${server##*:}
    backend=${backend%/*}
    for mode in session transaction; do
        mkdir "$home-$mode"
        chown "$owner" "$home-$mode"
        port=$(free_port)
        echo '"postgres" "mailqueue"' >"$home-$mode/users"
        # Databases of tests that are over keep no connection for long: PostgreSQL has room for 300.
        cat >"$home-$mode/pgbouncer.ini" <<END
[databases]
* = host=127.0.0.1 port=$backend
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $home-$mode/users
auth_user = postgres
pool_mode = $mode
server_idle_timeout = 15
END
        background "$home-$mode" "${unprivileged[@]}" "${packaged[@]}" "$(installed usr/sbin/pgbouncer)" \
            "$home-$mode/pgbouncer.ini"
        wait_for_line "$home-$mode" 'process up' || return
        export_variable "MAILQUEUE_TEST_PGBOUNCER_${mode^^}" "${server/:$backend\//:$port/}"
    done
}
