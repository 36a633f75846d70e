# Shared by the scripts in this folder; sourced, not run.

say() { echo "$*" >&2; }
fail() { say "$0: $*"; exit 1; }

# The folder for what the tests need. Root's home is closed to the user that servers run as, so root
# installs for everybody.
tools_folder() {
    if [ -n "${PGP_TEST_TOOLS:-}" ]; then
        echo "$PGP_TEST_TOOLS"
    elif [ "$(id -u)" = 0 ]; then
        echo /var/cache/pgp-pitr/tools
    else
        echo "${XDG_CACHE_HOME:-$HOME/.cache}/pgp-pitr/tools"
    fi
}

# Makes the folder, for everybody to read, and keeps a second run of these scripts waiting.
lock_tools() {
    umask 022
    mkdir -p "$tools"
    exec 9>"$tools/.lock"
    flock 9
}

# Installs Debian's packages as root; anybody else is told what to type.
need_packages() {
    if [ "$(id -u)" != 0 ]; then
        fail "not root, so please first run: sudo apt-get install $*"
    fi
    if [ -z "${apt_is_fresh:-}" ]; then
        apt-get update -qq >&2
        apt_is_fresh=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

machine() {
    local name
    name=$(uname -m)
    case "$name" in
        x86_64 | aarch64) echo "$name" ;;
        *) fail "the pinned downloads are for x86_64 and aarch64, not for $name" ;;
    esac
}
