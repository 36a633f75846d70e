#!/usr/bin/env bash
# Builds versitygw, the S3 server that the tests use: s3.sh
#
# Doing it again changes nothing. The last line printed is the path of the program.
set -euo pipefail
# shellcheck source=tests/tools/common.sh
. "$(dirname "$0")/common.sh"

version=v1.8.0
# The oldest Go that can build this version.
go_needed=1.25.0
tools=$(tools_folder)
program="$tools/versitygw-$version/versitygw"

# Prints a Go that is new enough. Debian's is too old, but it can fetch the one that is needed: as a module, with
# its checksum verified like any other module's.
new_enough_go() {
    command -v go >/dev/null || need_packages golang-go
    local present
    present=$(go env GOVERSION | sed -E 's/^go//; s/[^0-9.].*//')
    if [ "$(printf '%s\n' "$go_needed" "$present" | sort -V | head -n 1)" = "$go_needed" ]; then
        echo go
        return
    fi
    local name architecture root
    architecture=$(go env GOARCH)
    name="golang.org/toolchain@v0.0.1-go$go_needed.linux-$architecture"
    say "go $present is older than $go_needed: fetching $name"
    (cd "$tools" && GOFLAGS=-modcacherw go mod download "$name" >&2)
    root="$(go env GOMODCACHE)/$name"
    # Modules carry no executable bits.
    chmod +x "$root"/bin/* "$root/pkg/tool/linux_$architecture"/*
    echo "$root/bin/go"
}

lock_tools
if ! [ -x "$program" ]; then
    go=$(new_enough_go)
    say "building versitygw $version (a few minutes the first time)"
    scratch=$(mktemp -d "$tools/.versitygw.XXXXXX")
    # GOROOT and GOTOOLCHAIN of the caller may belong to another Go.
    env -u GOROOT GOTOOLCHAIN=local GOBIN="$scratch" "$go" install "github.com/versity/versitygw/cmd/versitygw@$version" >&2
    chmod -R u=rwX,go=rX "$scratch"
    rm -rf "$(dirname "$program")"
    mv "$scratch" "$(dirname "$program")"
fi
echo "$program"
