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
# The C++ library too: torch throws, and the sanitizer looks for the thrower when it starts.
export LD_PRELOAD="$(g++ -print-file-name=$runtime) $(g++ -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS:-}"
export TSAN_OPTIONS="halt_on_error=0:report_signal_unsafe=0:${TSAN_OPTIONS:-}"
run=()
[ "$kind" = thread ] && run=(setarch "$(uname -m)" -R)  # the shadow of its memory wants fixed addresses
exec nice "${run[@]}" "$python" -m pytest -n logical -p no:cacheprovider -p tests.support.guarded_memory \
    --native-library "$library" "${@:-tests/ops}"
