#!/usr/bin/env bash
# The whole story in one minute: a PostgreSQL server is protected, loses a table by mistake, and comes back as it
# was just before. Each command is shown as you would type it. Everything lives in one temporary folder, which is
# removed at the end; servers that are already on this machine are left alone.
#
# Needs Debian or Ubuntu with Rust. As root it installs PostgreSQL if that is missing, and runs the server as the
# user postgres, as PostgreSQL demands; as anybody else it runs it as that user.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n%s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }

as_server() {
    if is_root; then setpriv --reuid postgres --regid postgres --init-groups -- "$@"; else "$@"; fi
}

# Shows a command, then runs it as the server's user.
run() {
    printf '  $ %s\n' "$1"
    as_server bash -c "set -euo pipefail; $1" 2>&1 | sed 's/^/    /'
}

quiet() { as_server "$@" >>"$work/log" 2>&1 || { cat "$work/log" >&2; fail "failed: $*"; }; }

find_postgres() {
    find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1
}

install_missing() {
    local packages=()
    [ -n "$(find_postgres)" ] || packages+=(postgresql)
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    [ ${#packages[@]} -gt 0 ] || return 0
    say "Installing: ${packages[*]}"
    is_root || fail "please run first: sudo apt-get install ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Without its default server, which nobody here needs.
    apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null
    sed -i -E '/^ *create_main_cluster/d' /etc/postgresql-common/createcluster.conf
    echo 'create_main_cluster = false' >>/etc/postgresql-common/createcluster.conf
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

work=
clean_up() {
    local status=$?
    trap - EXIT
    [ -n "$work" ] || exit "$status"
    for data in "$work/server" "$work/rescued"; do
        # pg_ctl reads the process id from the directory itself, so it stops our servers only.
        if [ -f "$data/postmaster.pid" ]; then as_server pg_ctl stop -s -m immediate -D "$data" || true; fi
    done
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

install_missing
say "Building pgp-pitr (some minutes the first time)"
cargo build --release --locked --quiet --bins
built=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd)

started=$SECONDS
work=$(mktemp -d /tmp/pgp-quickstart.XXXXXX)
chmod 755 "$work"
mkdir "$work/bin"
install -m 755 "$built/pgp-pitr" "$built/pgp-archive" "$built/pgp-restore" "$work/bin"
if is_root; then chown postgres:postgres "$work"; fi
cd "$work"

repo=$work/repository
# A clean slate: settings of the caller must not lead these commands to another server or repository.
for name in $(compgen -e | grep -E '^(PG|PGP_)' || true); do unset "$name"; done
postgres=$(find_postgres)
# Root's home is closed to the user that the commands run as.
export HOME="$work" PATH="$work/bin:$postgres:$PATH" PGHOST="$work" PGPORT=5432 PGUSER=postgres PGDATABASE=postgres

say "1. A new PostgreSQL server, in $work/server."
quiet initdb -D server -U postgres --auth=trust --encoding=UTF8 --locale=C
say "2. A repository for backups: here a folder; s3://BUCKET/PREFIX works the same way."
run "pgp-pitr init --repo $repo"
say "3. The server is told to hand each finished WAL file to pgp-archive."
cat >>server/postgresql.conf <<CONF
listen_addresses = ''
unix_socket_directories = '$work'
archive_mode = on
archive_command = '$work/bin/pgp-archive %p --repo $repo'
CONF
grep '^archive_' server/postgresql.conf | sed 's/^/    /'
quiet pg_ctl start -w -D server -l server.log
say "4. Is everything as it must be?"
run "pgp-pitr check -d 'host=$work user=postgres' --repo $repo"
say "5. A base backup: the place to start from."
run "pgp-pitr backup -d 'host=$work user=postgres' --repo $repo"

say "6. Work goes on: orders come in."
run "psql -Xqc \"create table orders as select n as id, 'customer ' || n % 100 as customer, n * 3 as cents
          from generate_series(1, 10000) n\""
run "psql -Xqc \"insert into orders values (10001, 'the last customer', 4711)\""
sleep 1
before=$(as_server psql -XAtqc 'select clock_timestamp()')
sleep 1
say "7. The mistake, one second after $before:"
run "psql -Xc 'drop table orders'"
run "psql -Xc 'select count(*) from orders' || true"

say "8. The damaged server is stopped; before that it is asked to hand over the WAL file it is still writing."
file=$(as_server psql -XAtqc 'select pg_walfile_name(pg_switch_wal())')
for _ in $(seq 300); do
    archived=$(as_server psql -XAtqc "select coalesce(last_archived_wal, '') >= '$file' from pg_stat_archiver")
    [ "$archived" = t ] && break
    sleep 0.1
done
[ "$archived" = t ] || fail "the server could not archive its WAL; see $(tail -n 5 server.log)"
run "pg_ctl stop -s -m fast -D server"

say "9. What would a restore to that moment do? Nothing is written yet."
run "pgp-pitr plan --repo $repo --to $work/rescued --target-time '$before'"
say "10. The restore, into a new directory. Recovery is to end in a server that takes writes again."
run "pgp-pitr restore --repo $repo --to $work/rescued --target-time '$before' --target-action promote"
quiet pg_ctl start -w -D rescued -l rescued.log
for _ in $(seq 300); do
    recovering=$(as_server psql -XAtqc 'select pg_is_in_recovery()')
    [ "$recovering" = f ] && break
    sleep 0.1
done
[ "$recovering" = f ] || fail "recovery did not end: $(tail -n 5 rescued.log)"

say "11. The orders are back, up to the very last one:"
run "psql -Xc 'select count(*), max(id) from orders' -c 'select * from orders order by id desc limit 3'"
rows=$(as_server psql -XAtqc 'select count(*) from orders')
[ "$rows" = 10001 ] || fail "expected 10001 orders, found $rows"
run "pgp-pitr list --repo $repo"

say "Done in $((SECONDS - started)) seconds after the build. $work is removed again."
