# MariaDB with its defaults, so that each commit is durable (innodb_flush_log_at_trx_commit=1), but for what a private
# instance wants. A root with a password is all that is in it. A second one has the oddest defaults for its sessions.

start_mariadb() {
    local home=$1 server base plugins
    server=$(installed usr/sbin/mariadbd)
    base=${server%/sbin/mariadbd}
    plugins=$(dirname "$(installed usr/lib/mysql/plugin/auth_ed25519.so)")
    mkdir "$home-odd"
    chown "$owner" "$home" "$home-odd"
    # Which of the two we are depends on how the machine resolves 127.0.0.1.
    cat >"$home/init.sql" <<'END'
ALTER USER 'root'@'localhost' IDENTIFIED BY 'mailqueue';
ALTER USER 'root'@'127.0.0.1' IDENTIFIED BY 'mailqueue';
INSTALL SONAME 'auth_ed25519';
END
    (
        cd "$base" # where the script looks for its parts
        "${unprivileged[@]}" "${packaged[@]}" "$base/bin/mariadb-install-db" --no-defaults --basedir="$base" \
            --datadir="$home/data" --auth-root-authentication-method=normal --skip-test-db >"$home/install.log" 2>&1
    ) || fail "mariadb-install-db: $(<"$home/install.log")"
    cp -a "$home/data" "$home-odd/data"
    cat "$home/init.sql" - >"$home-odd/init.sql" <<'END'
SET GLOBAL autocommit = 0, completion_type = 'CHAIN', tx_isolation = 'SERIALIZABLE';
SET GLOBAL sql_safe_updates = 1, sql_select_limit = 1, sql_big_selects = 0, max_join_size = 1, sql_auto_is_null = 1;
SET GLOBAL sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,NO_UNSIGNED_SUBTRACTION,IGNORE_SPACE';
SET GLOBAL time_zone = '+05:30', default_storage_engine = 'MyISAM', max_statement_time = 0.5;
END
    mariadb_server "$home" MARIADB || return
    mariadb_server "$home-odd" MARIADB_ODD --character-set-server=utf16 || return
    export_variable MAILQUEUE_TEST_MARIADB_CLIENT "$(tool "$home" "$(installed usr/bin/mariadb)" --no-defaults)"
}

# mariadb_server DIRECTORY NAME [OPTION…]
mariadb_server() {
    local home=$1 name=$2 port
    port=$(free_port)
    background "$home" "${unprivileged[@]}" "${packaged[@]}" "$server" --no-defaults --basedir="$base" \
        --datadir="$home/data" --plugin-dir="$plugins" --bind-address=127.0.0.1 --port="$port" \
        --socket="$home/socket" --pid-file="$home/server.pid" --init-file="$home/init.sql" --max-connections=500 \
        "${@:3}"
    wait_for_line "$home" 'mariadbd: ready for connections' || return
    export_variable "MAILQUEUE_TEST_$name" "mysql://root:mailqueue@127.0.0.1:$port"
}
