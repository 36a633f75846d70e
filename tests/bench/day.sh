#!/usr/bin/env bash
# A day of WAL: 5,000 segments of a server that pgbench keeps busy, a table dropped now and then. How long `find` takes to
# tell everything remarkable, from a folder, and what it reads. Called by run.sh.
#
# The segments are of 1 MiB, so that it takes minutes and not hours to write them: their indexes are smaller than those of
# 16 MiB, of which a last line tells.
set -euo pipefail
segments=${PGP_BENCH_SEGMENTS:-5000}
rounds=${PGP_BENCH_ROUNDS:-5}
work=$(mktemp -d "${PGP_BENCH_DIR:-/var/tmp}/pgp-day-XXXXXX")
chmod 755 "$work"
as=()
if [ "$(id -u)" = 0 ]; then
    chown postgres "$work"
    as=(setpriv --reuid postgres --regid postgres --clear-groups)
fi
mkdir "$work/bin"
cp "$PGP_BENCH_BUILT"/pgp-pitr "$PGP_BENCH_BUILT"/pgp-archive "$work/bin"
export PATH=$work/bin:$PGP_BENCH_POSTGRES:$PATH PGHOST=$work PGPORT=54397 PGUSER=postgres PGDATABASE=postgres LC_ALL=C.UTF-8
cd "$work"

stop() {
    "${as[@]}" pg_ctl -D "$work/data" -m immediate stop >"$work/stop.log" 2>&1 || true
    rm -rf "$work"
}
trap stop EXIT

server() { # SEGMENT_MB REPOSITORY
    rm -rf "$work/data"
    "${as[@]}" pgp-pitr init --repo "$2" >"$work/init.log"
    "${as[@]}" initdb --no-sync -A trust -U postgres --wal-segsize="$1" -D "$work/data" >"$work/initdb.log"
    cat >>"$work/data/postgresql.conf" <<CONF
unix_socket_directories = '$work'
listen_addresses = ''
port = 54397
fsync = off
synchronous_commit = off
max_wal_size = '2GB'
archive_mode = on
archive_command = 'pgp-archive %p --repo $2'
CONF
    "${as[@]}" pg_ctl -w -D "$work/data" -l "$work/log" start >"$work/start.log"
    "${as[@]}" pgbench -i -q -s 20 2>"$work/pgbench.log"
    "${as[@]}" pgp-pitr backup --repo "$2" -d "host=$work port=54397 user=postgres dbname=postgres" >"$work/backup.log" 2>&1
}

archived() { find "$1/clusters" -path '*/wal/*' -name '????????????????????????.zst' | wc -l; }

busy() { # REPOSITORY SEGMENTS
    while [ "$(archived "$1")" -lt "$2" ]; do
        "${as[@]}" pgbench -n -c 4 -T 5 >"$work/pgbench.log" 2>&1
        # The quickest way to much WAL.
        "${as[@]}" psql -Xq -c 'update pgbench_accounts set abalance = abalance + 1' -c 'vacuum pgbench_accounts'
        "${as[@]}" psql -Xq -c 'create table made as select generate_series(1, 1000) x' -c 'drop table made'
    done
    "${as[@]}" pg_ctl -D "$work/data" -m fast stop >"$work/stop.log"
}

measured() { # NAME REPOSITORY
    local times=() count bytes
    for _ in $(seq "$rounds"); do
        local began ended
        began=$(date +%s%N)
        pgp-pitr find --json --repo "$2" >"$work/found.json"
        ended=$(date +%s%N)
        times+=($(((ended - began) / 1000000)))
    done
    readarray -t times < <(printf '%s\n' "${times[@]}" | sort -n)
    count=$(archived "$2")
    bytes=$(strace -f -e trace=pread64 pgp-pitr find --json --repo "$2" 2>&1 >/dev/null |
        awk '/= [0-9]+$/ { calls++; bytes += $NF } END { printf "%d reads, %.1f MB", calls, bytes / 1e6 }' || true)
    printf '%-34s %6d segments  median %6d ms  %s  %d events\n' "$1" "$count" "${times[$((rounds / 2))]}" "$bytes" \
        "$(python3 -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["events"]))' "$work/found.json")"
}

server 1 "$work/day"
busy "$work/day" "$segments"
measured "find, a day of WAL of 1 MiB" "$work/day"
server 16 "$work/large"
busy "$work/large" $((segments / 100))
measured "find, WAL of 16 MiB" "$work/large"
