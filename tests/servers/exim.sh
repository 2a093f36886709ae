# Exim as a second smarthost, because many have one: submission with STARTTLS and AUTH. It takes mail for any domain,
# with these exceptions: at RCPT `refused…@` gets 550 5.1.1, `deferred…@` gets 450 4.2.1, after 16 recipients come 452,
# and after five refused recipients 421 4.7.0; behind the final dot a subject with `refuse this` gets 554 5.6.0 and one
# with `defer this` gets 451 4.3.0. What it accepts it writes into one Maildir, a file for each recipient, whose first
# lines are Return-path and Envelope-to.
#
# A second daemon takes three connections at the same time.
#
# Both run without any rights: the library nss_wrapper tells them that the user they were built
# for is the one they run as.

start_exim() {
    local home=$1 limited=$1-limited
    mkdir "$limited"
    make_certificate "$home"
    cp "$home"/*.pem "$limited"
    exim_daemon "$home" MAILQUEUE_TEST_EXIM
    exim_daemon "$limited" MAILQUEUE_TEST_EXIM_LIMITED 'smtp_accept_max_per_host = 3'
}

# exim_daemon DIRECTORY PREFIX [OPTION]: starts one, whose variables begin with PREFIX.
exim_daemon() {
    local home=$1 prefix=$2 option=${3-} port server user=${owner%%:*}
    port=$(free_port)
    server=$(installed usr/sbin/exim4)
    mkdir "$home/spool"
    echo "Debian-exim:x:$(id -u "$user"):$(id -g "$user")::$home:/bin/false" >"$home/passwd"
    echo "Debian-exim:x:$(id -g "$user"):" >"$home/group"
    { echo "$option" && exim_configuration "$home" "$port" "$server"; } >"$home/exim.conf"
    chown -R "$owner" "$home"
    chmod 711 "$home"
    (umask 077 && echo -n 'exim secret' >"$home/password")
    background "$home" "${unprivileged[@]}" "${packaged[@]}" \
        LD_PRELOAD="$(installed 'usr/lib/*/libnss_wrapper.so')" \
        NSS_WRAPPER_PASSWD="$home/passwd" NSS_WRAPPER_GROUP="$home/group" \
        "$server" -C "$home/exim.conf" -bdf -q10m
    wait_for_line "$home" 'daemon started' "$home/main.log" || return
    export_variable "$prefix"_PORT "$port"
    export_variable "$prefix"_CA "$home/ca.pem"
    export_variable "$prefix"_USER mailqueue
    export_variable "$prefix"_PASSWORD_FILE "$home/password"
    export_variable "$prefix"_MAILDIR "$home/mail"
    export_variable "$prefix"_LOG "$home/main.log"
}

exim_configuration() {
    local home=$1 port=$2 server=$3
    cat <<END
exim_path = $server
keep_environment = LD_LIBRARY_PATH : LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
spool_directory = $home/spool
log_file_path = $home/%s.log
pid_file_path = $home/exim.pid
deliver_drop_privilege = true
tls_certificate = $home/cert.pem
tls_privatekey = $home/key.pem
daemon_smtp_ports = $port
END
    cat <<'END'
primary_hostname = smarthost.example
local_interfaces = 127.0.0.1
host_lookup =
message_size_limit = 35M
recipients_max = 16
smtp_accept_max = 100
# What is accepted is delivered at once, however many mails come over one connection.
smtp_accept_queue_per_connection = 0
smtputf8_advertise_hosts = *
tls_advertise_hosts = *
auth_advertise_hosts = ${if def:tls_in_cipher {*}}
acl_smtp_rcpt = rcpt
acl_smtp_data = data

begin acl
rcpt:
  deny   !authenticated = *
         message = 550 5.7.1 Authentication required
  defer  condition = ${if >={$rcpt_fail_count}{5}}
         message = 421 4.7.0 Too many errors
  deny   local_parts = ^refused
         message = 550 5.1.1 User unknown
  defer  local_parts = ^deferred
         message = 450 4.2.1 Mailbox busy
  accept
data:
  deny   condition = ${if match{$rh_subject:}{refuse this}}
         message = 554 5.6.0 Content refused
  defer  condition = ${if match{$rh_subject:}{defer this}}
         message = 451 4.3.0 Not now
  accept

begin routers
all:
  driver = accept
  transport = maildir

begin transports
maildir:
  driver = appendfile
END
    echo "  directory = $home/mail"
    cat <<'END'
  maildir_format
  create_directory
  return_path_add
  envelope_to_add

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth2}{mailqueue}}{eq{$auth3}{exim secret}}}}
  server_set_id = $auth2
END
}
