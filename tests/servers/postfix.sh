# Postfix as the smarthost: submission with STARTTLS and AUTH, implicit TLS, a port without either, and one without
# either that takes three connections at the same time. It takes mail for any domain, with these exceptions at RCPT:
# `refused…@` gets 550 5.1.1, `deferred…@` gets 450 4.2.1, and after 16 recipients come 452 4.5.3. A message may have
# 35 MiB. What it accepts it writes into one Maildir, a file for each recipient, whose first lines are Return-Path,
# X-Original-To and Delivered-To: the envelope.

start_postfix() {
    local home=$1 programs submission tls plain limited
    submission=$(free_port) tls=$(free_port) plain=$(free_port) limited=$(free_port)
    programs=$(dirname "$(installed usr/lib/postfix/sbin/master)")
    chmod 711 "$home"
    mkdir -p "$home"/{config/sasl,data,queue,mail}
    touch "$home/mail.log" # or it will be root's alone
    make_certificate "$home"
    postfix_users "$home"
    postfix_configuration "$home" "$programs" "$submission" "$tls" "$plain" "$limited"
    "${sudo[@]}" sh -eu <<END || fail "postfix: could not make its directories"
        cd '$home/queue'
        mkdir active bounce corrupt defer deferred flush hold incoming maildrop pid private public saved trace
        chown mail active bounce corrupt defer deferred flush hold incoming maildrop private public saved trace ../data
        chgrp uucp public maildrop
        chmod 700 active bounce corrupt defer deferred flush hold incoming private saved trace ../data
        chmod 710 public && chmod 730 maildrop && chmod 755 pid
        chown -R root:root ../config && chown $owner ../mail
        chgrp mail ../config/sasl/users && chmod 640 ../config/sasl/users
END
    background "$home" "${sudo[@]}" "${packaged[@]}" SASL_PATH="$(postfix_mechanisms)" \
        "$programs/master" -c "$home/config" -d
    wait_for_line "$home" 'daemon started' "$home/mail.log" || return
    export_variable MAILQUEUE_TEST_POSTFIX_PORT "$submission"
    export_variable MAILQUEUE_TEST_POSTFIX_TLS_PORT "$tls"
    export_variable MAILQUEUE_TEST_POSTFIX_PLAIN_PORT "$plain"
    export_variable MAILQUEUE_TEST_POSTFIX_LIMITED_PORT "$limited"
    export_variable MAILQUEUE_TEST_POSTFIX_CA "$home/ca.pem"
    export_variable MAILQUEUE_TEST_POSTFIX_USER mailqueue
    export_variable MAILQUEUE_TEST_POSTFIX_PASSWORD_FILE "$home/password"
    export_variable MAILQUEUE_TEST_POSTFIX_MAILDIR "$home/mail"
    export_variable MAILQUEUE_TEST_POSTFIX_LOG "$home/mail.log"
    # The sink does not want to be root.
    local user=()
    ((EUID != 0)) || user=(-u nobody)
    export_variable MAILQUEUE_TEST_SINK "$(tool "$home" "$(installed usr/sbin/smtp-sink)" "${user[@]}")"
    export_variable MAILQUEUE_TEST_SOURCE "$(tool "$home" "$(installed usr/sbin/smtp-source)")"
}

# The one user who may send, in the form that Cyrus SASL reads.
postfix_users() {
    local home=$1 saslpasswd
    saslpasswd=("${packaged[@]}" SASL_PATH="$(postfix_mechanisms)" "$(installed usr/sbin/saslpasswd2)")
    (umask 077 && echo -n 'postfix secret' >"$home/password")
    "${saslpasswd[@]}" -p -c -f "$home/config/sasl/users" -u smarthost.example mailqueue <"$home/password" ||
        fail "postfix: could not make its user"
    cat >"$home/config/sasl/smtpd.conf" <<END
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: $home/config/sasl/users
mech_list: PLAIN LOGIN
END
}

# The directories in which SASL finds its mechanisms.
postfix_mechanisms() {
    local name
    for name in plain sasldb; do
        dirname "$(installed "usr/lib/*/sasl2/lib$name.so")"
    done | sort -u | paste -sd :
}

postfix_configuration() {
    local home=$1 programs=$2 submission=$3 tls=$4 plain=$5 limited=$6
    local user=${owner%%:*}
    cat >"$home/config/main.cf" <<END
compatibility_level = 3.6
queue_directory = $home/queue
data_directory = $home/data
daemon_directory = $programs
shlib_directory = $(dirname "$programs")
command_directory = $(dirname "$(installed usr/sbin/postlog)")
import_environment = LD_LIBRARY_PATH SASL_PATH MAIL_CONFIG TZ LANG=C
maillog_file = $home/mail.log
maillog_file_prefixes = $home
# Accounts that every Debian has. Postfix wants one that nobody else uses.
mail_owner = mail
setgid_group = uucp

myhostname = smarthost.example
mydestination =
local_recipient_maps =
alias_maps =
inet_interfaces = 127.0.0.1
mynetworks = 127.0.0.0/8
smtputf8_enable = yes
# Headers stay as they were sent.
local_header_rewrite_clients =
message_size_limit = 36700160

# A file for each recipient.
default_transport = virtual
virtual_mailbox_base = $home
virtual_mailbox_maps = static:mail/
virtual_uid_maps = static:$(id -u "$user")
virtual_gid_maps = static:$(id -g "$user")
virtual_mailbox_limit = 0
virtual_destination_recipient_limit = 1

smtpd_tls_cert_file = $home/cert.pem
smtpd_tls_key_file = $home/key.pem
smtpd_sasl_path = smtpd
smtpd_sasl_local_domain = smarthost.example
cyrus_sasl_config_path = $home/config/sasl
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions = check_recipient_access regexp:$home/config/recipients
smtpd_recipient_limit = 16
# Refusals are what is tested: they shall not be slowed down.
smtpd_error_sleep_time = 0
END
    cat >"$home/config/recipients" <<'END'
/^refused.*@/   550 5.1.1 User unknown
/^deferred.*@/  450 4.2.1 Mailbox busy
END
    cat >"$home/config/master.cf" <<END
127.0.0.1:$submission inet n - n - - smtpd
  -o smtpd_tls_security_level=encrypt -o smtpd_sasl_auth_enable=yes
127.0.0.1:$tls inet n - n - - smtpd
  -o smtpd_tls_wrappermode=yes -o smtpd_sasl_auth_enable=yes
127.0.0.1:$plain inet n - n - - smtpd
  -o smtpd_relay_restrictions=permit_mynetworks,reject
127.0.0.1:$limited inet n - n - - smtpd
  -o smtpd_relay_restrictions=permit_mynetworks,reject
  -o smtpd_client_connection_count_limit=3 -o smtpd_client_event_limit_exceptions=
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
END
}
