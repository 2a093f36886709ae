# Where the servers' programs come from: the machine, or Debian packages that are downloaded and unpacked, but not
# installed. So no service starts, no user is made, no configuration is touched, and two mail servers whose packages
# exclude each other can stand side by side.

cache=      # what was unpacked is in $cache/root
system=()   # see installed_system
packaged=() # stands before a program that may be from there, and lets it find its libraries
foreign=()  # stands before a program of another release of Debian, below $foreign_root; see provide_foreign
foreign_root=

# Packages, and one file that each cannot do without.
needed=(
    "openssl                 usr/bin/openssl"
    "mariadb-server-core     usr/sbin/mariadbd"
    "mariadb-client-core     usr/bin/my_print_defaults"
    "mariadb-server          usr/lib/mysql/plugin/auth_ed25519.so"
    "galera-4                usr/lib/galera/libgalera_smm.so"
    "postgresql              usr/lib/postgresql/*/bin/initdb"
    "pgbouncer               usr/sbin/pgbouncer"
    "postfix                 usr/lib/postfix/sbin/master"
    "sasl2-bin               usr/sbin/saslpasswd2"
    "libsasl2-modules        usr/lib/*/sasl2/libplain.so"
    "libsasl2-modules-db     usr/lib/*/sasl2/libsasldb.so"
    "exim4-daemon-light      usr/sbin/exim4"
    "dovecot-submissiond     usr/lib/dovecot/submission"
    "chasquid                usr/bin/chasquid"
    "opensmtpd               usr/sbin/smtpd"
    "prometheus              usr/bin/promtool"
    "libnss-wrapper          usr/lib/*/libnss_wrapper.so"
    "lintian                 usr/share/lintian/bin/lintian"
    "mandoc                  usr/bin/mandoc"
)

