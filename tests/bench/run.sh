#!/usr/bin/env bash
# Measures this tool against floors made of standard tools and, where it is installed, pgBackRest:
# tests/bench/run.sh archive|backup|restore|receive|year|day|index
#
# Prints a table with medians and ratios and writes the same as JSON to target/bench/. Settings, as environment:
#   PGP_BENCH_MB        size of the cluster for backup and restore (1200)
#   PGP_BENCH_SEGMENTS  segments, one each round, for archive (20); of the day (5000)
#   PGP_BENCH_ROUNDS    rounds for backup, restore and receive (5)
#   PGP_BENCH_WAL_MB    WAL to catch up on, for receive (1000)
#   PGP_BENCH_SECONDS   how long commits wait, for receive (10)
#   PGP_BENCH_DIR       where the data lies (/var/tmp; needs five times the cluster's size, and for year 530,000 inodes)
set -euo pipefail
case "${1:-}" in
    archive | backup | restore | receive | year | day | index) ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
cd "$(dirname "$0")/../.."
# shellcheck source=tests/tools/common.sh
. tests/tools/common.sh

command -v cc >/dev/null || need_packages gcc libc6-dev
mkdir -p target/bench
PGP_BENCH_JSON=$PWD/target/bench/$1.json
export PGP_BENCH_JSON
# A year of WAL is made up, without a server.
[ "$1" != year ] || exec cargo bench --locked --bench year

command -v zstd >/dev/null || need_packages zstd
command -v python3 >/dev/null || need_packages python3
PGP_BENCH_POSTGRES=$(tests/tools/postgres.sh 15 2>/dev/null | tail -n 1 | cut -d ' ' -f 2)
if [ "$1" = index ]; then
    export PGP_BENCH_POSTGRES
    exec tests/bench/index.sh
fi
cargo build --release --locked --bins
PGP_BENCH_BUILT=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd)
export PGP_BENCH_POSTGRES PGP_BENCH_BUILT
if [ "$1" = day ]; then
    command -v strace >/dev/null || need_packages strace
    exec tests/bench/day.sh
fi
if [ "$1" = receive ]; then
    PGP_BENCH_S3=$(tests/tools/s3.sh 2>/dev/null | tail -n 1)
    export PGP_BENCH_S3
    exec python3 tests/bench/receive.py
fi
exec python3 tests/bench/scenarios.py "$1"
