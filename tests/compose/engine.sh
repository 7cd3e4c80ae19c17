#!/usr/bin/env bash
# A Docker engine for the compose tests, on a machine that has none: packages, daemon, base images. Does nothing where an
# engine answers and the base images are there. Everything it needs to know (mirrors, keys, proxy, certificates) it takes
# from the machine's own settings, and apt's settings stay as they are.
#
#   tests/compose/engine.sh          make it ready
#   tests/compose/engine.sh folder   print where it keeps its data and settings
#   tests/compose/engine.sh stop     stop the daemon that this script started (its images stay)
set -euo pipefail

engine=${WEIGHTLESS_ENGINE_DIR:-/var/lib/weightless-engine} # data root, settings, pid and log of the daemon
debian_image=${DEBIAN_IMAGE:-debian:bookworm-slim}
go_image=${GO_IMAGE:-golang:1.26-bookworm}
suite=bookworm

say() { printf 'engine: %s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}
until_true() { # until_true SECONDS COMMAND...: polls; the condition ends the wait, not the clock
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}
answers() { docker info --format '{{.ServerVersion}}' >/dev/null 2>&1; }
complete() { command -v dockerd debootstrap iptables >/dev/null && docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; }

# Where this machine's apt has Debian's main archive from, whichever file and form that stands in.
mirror() {
    local uri
    [ -f "$scratch/updated" ] || apt-get update -qq >&2 # a codename is known from what this fetches
    touch "$scratch/updated"
    # shellcheck disable=SC2016 # the $(…) is apt's own placeholder
    uri=$(apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Codename: $suite" "Component: main" | head -n 1)
    [ -n "$uri" ] || fail "required an apt source for Debian $suite, component main, found none"
    printf '%s\n' "$uri"
}

install_packages() {
    [ "$(id -u)" = 0 ] || fail "no Docker engine answers and only root can set one up: run this as root, or start your engine"
    local code
    # shellcheck source=/dev/null
    code=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    [ "$code" = "$suite" ] || fail "no Docker engine answers; required Debian $suite to set one up, found ${code:-an unknown system}: install Docker Engine 25 or newer with compose and buildx"

    say "installing the engine's packages"
    local apt=$scratch/apt uri
    mkdir -p "$apt/sources" "$apt/preferences" "$apt/lists"
    cp -r /etc/apt/sources.list.d/. "$apt/sources/"
    uri=$(mirror)
    # The suite's own engine is too old for compose's plugins; the next suite's needs no newer libc. Pinned at 100, nothing
    # else is taken from there.
    printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\n' "$uri" >"$apt/sources/next.sources"
    printf 'Package: *\nPin: release n=trixie\nPin-Priority: 100\n' >"$apt/preferences/next"
    local options=(-qq -o "Dir::Etc::sourceparts=$apt/sources" -o "Dir::Etc::preferencesparts=$apt/preferences" -o "Dir::State::lists=$apt/lists")
    apt-get "${options[@]}" update
    DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install -y --no-install-recommends \
        docker.io/trixie docker-cli/trixie docker-compose/trixie docker-buildx/trixie containerd/trixie \
        debootstrap iptables >"$scratch/apt.log" 2>&1 || {
        tail -n 20 "$scratch/apt.log" >&2
        fail "apt-get could not install the engine"
    }
}

# Whether the number is that of a daemon of Docker's that runs.
alive() {
    local status
    status=$(cat "/proc/$1/status" 2>/dev/null) || return 1
    [[ $status == Name:$'\t'@(dockerd|containerd)$'\n'* && $status != *State:$'\t'Z* ]]
}

start_daemon() {
    say "starting dockerd with its data in $engine"
    mkdir -p "$engine"
    # A daemon that was killed leaves its pid file, and dockerd will not start while the number in it is somebody's: another
    # program's by now, or that of a zombie that nobody has buried.
    local pidfile
    for pidfile in "$engine/dockerd.pid" /run/docker/containerd/containerd.pid; do
        [ -f "$pidfile" ] || continue
        alive "$(cat "$pidfile")" || rm -f "$pidfile"
    done
    # Each change of a locked requirement leaves gigabytes of layers in the build cache.
    [ -f "$engine/daemon.json" ] || echo '{"builder": {"gc": {"enabled": true, "defaultKeepStorage": "20GB"}}}' >"$engine/daemon.json"
    # A session and descriptors of its own: it outlives the shell and never holds a pipe of whoever called this script open.
    setsid dockerd --data-root "$engine/data" --config-file "$engine/daemon.json" --pidfile "$engine/dockerd.pid" \
        </dev/null >>"$engine/dockerd.log" 2>&1 9>&- &
    until_true 60 answers || {
        tail -n 20 "$engine/dockerd.log" >&2
        fail "dockerd does not answer; its log is $engine/dockerd.log"
    }
}

ours() { [ "$(docker info --format '{{.DockerRootDir}}')" = "$engine/data" ]; }
has_image() { docker image inspect "$1" >/dev/null 2>&1; }
# An engine that is not ours may have a registry behind it.
obtained() { has_image "$1" || { ! ours && docker pull -q "$1" >/dev/null 2>&1; }; }

# A Debian root folder with what builds need to reach the mirrors from this machine: its apt source, proxy and certificates.
make_root() {
    command -v debootstrap >/dev/null || fail "required the image $debian_image or debootstrap to make it, found neither"
    local root=$1 uri
    uri=$(mirror)
    say "making $debian_image"
    debootstrap --variant=minbase "$suite" "$root" "$uri" >"$scratch/debootstrap.log" 2>&1 || {
        tail -n 20 "$scratch/debootstrap.log" >&2
        fail "debootstrap failed"
    }
    rm -rf "$root"/etc/apt/sources.list "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' "Created-By: Packages" "Origin: Debian" |
        sed 's/^/deb /' | sort -u >"$root/etc/apt/sources.list"
    apt-config dump Acquire | grep -i proxy >"$root/etc/apt/apt.conf.d/90machine" || rm -f "$root/etc/apt/apt.conf.d/90machine"
    mkdir -p "$root/etc/ssl/certs" "$root/usr/local/share/ca-certificates"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
    chmod 1777 "$root/tmp" # a tmpfs mounted there takes over this mode
}

make_images() {
    if ! obtained "$debian_image"; then
        make_root "$scratch/root"
        tar -C "$scratch/root" -c . | docker import --change 'CMD ["bash"]' - "$debian_image" >/dev/null
    fi
    if ! obtained "$go_image"; then
        command -v go >/dev/null || fail "required the image $go_image or Go on this machine to make it, found neither"
        say "making $go_image"
        mkdir "$scratch/go"
        printf 'FROM %s\nCOPY --from=toolchain / /usr/local/go/\nENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin GOPATH=/go GOTOOLCHAIN=local\n' "$debian_image" |
            docker buildx build -q --build-context "toolchain=$(go env GOROOT)" -t "$go_image" -f - "$scratch/go" >/dev/null
    fi
}

stop() {
    [ -f "$engine/dockerd.pid" ] || fail "no daemon of this script runs"
    kill "$(cat "$engine/dockerd.pid")"
}

case ${1:-} in
folder)
    printf '%s\n' "$engine"
    exit
    ;;
stop)
    stop
    exit
    ;;
esac
scratch=$(mktemp -d)
chmod 755 "$scratch" # apt downloads as a user of its own
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$(dirname "$engine")" 2>/dev/null || true
exec 9>"${TMPDIR:-/tmp}/weightless-engine.lock"
flock 9 # two callers at once make one engine
if ! answers; then
    complete || install_packages
    answers || start_daemon
fi
make_images
say "ready: Docker $(docker version --format '{{.Server.Version}}'), compose $(docker compose version --short)"
