# Functions that the scripts of this folder share: messages, installation of packages, and the kernel. Source this file.

bed=target/testbed

say() { echo "testbed: $*" >&2; }

need() { # PROGRAM PACKAGES
    command -v "$1" >/dev/null && return
    if ! command -v apt-get >/dev/null; then say "$1 is missing, and so is apt-get: install $1 by hand"; exit 1; fi
    local sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
    say "installing $2"
    $sudo apt-get install -y --no-install-recommends $2 >/dev/null 2>&1 ||
        { $sudo apt-get update >/dev/null && $sudo apt-get install -y --no-install-recommends $2 >/dev/null; } ||
        { say "$2 could not be installed"; exit 1; }
}

# Busybox must be statically linked: neither the emulated host nor its guests have shared libraries.
need_busybox() { { [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1; } || need no-static-busybox busybox-static; }

# Unpacks the kernel package that linux-image-cloud-amd64 depends on into $kernel, without installing it.
need_kernel() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*cloud-amd64\)$/\1/p' | head -n 1)
    [ -n "$package" ] || { say "apt does not know the package linux-image-cloud-amd64: the testbed needs Debian"; exit 1; }
    kernel=$bed/$package
    [ ! -e "$kernel/done" ] || return 0
    say "fetching $package"
    rm -rf "$kernel"; mkdir -p "$kernel"
    (cd "$kernel" && apt-get -o APT::Sandbox::User=root download "$package" >/dev/null && dpkg -x ./*.deb . && rm ./*.deb)
    touch "$kernel/done"
}
