# MariaDB with its defaults, so that each commit is durable (innodb_flush_log_at_trx_commit=1), but for what a private
# instance wants. A root with a password is all that is in it.

start_mariadb() {
    local home=$1 port server base
    port=$(free_port)
    server=$(installed usr/sbin/mariadbd)
    base=${server%/sbin/mariadbd}
    chown "$owner" "$home"
    # Which of the two we are depends on how the machine resolves 127.0.0.1.
    cat >"$home/init.sql" <<'END'
ALTER USER 'root'@'localhost' IDENTIFIED BY 'mailqueue';
ALTER USER 'root'@'127.0.0.1' IDENTIFIED BY 'mailqueue';
END
    local options=(--no-defaults --basedir="$base" --datadir="$home/data")
    (
        cd "$base" # where the script looks for its parts
        "${unprivileged[@]}" "${packaged[@]}" "$base/bin/mariadb-install-db" "${options[@]}" \
            --auth-root-authentication-method=normal --skip-test-db >"$home/install.log" 2>&1
    ) || fail "mariadb-install-db: $(tail -n 20 "$home/install.log")"
    background "$home" "${unprivileged[@]}" "${packaged[@]}" "$server" "${options[@]}" \
        --bind-address=127.0.0.1 --port="$port" --socket="$home/socket" --pid-file="$home/server.pid" \
        --init-file="$home/init.sql" --max-connections=500
    wait_for_line "$home" 'mariadbd: ready for connections' || return
    export_variable MAILQUEUE_TEST_MARIADB_CLIENT "$(tool "$home" "$(installed usr/bin/mariadb)" --no-defaults)"
    export_variable MAILQUEUE_TEST_MARIADB "mysql://root:mailqueue@127.0.0.1:$port"
}
