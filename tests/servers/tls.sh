# A certificate authority of the tests' own, and a certificate from it for loopback.

# make_certificate DIRECTORY: writes ca.pem, and cert.pem and key.pem for localhost, 127.0.0.1 and ::1.
make_certificate() {
    local openssl
    openssl=("${packaged[@]}" "$(installed usr/bin/openssl)")
    (
        cd "$1"
        cat >tls.conf <<END
[req]
distinguished_name = name
prompt = no
[name]
commonName = mailqueue tests, ${1##*/}
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
END
        key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
        "${openssl[@]}" req -x509 "${key[@]}" -keyout ca.key -out ca.pem -days 30 -config tls.conf -extensions ca
        "${openssl[@]}" req "${key[@]}" -keyout key.pem -out request.pem -config tls.conf
        "${openssl[@]}" x509 -req -in request.pem -CA ca.pem -CAkey ca.key -set_serial 1 -days 30 -out cert.pem \
            -extfile tls.conf -extensions server
        chmod 644 ca.pem cert.pem
    ) >"$1/tls.log" 2>&1 || fail "openssl: $(<"$1/tls.log")"
}
