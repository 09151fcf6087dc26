# Functions that the scripts of this folder share: messages, installation of packages, and the kernel. Source this file.

bed=target/testbed

say() { echo "testbed: $*" >&2; }

# Ends the script because the testbed cannot be had here. The reason also goes to a file, for tests/testbed/instead.
LACKING=77
lack() {
    say "$*"
    echo "$*" > "$bed/lacks"
    exit $LACKING
}

# Fetches one small file as apt does. Without this check, apt can wait for minutes if there is no network.
reach_packages() {
    local uri
    uri=$(apt-get update --print-uris 2>/dev/null | sed -n "1s/^'\([^']*\)'.*/\1/p")
    [ -n "$uri" ] || return 1
    timeout 20 /usr/lib/apt/apt-helper -o Acquire::Retries=0 download-file "$uri" "$bed/reached" >/dev/null 2>&1
}

# Bash finds a file that is not executable, if there is no other with this name.
has() { local file; file=$(command -v "$1") && [ -x "$file" ]; }

need() { # PROGRAM PACKAGES
    has "$1" && return
    command -v apt-get >/dev/null || lack "$1 is missing, and so is apt-get: install $1 by hand"
    local sudo=
    if [ "$(id -u)" != 0 ]; then
        # `make test` does not wait for a password.
        sudo="sudo ${TESTBED_OPTIONAL:+-n}"
        command -v sudo >/dev/null || lack "installing $2 needs root or sudo"
        [ -z "${TESTBED_OPTIONAL-}" ] || sudo -n true 2>/dev/null || lack "installing $2 needs a password for sudo: make testbed asks for it"
    fi
    reach_packages || lack "$2 is missing and cannot be installed: apt does not reach its packages"
    say "installing $2"
    $sudo apt-get install -y --no-install-recommends $2 >/dev/null 2>&1 ||
        { $sudo apt-get update >/dev/null && $sudo apt-get install -y --no-install-recommends $2 >/dev/null; } ||
        lack "$2 could not be installed"
    has "$1" || [ "$1" = no-static-busybox ] || lack "the package $2 is installed, but $1 is not found"
}

# Busybox must be statically linked: neither the emulated host nor its guests have shared libraries.
need_busybox() { { [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1; } || need no-static-busybox busybox-static; }

# Unpacks the kernel package that linux-image-cloud-amd64 depends on into $kernel, without installing it.
need_kernel() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*cloud-amd64\)$/\1/p' | head -n 1)
    [ -n "$package" ] || lack "apt does not know the package linux-image-cloud-amd64: the testbed needs Debian"
    kernel=$bed/$package
    unpack "$package"
}

# Unpacks a package into a folder of $bed with its name, without installing it.
unpack() { # PACKAGE
    local folder=$bed/$1
    [ ! -e "$folder/done" ] || return 0
    reach_packages || lack "$1 is missing and cannot be fetched: apt does not reach its packages"
    say "fetching $1"
    rm -rf "$folder"; mkdir -p "$folder"
    (cd "$folder" && apt-get -o APT::Sandbox::User=root download "$1" >/dev/null && dpkg -x ./*.deb . && rm ./*.deb)
    touch "$folder/done"
}

# Sets $gdb to a gdb that needs no Python, because the emulated host has none.
need_gdb() {
    need gdb gdb-minimal
    gdb=$(command -v gdb)
    if ldd "$gdb" | grep -q libpython; then
        unpack gdb-minimal
        gdb=$bed/gdb-minimal/usr/bin/gdb
    fi
}
