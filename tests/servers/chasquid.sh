# chasquid as a smarthost: submission with STARTTLS and AUTH. It takes mail for `known+…@chasquid.example` and refuses others
# of this domain at RCPT with 550 5.1.1; it knows no way to defer one there. A hook behind the final dot defers a mail with
# `defer this` in its subject (451), and writes what is taken into a Maildir, a file for each recipient whose first lines
# are Return-Path and Envelope-To. A message may have 1 MiB.

start_chasquid() {
    local home=$1 port other user
    port=$(free_port) other=$(free_port)
    mkdir -p "$home"/{certs/smarthost.example,domains/{chasquid,smarthost}.example,hooks,data,mail/tmp,mail/new}
    make_certificate "$home"
    cp "$home/cert.pem" "$home/certs/smarthost.example/fullchain.pem"
    cp "$home/key.pem" "$home/certs/smarthost.example/privkey.pem"
    cat >"$home/chasquid.conf" <<END
hostname: "smarthost.example"
max_data_size_mb: 1
smtp_address: "127.0.0.1:$other"
submission_address: "127.0.0.1:$port"
mail_delivery_agent_bin: "/bin/true"
data_dir: "$home/data"
mail_log_path: "$home/mail.log"
END
    chasquid_hook "$home/mail" >"$home/hooks/post-data"
    chmod 755 "$home/hooks/post-data"
    (umask 077 && echo -n 'chasquid secret' >"$home/password")
    chown -R "$owner" "$home"
    chmod 711 "$home"
    for user in mailqueue@smarthost.example known@chasquid.example; do
        "${unprivileged[@]}" "$(installed usr/bin/chasquid-util)" -C="$home" user-add "$user" \
            --password='chasquid secret' >>"$home/log" 2>&1 ||
            fail "chasquid: could not make its users: $(<"$home/log")"
    done
    background "$home" "${unprivileged[@]}" "$(installed usr/bin/chasquid)" -config_dir="$home" -v=1
    wait_for_line "$home" "Server listening on 127.0.0.1:$port" "$home/log" || return
    export_variable MAILQUEUE_TEST_CHASQUID_PORT "$port"
    export_variable MAILQUEUE_TEST_CHASQUID_CA "$home/ca.pem"
    export_variable MAILQUEUE_TEST_CHASQUID_USER mailqueue@smarthost.example
    export_variable MAILQUEUE_TEST_CHASQUID_PASSWORD_FILE "$home/password"
    export_variable MAILQUEUE_TEST_CHASQUID_MAILDIR "$home/mail"
    export_variable MAILQUEUE_TEST_CHASQUID_LOG "$home/log"
}

# chasquid_hook MAILDIR: the hook, which is given a mail on standard input and its envelope in variables.
chasquid_hook() {
    cat <<END
#!/bin/bash
set -euo pipefail
cd '$1'
END
    cat <<'END'
mail=$(mktemp tmp/XXXXXXXXXX)
cat >"$mail"
if sed '/^\r\?$/q' "$mail" | grep -q 'defer this'; then
    echo 'Not now' && rm "$mail" && exit 1
fi
number=0
for recipient in $RCPT_TO; do
    number=$((number + 1))
    {
        printf 'Return-Path: <%s>\nEnvelope-To: %s\n' "$MAIL_FROM" "$recipient"
        printf 'Received: from %s with ESMTPSA id %s\n' "$EHLO_DOMAIN" "${mail#*/}"
        tr -d '\r' <"$mail"
    } >"$mail.$number"
    mv "$mail.$number" new/
done
rm "$mail"
END
}
