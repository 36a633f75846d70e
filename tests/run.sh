#!/usr/bin/env bash
# Installs what the tests need, then runs all of them: tests/run.sh [ARGUMENTS OF cargo test]...
#
# For a Debian or Ubuntu machine with Rust; best as root, who may install packages. Doing it again installs
# nothing twice. For one test: tests/run.sh --test it NAME
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/tools/common.sh
. tests/tools/common.sh

echo "== tools"
command -v cc >/dev/null || need_packages gcc libc6-dev
# Documents show how to read a repository without our programs.
command -v zstd >/dev/null || need_packages zstd
# Breaks the disk in the tests of faults.
command -v strace >/dev/null || need_packages strace
tests/tools/postgres.sh
tests/tools/s3.sh
# Debian's package makes this account; servers refuse to run as root.
if [ "$(id -u)" = 0 ] && ! id postgres >/dev/null 2>&1; then
    useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin postgres
fi

echo "== tests"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
cargo test --locked --no-fail-fast "$@" 2>&1 </dev/null | tee "$log" || failed=1

# The runner's own summaries once more, so that they are the last lines; those of targets without a test say nothing.
echo "== results"
grep '^test result:' "$log" | grep -v ' 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out' || true
exit "$failed"
