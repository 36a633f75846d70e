#!/usr/bin/env bash
# What indexing costs a push: WAL of a server that loads, updates and deletes, and each of its kinds of segments pushed with
# and without an index, in turns. Called by run.sh.
set -euo pipefail
work=$(mktemp -d "${PGP_BENCH_DIR:-/var/tmp}/pgp-index-XXXXXX")
chmod 755 "$work"
as=()
if [ "$(id -u)" = 0 ]; then
    chown postgres "$work"
    as=(setpriv --reuid postgres --regid postgres --clear-groups)
fi
export PATH=$PGP_BENCH_POSTGRES:$PATH PGHOST=$work PGPORT=54398 PGUSER=postgres PGDATABASE=postgres LC_ALL=C.UTF-8

stop() {
    "${as[@]}" pg_ctl -D "$work/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap stop EXIT

"${as[@]}" mkdir "$work/wal"
"${as[@]}" initdb --no-sync -A trust -U postgres -D "$work/data" >"$work/initdb.log"
cat >>"$work/data/postgresql.conf" <<CONF
unix_socket_directories = '$work'
listen_addresses = ''
port = 54398
fsync = off
max_wal_size = '1GB'
archive_mode = on
archive_command = 'cp %p $work/wal/%f'
CONF
"${as[@]}" pg_ctl -w -D "$work/data" -l "$work/log" start >"$work/start.log"
sql() { "${as[@]}" psql -XAtq -c "$1" -c 'checkpoint' -c 'select pg_switch_wal()' >/dev/null; }
"${as[@]}" pgbench -i -q -s 40 2>"$work/pgbench.log"
sql "create table random as select n, md5(random()::text) || md5(random()::text) as t from generate_series(1, 600000) n"
# After a checkpoint each first change of a page is told with an image of it; later ones are not.
"${as[@]}" pgbench -n -c 4 -t 8000 >"$work/pgbench.log" 2>&1
sql 'delete from random where n % 2 = 0'
sleep 1
"${as[@]}" pg_ctl -D "$work/data" -m fast stop >"$work/stop.log"
chmod -R a+rX "$work/wal"
mapfile -t segments < <(find "$work/wal" -name '????????????????????????' | sort)
chosen=()
step=$(((${#segments[@]} + 11) / 12))
for ((at = 0; at < ${#segments[@]}; at += step)); do
    chosen+=("${segments[$at]}")
done
cargo bench --locked --bench index -- "${chosen[@]}"
