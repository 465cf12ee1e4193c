#!/usr/bin/env bash
# Builds the native library with a sanitizer, beside the ordinary one, and runs the tests of the ops on it.
#
#   tools/sanitize.sh address [PYTEST ARGUMENTS]    out-of-bounds and freed memory; what `make asan` and CI run
#   tools/sanitize.sh thread  [PYTEST ARGUMENTS]    data races; by hand, for a change of threads.cpp or of a barrier
#
# Memory the library gets lies between pages that cannot be touched (tests/support/guarded_memory.py), so that AMX tile
# loads and masked loads, which a sanitizer does not see, are caught as well.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-address}
shift || true
python=${VENV:-.venv}/bin/python
MILLPOND_SANITIZE=$kind nice "$python" setup.py -q build_ext
library=$(find "build/sanitize-$kind" -name '_native*.so' | head -n 1)
[ -n "$library" ] || { echo "the native library was not built: run the command above without -q" >&2; exit 1; }
case $kind in
    address) runtime=libasan.so ;;
    thread) runtime=libtsan.so ;;
    *) echo "usage: tools/sanitize.sh address|thread [PYTEST ARGUMENTS]" >&2; exit 2 ;;
esac
# What it finds goes to files: pytest keeps what a test that passes, or a process that dies, said on its standard error.
reports=$PWD/build/sanitize-$kind/reports
rm -rf "$reports"
mkdir -p "$reports"
export ASAN_OPTIONS="detect_leaks=0:log_path=$reports/report:${ASAN_OPTIONS:-}"
export TSAN_OPTIONS="halt_on_error=0:report_signal_unsafe=0:ignore_noninstrumented_modules=1:log_path=$reports/report:${TSAN_OPTIONS:-}"
run=(nice)
[ "$kind" = thread ] && run+=(setarch "$(uname -m)" -R) # the shadow of its memory wants fixed addresses
# The C++ library too: torch throws, and the sanitizer looks for the thrower when it starts.
preload="$(g++ -print-file-name=$runtime) $(g++ -print-file-name=libstdc++.so.6)"
status=0
LD_PRELOAD=$preload "${run[@]}" "$python" -m pytest -n logical -p no:cacheprovider -p tests.support.guarded_memory \
    --native-library "$library" "${@:-tests/ops}" || status=$?
if [ -n "$(ls "$reports")" ]; then
    cat "$reports"/*
    echo "Error: the sanitizer found something; its words are above." >&2
    exit 1
fi
exit "$status"
