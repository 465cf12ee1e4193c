#!/usr/bin/env bash
# Installs public clients whose libraries cannot be in .venv with ours, for `pytest -m clients`. Each gets a folder under
# .venv/clients that a test puts on the path of a process of its own: its own libraries come from there, the rest from
# .venv. Run it after `make test` or tools/environment.sh dev.
set -euo pipefail

venv=${VENV:-.venv}
folder=$venv/clients
# What .venv has in another version, or not at all; left out is what these clients never import.
tgi=("text-generation==0.7.0" "huggingface-hub==0.36.2")
kserve=(
    "kserve==0.21.0" "cloudevents<2" "kubernetes<36" "pandas<3" "fastapi==0.140.*" orjson timing-asgi tabulate
    grpc-interceptor annotated-doc typing-inspection deprecation requests-oauthlib oauthlib durationpy
    websocket-client pytz tzdata watchfiles six python-dateutil
)
# The last tritonclient whose bundled perf_analyzer runs with glibc 2.36; the package perf-analyzer holds no program.
perf_analyzer="tritonclient==2.51.0"
cuda="nvidia-cuda-runtime-cu12==12.9.79" # perf_analyzer is linked with it, and runs without a GPU

say() { printf '==> %s\n' "$*"; }
fail() {
    printf 'Error: %s\n' "$*" >&2
    exit 1
}
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

install() {
    local name=$1
    shift
    [ -e "$folder/$name/.ready-$(printf '%s ' "$@" | cksum | cut -d' ' -f1)" ] && return
    say "Installing $1 into $folder/$name"
    rm -rf "${folder:?}/$name"
    pip install --no-deps --target "$folder/$name" "$@" || fail "pip could not install $name; its words are above."
    touch "$folder/$name/.ready-$(printf '%s ' "$@" | cksum | cut -d' ' -f1)"
}

install_perf_analyzer() {
    local into=$folder/perf_analyzer wheels
    [ -e "$into/.ready" ] && return
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "perf_analyzer is there for Linux on x86-64 only."
    say "Installing perf_analyzer into $into"
    rm -rf "$into"
    mkdir -p "$into"
    wheels=$(mktemp -d)
    pip download --no-deps --dest "$wheels" "$perf_analyzer" "$cuda" || fail "pip could not fetch perf_analyzer."
    "$venv/bin/python" - "$wheels" "$into" <<'PYTHON'
import pathlib, sys, zipfile

wheels, into = map(pathlib.Path, sys.argv[1:])
for wheel in wheels.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(("/bin/perf_analyzer", "/libcudart.so.12")):
                path = into / pathlib.PurePosixPath(name).name
                path.write_bytes(archive.read(name))
                path.chmod(0o755)
PYTHON
    if ! ldconfig -p 2>/dev/null | grep -q 'libb64\.so\.0d'; then
        (cd "$wheels" && { apt-get download -qq libb64-0d || { apt-get update -qq && apt-get download -qq libb64-0d; }; }) ||
            fail "perf_analyzer needs the library libb64.so.0d (Debian: apt-get install libb64-0d)."
        dpkg-deb --extract "$wheels"/libb64-0d_*.deb "$wheels/deb"
        find "$wheels/deb" -name 'libb64.so.0d' -exec cp -L {} "$into" \;
    fi
    rm -rf "$wheels"
    LD_LIBRARY_PATH=$into "$into/perf_analyzer" --version >/dev/null 2>&1 || fail "perf_analyzer does not start here."
    touch "$into/.ready"
}

[ -x "$venv/bin/python" ] || fail "there is no $venv yet. Run tools/environment.sh dev first."
install tgi "${tgi[@]}"
install kserve "${kserve[@]}"
install_perf_analyzer
