#!/usr/bin/env bash
# Makes or refreshes .venv for `make serve` and `make test`: environment.sh serve|dev
# Says what it does and how much it downloads, and fails with a sentence where something is missing. PIP_* variables are
# passed through, e.g. PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL to take PyTorch's CPU build.
set -euo pipefail

extra=${1:?usage: environment.sh serve|dev}
venv=${VENV:-.venv}
gib=$((1024 * 1024)) # in KiB

say() { printf '==> %s\n' "$*"; }
warn() { printf 'Warning: %s\n' "$*" >&2; }
fail() {
    printf 'Error: %s\n' "$*" >&2
    exit 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local name
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        if is_new_enough "$name"; then
            printf '%s' "$name"
            return
        fi
    done
    fail "no Python of version 3.11 or later was found. Install one (Debian: apt-get install python3 python3-venv)," \
        "or name it: make $extra PYTHON=/path/to/python3"
}

check_memory() {
    local free
    [ -r /proc/meminfo ] || return 0
    free=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
    if [ "${free:-0}" -gt 0 ] && [ "$free" -lt $((2 * gib)) ]; then
        fail "only $((free / 1024)) MiB of memory are free and 2048 are needed. Stop other programs or take a larger machine."
    fi
}

check_disk() {
    local free
    free=$(df -Pk . | awk 'NR == 2 { print $4 }')
    if [ "$free" -lt $((3 * gib)) ]; then
        fail "only $((free / 1024)) MiB of disk are free here and at least 3072 are needed. Free some."
    elif [ "$free" -lt $((10 * gib)) ]; then
        warn "$((free / gib)) GiB of disk are free: enough for PyTorch's CPU build, perhaps not for its default build."
    fi
}

check_compiler() {
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        warn "no C++ compiler was found, so Millpond will run on its slower torch reference." \
            "Install one (Debian: apt-get install g++) and run 'make clean' to change that."
}

make_venv() {
    local python=$1
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$python has no venv module. Install it (Debian: apt-get install python3-venv)."
    say "Making $venv with $("$python" --version 2>&1)"
    "$python" -m venv "$venv" || fail "$venv could not be made. Read the lines above, then 'make clean' and try again."
}

# pip says nothing for minutes while it fetches large files; a word now and then shows that it lives.
tick() {
    local seconds=0
    trap 'kill $! 2>/dev/null; exit 0' TERM
    while true; do
        sleep 20 >/dev/null 2>&1 &
        wait $!
        seconds=$((seconds + 20))
        printf '    ... still installing, %d s\n' "$seconds"
    done
}

install() {
    local ticker status=0
    tick &
    ticker=$!
    trap 'kill "$ticker" 2>/dev/null || true' EXIT
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$1]" || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    trap - EXIT
    [ "$status" -eq 0 ] || fail "pip could not install the libraries. Its own words are above; check the network and PIP_* settings."
}

check_memory
if ! is_new_enough "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    check_disk
    python=$(find_python) || exit 1
    make_venv "$python"
fi
check_compiler
case $extra in
serve) extras=serve what="Millpond and its libraries" ;;
dev) extras=serve,dev what="Millpond, its libraries and the test tools" ;;
*) fail "there is no environment called '$extra'. Use serve or dev." ;;
esac
say "Installing $what into $venv"
if ! "$venv/bin/python" -c 'import torch' >/dev/null 2>&1; then
    say "The first time this downloads about 0.4 GB with PyTorch's CPU build and about 3 GB with its default build"
    say "(docs/guide/quickstart.md says how to choose). Libraries that are there already are not fetched again."
fi
install "$extras"
say "Installed in $SECONDS s"