# provide_packages: sees to it that every needed file is on the machine or in the cache.
provide_packages() {
    local package file missing=() line
    cache=${MAILQUEUE_TEST_CACHE:-${CARGO_TARGET_DIR:-$root/target}/servers}
    mkdir -p "$cache"
    # A checkout in a home directory that only its owner may enter is of no use to servers that run as someone else.
    if ((EUID == 0)) && ! "${unprivileged[@]}" test -x "$cache"; then
        cache=/var/cache/mailqueue-tests
        mkdir -p "$cache"
    fi
    cache=$(cd "$cache" && pwd)
    exec 9>"$cache/lock"
    flock 9
    for line in "${needed[@]}"; do
        read -r package file <<<"$line"
        compgen -G "/$file" >/dev/null || [[ -e $cache/unpacked/$package ]] || missing+=("$package")
    done
    if ((${#missing[@]} > 0)); then
        download "${missing[@]}"
    fi
    provide_foreign
    exec 9>&-

    local libraries
    libraries=$(find "$cache/root" -maxdepth 3 -path '*/lib/*-linux-gnu*' -type d -printf '%p:' 2>/dev/null || true)
    packaged=(env "LD_LIBRARY_PATH=$libraries$cache/root/usr/lib/postfix${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
}

# installed FILE: the absolute path of a file that a needed package has, on the machine or in the cache. Of several the
# last, which is the highest version.
installed() {
    local paths
    paths=$(compgen -G "/$1" || compgen -G "$cache/root/$1") || fail "$1 is neither on the machine nor in $cache"
    sort -V <<<"$paths" | tail -n 1
}

# installed_system SCRIPT: words that stand before a command, and let it see a machine on which the packages are installed.
# Some programs start others only by the path that they were built with. The files of the packages are laid over /usr, for
# this command and what it starts alone. SCRIPT is run before, and can mount more.
installed_system() {
    local lay="mount -t overlay -o lowerdir=$cache/root/usr:/usr overlay /usr"
    system=("${sudo[@]}" "${packaged[@]}" unshare --mount sh -euc "$lay"$'\n'"$1"$'\n''exec "$@"' sh)
}

# runnable FILE: as installed, for a program that is written in Perl or calls others: a script that lets it find them.
runnable() {
    local script=$directory/${1##*/} perl
    perl=$(compgen -G "$cache/root/usr/lib/*/perl5/5.*" | tr '\n' ':' || true)
    {
        echo '#!/bin/sh'
        printf 'export PATH=%q PERL5LIB=%q\n' "$cache/root/usr/bin:$PATH" "$cache/root/usr/share/perl5:$perl"
        printf '%q ' exec "${packaged[@]}" "$(installed "$1")"
        echo '"$@"'
    } >"$script"
    chmod +x "$script"
    echo "$script"
}

# What only a later release of Debian has. A program of another release needs that release's C library, and with it all
# other libraries from there. So all that it depends on is unpacked into a root of its own, and it is started by that
# root's dynamic loader. Perl stays away, because only scripts that no test runs are written in it.
foreign_needed=(mysql-server-core)

provide_foreign() {
    local package loader
    foreign_root=$cache/foreign
    for package in "${foreign_needed[@]}"; do
        [[ -e $cache/unpacked/$package ]] || download_foreign "$package"
    done
    loader=$(compgen -G "$foreign_root/usr/lib/*/ld-linux*") || fail "$foreign_root has no dynamic loader"
    foreign=(env -u LD_LIBRARY_PATH "$loader" --library-path "${loader%/*}")
}

# download_foreign PACKAGE: from the release that is never frozen, by way of the mirror that the machine uses.
download_foreign() {
    local mirror packages apt_sources=()
    type apt-get >/dev/null 2>&1 || fail "$1 comes from Debian's archive; without apt: tests/run --embedded-only"
    echo "tests/run: downloading $1" >&2
    mkdir -p "$foreign_root" "$cache"/{unpacked,debs,apt/lists/partial,apt/archives/partial}
    apt update || true
    mirror=$(apt_lists)
    [[ -n $mirror ]] || fail "no Debian archive among the sources of apt; without it: tests/run --embedded-only"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$cache/apt/sources.list"
    : >"$cache/apt/nothing-installed"
    apt_sources=(-o Dir::Etc::sourcelist="$cache/apt/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::status="$cache/apt/nothing-installed")
    apt update || fail "the index of Debian's archive could not be read; without it: tests/run --embedded-only"
    packages=$(apt -s install "$1" | awk '$1 == "Inst" && $2 !~ /perl/ { print $2 }')
    rm -f "$cache"/debs/*
    # shellcheck disable=SC2086 # one word a package
    (cd "$cache/debs" && apt download $packages) || fail "could not download $1; without it: tests/run --embedded-only"
    for deb in "$cache"/debs/*.deb; do
        dpkg -x "$deb" "$foreign_root"
    done
    touch "$cache/unpacked/$1"
    rm -rf "$cache/debs" "$cache/apt"
}

# The address of the Debian archive in the lists that are there.
apt_lists() {
    apt indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' | head -n 1
}

# apt with lists and archives of our own: needs no rights, and does not depend on how old the machine's lists are.
apt() {
    apt-get -qq -o Dir::State="$cache/apt" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$cache/apt" \
        -o APT::Sandbox::User="$(id -un)" --no-install-recommends ${apt_sources[@]+"${apt_sources[@]}"} "$@"
}

# download PACKAGE…: each with all that it depends on and the machine lacks, into the cache.
download() {
    local package packages
    type apt-get >/dev/null 2>&1 ||
        fail "missing programs: install what Debian has as $*, or run tests/run --embedded-only"
    echo "tests/run: downloading $*" >&2
    mkdir -p "$cache"/{root,unpacked,debs,apt/lists/partial,apt/archives/partial}
    apt update || true # a repository of somebody else's that is out of reach matters only if it is needed
    for package; do
        # The C library belongs to the machine: a second one cannot be loaded beside it.
        packages=$(apt -s install "$package" | awk '$1 == "Inst" && $2 !~ /^libc(6|-bin)$/ { print $2 }')
        rm -f "$cache"/debs/*
        # shellcheck disable=SC2086 # one word a package
        (cd "$cache/debs" && apt download $packages "$package") ||
            fail "could not download $package from Debian's archive; what needs no server: tests/run --embedded-only"
        for deb in "$cache"/debs/*.deb; do
            dpkg -x "$deb" "$cache/root"
        done
        # Nothing here shall give rights to anyone, Exim included.
        find "$cache/root" -type f -perm /6000 -exec chmod ug-s {} +
        touch "$cache/unpacked/$package"
    done
    rm -rf "$cache/debs" "$cache/apt"
}
