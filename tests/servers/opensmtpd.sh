# OpenSMTPD as a smarthost in front of Postfix: a port without TLS and AUTH, because Debian's 6.8.0p2 fails in every handshake
# with OpenSSL 3 that wants its private key. It takes mail for any domain, with these exceptions at RCPT: `refused…@` gets
# 550 5.1.1, `deferred…@` gets 450 4.2.1. What it accepts it hands on to Postfix, in whose Maildir it lands. A message may have
# 1 MiB.
#
# It wants root, users and directories of its own: it sees a machine that has them. Its control socket is below /run, where
# a second OpenSMTPD of the same machine would find it.

start_opensmtpd() {
    local home=$1 port
    port=$(free_port)
    opensmtpd_configuration "$home" "$port" >"$home/smtpd.conf"
    {
        cat /etc/passwd
        echo "opensmtpd:x:64001:64001::/var/empty:/bin/false"
        echo "opensmtpq:x:64002:64002::/var/empty:/bin/false"
    } >"$home/passwd"
    { cat /etc/group && echo "opensmtpd:x:64001:" && echo "opensmtpq:x:64002:"; } >"$home/group"
    "${sudo[@]}" chown root:root "$home/smtpd.conf"
    chmod 711 "$home"
    installed_system "
        mount --bind '$home/passwd' /etc/passwd
        mount --bind '$home/group' /etc/group
        mount -t tmpfs -o mode=755 tmpfs /var/spool
        mount -t tmpfs -o mode=755 tmpfs /var/lib
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir -p -m 711 /var/spool/smtpd /var/lib/opensmtpd/empty"
    background "$home" "${system[@]}" /usr/sbin/smtpd -d -f "$home/smtpd.conf"
    wait_for_line "$home" 'OpenSMTPD .* starting' || return
    # It says so before it has its port.
    wait_for_port "$home" "$port" || return
    export_variable MAILQUEUE_TEST_OPENSMTPD_PORT "$port"
    export_variable MAILQUEUE_TEST_OPENSMTPD_MAILDIR "$(exported MAILQUEUE_TEST_POSTFIX_MAILDIR)"
    export_variable MAILQUEUE_TEST_OPENSMTPD_LOG "$home/log"
}

opensmtpd_configuration() {
    local home=$1 port=$2
    cat <<END
filter refused phase rcpt-to match rcpt-to regex "^<?refused" reject "550 5.1.1 User unknown"
filter deferred phase rcpt-to match rcpt-to regex "^<?deferred" reject "450 4.2.1 Mailbox busy"
smtp max-message-size 1048576
listen on 127.0.0.1 port $port hostname smarthost.example filter { refused, deferred }
action "on" relay host smtp://127.0.0.1:$(exported MAILQUEUE_TEST_POSTFIX_PLAIN_PORT)
match from any for any action "on"
END
}
