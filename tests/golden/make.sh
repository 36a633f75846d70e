#!/usr/bin/env bash
# Makes the golden files again: make.sh [MAJOR]... (default: 14 15 16 17 18), into tests/golden/MAJOR/.
#
# A real server of each major writes them and its own tools say what is in them; README.md here lists them. Each
# run gives other system identifiers, times and positions, so the tests compare with the tools' words, never with
# numbers of their own. POSTGRES_BIN_13=FOLDER adds a server that tests/tools/postgres.sh does not install.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export LC_ALL=C TZ=UTC PGTZ=UTC PGDATABASE=template1 PGUSER=golden

# Servers refuse root.
as_server() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid postgres --regid postgres --clear-groups "$@"
    else
        "$@"
    fi
}

sql() { "$bin/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$work" -p "$port" -c "$1"; }

start() {
    as_server "$bin/pg_ctl" -D "$work/data" -w -s -l "$work/log" start || { cat "$work/log" >&2; exit 1; }
}
stop() { as_server "$bin/pg_ctl" -D "$work/data" -w -s -m fast stop; }

# Until file $1 has at least $2 bytes.
wait_for_file() {
    for _ in $(seq 300); do
        if [ "$(stat -c %s "$1" 2>/dev/null || echo 0)" -ge "${2:-1}" ]; then return; fi
        sleep 0.1
    done
    echo "$1 did not come" >&2
    exit 1
}

# Differences between majors that the parsers must cope with are spread over them on purpose.
choose() {
    segment_mib=16 manifest=(--manifest-checksums=CRC32C)
    case "$1" in
        14) manifest=(--manifest-checksums=NONE) ;;
        16) segment_mib=1 manifest=(--manifest-checksums=SHA256) ;;
        18) segment_mib=64 manifest=(--manifest-force-encode) ;;
    esac
}

make_cluster() {
    local checksums=(--data-checksums)
    if [ "$major" = 14 ]; then checksums=(); fi
    as_server "$bin/initdb" -D "$work/data" -U golden -A trust -E UTF8 --locale=C --wal-segsize="$segment_mib" \
        "${checksums[@]}" >"$work/initdb.log"
    cat >>"$work/data/postgresql.conf" <<SETTINGS
listen_addresses = ''
port = $port
unix_socket_directories = '$work'
archive_mode = on
archive_command = 'cp %p $work/archive/%f'
restore_command = 'cp $work/archive/%f %p 2>/dev/null'
wal_level = logical
max_wal_size = 2GB
max_connections = 57
max_worker_processes = 9
max_wal_senders = 5
max_prepared_transactions = 3
max_locks_per_transaction = 70
track_commit_timestamp = on
log_timezone = 'UTC'
SETTINGS
    if [ "$major" -ge 17 ]; then echo 'summarize_wal = on' >>"$work/data/postgresql.conf"; fi
    start
    # One database makes a small manifest.
    sql "UPDATE pg_database SET datistemplate = false WHERE datname = 'template0'"
    sql 'DROP DATABASE template0'
    sql 'DROP DATABASE postgres'
}

# Names that need escaping: a newline and a backslash in a tablespace's path, a byte that is not UTF-8 in a file's.
odd_names() {
    local folder="$work/odd "$'\n'"new\\line"
    as_server mkdir "$work/plain" "$folder"
    sql "CREATE TABLESPACE plain LOCATION '$work/plain'"
    sql "CREATE TABLESPACE odd LOCATION '$folder'"
    as_server touch "$work/data/odd"$'\xff'"file"
}

# A base backup, and the history file that the server archives about it.
make_backup() {
    "$bin/pg_basebackup" -h "$work" -p "$port" -D "$work/base" -Ft -X none -c fast --no-sync \
        -l "golden \"$major\"" "${manifest[@]}" 2>>"$work/log"
    tar -xf "$work/base/base.tar" -C "$out" backup_label tablespace_map
    cp "$work/base/backup_manifest" "$out/backup_manifest"
    local segment
    segment=$(sed -n 's/^START WAL LOCATION: .*(file \(.*\))$/\1/p' "$out/backup_label")
    for file in "$work/archive/$segment".*.backup; do
        wait_for_file "$file"
        cp "$file" "$out/"
    done
}

