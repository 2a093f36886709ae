# PostgreSQL with its defaults, but for what a private instance wants. The superuser has a password.

start_postgres() {
    local home=$1 port bin
    port=$(free_port)
    bin=$(dirname "$(installed 'usr/lib/postgresql/*/bin/initdb')")
    chown "$owner" "$home"
    echo mailqueue >"$home/password"
    "${unprivileged[@]}" "${packaged[@]}" "$bin/initdb" --pgdata="$home/data" --username=postgres \
        --pwfile="$home/password" --auth=scram-sha-256 --encoding=UTF8 --locale=C >"$home/install.log" 2>&1 ||
        fail "initdb: $(tail -n 20 "$home/install.log")"
    background "$home" "${unprivileged[@]}" "${packaged[@]}" "$bin/postgres" -D "$home/data" -h 127.0.0.1 -p "$port" \
        -k "$home" -c max_connections=300 -c jit=off
    wait_for_line "$home" 'database system is ready to accept connections' || return
    export_variable MAILQUEUE_TEST_POSTGRES_CLIENT "$(tool "$home" "$bin/psql" --no-psqlrc)"
    export_variable MAILQUEUE_TEST_POSTGRES "postgres://postgres:mailqueue@127.0.0.1:$port/postgres"
}
