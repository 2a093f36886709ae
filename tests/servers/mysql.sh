# MySQL with its defaults, but for what a private instance wants. A root with a password is all that is in it. It runs with
# the C library of its own release: see `foreign` in packages.sh.

start_mysql() {
    local home=$1 port server
    port=$(free_port)
    server=$foreign_root/usr/sbin/mysqld
    chown "$owner" "$home"
    cat >"$home/init.sql" <<'END'
ALTER USER 'root'@'localhost' IDENTIFIED BY 'mailqueue';
CREATE USER 'root'@'127.0.0.1' IDENTIFIED BY 'mailqueue';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
END
    local options=(--no-defaults --basedir="$foreign_root/usr" --datadir="$home/data" --secure-file-priv=NULL)
    "${unprivileged[@]}" "${foreign[@]}" "$server" "${options[@]}" --initialize-insecure >"$home/install.log" 2>&1 ||
        fail "mysqld --initialize-insecure: $(tail -n 20 "$home/install.log")"
    background "$home" "${unprivileged[@]}" "${foreign[@]}" "$server" "${options[@]}" \
        --bind-address=127.0.0.1 --port="$port" --socket="$home/socket" --pid-file="$home/server.pid" --mysqlx=OFF \
        --init-file="$home/init.sql" --max-connections=500
    wait_for_line "$home" "ready for connections.* port: $port" || return
    export_variable MAILQUEUE_TEST_MYSQL "mysql://root:mailqueue@127.0.0.1:$port"
}