# The label of an incremental backup (17 and newer).
make_incremental() {
    "$bin/pg_basebackup" -h "$work" -p "$port" -D "$work/more" -Ft -X none -c fast --no-sync \
        --incremental="$work/base/backup_manifest" 2>>"$work/log"
    tar -xOf "$work/more/base.tar" backup_label >"$out/incremental.backup_label"
}

# A segment whose first page goes on with a record that began in the one before.
make_segment() {
    sql "SELECT pg_logical_emit_message(false, 'golden', repeat('g', (5000 + size - (pg_current_wal_insert_lsn() - '0/0')
         % size)::int)) FROM (SELECT ($segment_mib << 20)::numeric) AS s (size)" >/dev/null
    local segment
    segment=$(sql "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    sql 'SELECT pg_switch_wal()' >/dev/null
    wait_for_file "$work/archive/$segment" $((segment_mib << 20))
    keep_page "$segment" segment
}

# The first page of archived segment $1, and where pg_waldump finds the first record in it.
keep_page() {
    head -c 8192 "$work/archive/$1" >"$out/$2.page"
    {
        echo "name: $1"
        echo "size: $(stat -c %s "$work/archive/$1")"
        # Where the used part of the segment ends, so do its words, with an error.
        "$bin/pg_waldump" -n 3 "$work/archive/$1" 2>&1 || true
    } >"$out/$2.txt"
}

keep_control() {
    cp "$work/data/global/pg_control" "$out/$1.control"
    "$bin/pg_controldata" -D "$work/data" >"$out/$1.txt"
}

# Becomes a standby that reads the archive, and leaves it for a new timeline.
promote() {
    as_server touch "$work/data/standby.signal"
    start
    stop
    if [ "$1" = 2 ]; then keep_control recovering; fi
    start
    as_server "$bin/pg_ctl" -D "$work/data" -w -s promote
    sql 'CREATE TABLE t'"$1"' AS SELECT 1; CHECKPOINT; SELECT pg_switch_wal()' >/dev/null
    wait_for_file "$work/archive/0000000$1.history"
}

# A restore to the backup's end that is told to follow the newest timeline: the new timeline's history then has it
# leave timeline 3 at a point where 3 had not begun.
turn_back() {
    rm -rf "$work/data"
    as_server mkdir -m 700 "$work/data"
    tar -xf "$work/base/base.tar" -C "$work/data"
    if [ "$(id -u)" = 0 ]; then chown -R postgres:postgres "$work/data"; fi
    as_server mkdir -p "$work/data/pg_wal/archive_status"
    as_server touch "$work/data/recovery.signal"
    cat >>"$work/data/postgresql.conf" <<SETTINGS
recovery_target = immediate
recovery_target_action = promote
recovery_target_timeline = latest
SETTINGS
    start
    wait_for_file "$work/archive/00000004.history"
    stop
}

make_golden() {
    major=$1 bin=$2 port=5432 out="$here/$1"
    choose "$major"
    work=$(mktemp -d /tmp/golden-XXXXXX)
    chmod 755 "$work"
    if [ "$(id -u)" = 0 ]; then chown postgres:postgres "$work"; fi
    as_server mkdir "$work/archive"
    rm -rf "$out"
    mkdir "$out"
    make_cluster
    odd_names
    make_backup
    if [ "$major" -ge 17 ]; then make_incremental; fi
    make_segment
    stop
    promote 2
    stop
    promote 3
    stop
    keep_control stopped
    turn_back
    cp "$work"/archive/*.history "$out/"
    # The new timeline's first segment begins with the pages of the old one.
    keep_page "$(cd "$work/archive" && ls | grep -E '^00000002[0-9A-F]{16}$' | head -n 1)" fork
    "$bin/postgres" --version >"$out/version.txt"
    chmod 644 "$out"/*
    rm -rf "$work"
    work=
}

clean_up() {
    if [ -z "${work:-}" ]; then return; fi
    tail -n 20 "$work/log" >&2
    stop || true
    rm -rf "$work"
}

trap clean_up EXIT
majors=("$@")
if [ ${#majors[@]} = 0 ]; then majors=(14 15 16 17 18); fi
for major in "${majors[@]}"; do
    folder="POSTGRES_BIN_$major"
    folder=${!folder:-$("$here/../tools/postgres.sh" "$major" 2>/dev/null | sed 's/^[0-9]* //')}
    make_golden "$major" "$folder"
    echo "made $here/$major"
done
