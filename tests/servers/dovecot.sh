# Dovecot's submission proxy in front of Postfix, as many mail servers have it: STARTTLS and AUTH, then all commands go on
# to Postfix's port without either. So at RCPT it refuses and defers what Postfix does, and what it accepts lands in
# Postfix's Maildir. A message may have 1 MiB.

start_dovecot() {
    local home=$1 port
    port=$(free_port)
    mkdir "$home"/{run,state,users}
    make_certificate "$home"
    dovecot_configuration "$home" "$port" >"$home/dovecot.conf"
    echo 'mailqueue:{PLAIN}dovecot secret' >"$home/passwords"
    (umask 077 && echo -n 'dovecot secret' >"$home/password")
    touch "$home/mail.log"
    chown -R "$owner" "$home"
    chmod 711 "$home"
    installed_system ''
    background "$home" "${system[@]}" "${unprivileged[@]}" /usr/sbin/dovecot -F -c "$home/dovecot.conf"
    wait_for_line "$home" 'starting up' "$home/mail.log" || return
    export_variable MAILQUEUE_TEST_DOVECOT_PORT "$port"
    export_variable MAILQUEUE_TEST_DOVECOT_CA "$home/ca.pem"
    export_variable MAILQUEUE_TEST_DOVECOT_USER mailqueue
    export_variable MAILQUEUE_TEST_DOVECOT_PASSWORD_FILE "$home/password"
    export_variable MAILQUEUE_TEST_DOVECOT_MAILDIR "$(exported MAILQUEUE_TEST_POSTFIX_MAILDIR)"
    export_variable MAILQUEUE_TEST_DOVECOT_LOG "$home/mail.log"
}

dovecot_configuration() {
    local home=$1 port=$2 user=${owner%%:*}
    cat <<END
protocols = submission
base_dir = $home/run
state_dir = $home/state
log_path = $home/mail.log
import_environment = TZ LD_LIBRARY_PATH
# All of it runs as one user, without any rights.
default_internal_user = $user
default_internal_group = $(id -gn "$user")
default_login_user = $user
listen = 127.0.0.1
hostname = smarthost.example
ssl = required
ssl_cert = <$home/cert.pem
ssl_key = <$home/key.pem
auth_mechanisms = plain login
submission_relay_host = 127.0.0.1
submission_relay_port = $(exported MAILQUEUE_TEST_POSTFIX_PLAIN_PORT)
submission_max_mail_size = 1048576
mail_location = maildir:$home/users/%u
passdb {
  driver = passwd-file
  args = $home/passwords
}
userdb {
  driver = static
  args = uid=$user gid=$(id -gn "$user") home=$home/users/%u
}
service submission-login {
  chroot =
  inet_listener submission {
    port = $port
  }
}
service anvil {
  chroot =
}
END
}
