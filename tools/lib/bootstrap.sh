# Sourced by the scripts in tools/: brings a fresh Debian machine to the point where they can run.
#
#   need_packages PACKAGE...   installs the Debian packages that are missing
#   use_python MODULE...       sets PYTHON to an interpreter that imports these modules
#
# The machine's own python3 is taken when it has the modules. Otherwise a virtual environment with
# the project's `dev` extra is made, once, in the cache (PYVFIO_CACHE, by default ~/.cache/pyvfio).
# The checkout itself is never installed: PYTHONPATH points at it.

set -euo pipefail

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
HOME=${HOME:-$(getent passwd "$EUID" | cut -d: -f6)} # not set where systemd starts us
export HOME PYVFIO_CACHE=${PYVFIO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pyvfio}
# An ordinary user's PATH on Debian lacks these; depmod and modprobe are there.
export PATH=$PATH:/usr/sbin:/sbin
export PYTHONPATH=$CHECKOUT${PYTHONPATH:+:$PYTHONPATH}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

package_installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

need_packages() {
    local missing=() package as_root=()
    for package; do
        package_installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null ||
        die "needs ${missing[*]}, and this is not a Debian machine: install what they hold by hand"
    if ((EUID != 0)); then
        # Where somebody can type, sudo may ask for the password.
        as_root=(sudo)
        [[ -t 0 && -t 2 ]] || as_root+=(-n)
        "${as_root[@]}" true || die "needs packages that only root can install. Run, then try again:
    sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}"
    fi
    say "Installing Debian packages: ${missing[*]}"
    local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y
        -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}")
    # Package lists may be absent (containers) or too old to name a file the mirror still has.
    "${install[@]}" >&2 || {
        "${as_root[@]}" apt-get -q update >&2 && "${install[@]}" >&2
    } || die "apt-get could not install ${missing[*]}; its messages are above"
}

has_modules() {
    local python=$1
    shift
    "$python" - "$@" 2>/dev/null <<'PYTHON'
import importlib.util
import sys

# The parent package may itself be absent, which find_spec reports by raising. A folder that only
# happens to have the name has no origin.
specs = [importlib.util.find_spec(module) for module in sys.argv[1:]]
sys.exit(sys.version_info < (3, 10) or not all(spec and spec.origin for spec in specs))
PYTHON
}

use_python() {
    PYTHON=$(command -v python3 || true)
    if [[ -n $PYTHON ]] && has_modules "$PYTHON" "$@"; then
        return
    fi
    if [[ -z $PYTHON ]] || ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        need_packages python3 python3-venv
        PYTHON=/usr/bin/python3
    fi
    local requirements key venv
    requirements=$(dev_requirements)
    key=$("$PYTHON" -c 'import sys; print(sys.version, sys.executable)' |
        cat - <(echo "$requirements") | sha256sum | cut -c1-16)
    venv=$PYVFIO_CACHE/venv-$key
    if [[ ! -e $venv/complete ]]; then
        make_venv "$venv" "$requirements"
    fi
    PYTHON=$venv/bin/python
    has_modules "$PYTHON" "$@" ||
        die "$venv lacks some of: $*. Is the module in setup.cfg's dev extra?"
}

dev_requirements() {
    "$PYTHON" - "$CHECKOUT/setup.cfg" <<'PYTHON'
import configparser
import sys

# Interpolation resolves one extra's mention of another: %(test)s.
config = configparser.ConfigParser()
config.read(sys.argv[1])
wanted = config["options"]["install_requires"] + config["options.extras_require"]["dev"]
print(*sorted(filter(None, wanted.splitlines())), sep="\n")
PYTHON
}

make_venv() (
    # A subshell: the lock lasts as long as its descriptor, and the trap is the subshell's own.
    local venv=$1 requirements=$2 quiet=()
    mkdir -p "$PYVFIO_CACHE"
    exec 9>"$PYVFIO_CACHE/venv.lock"
    flock 9
    [[ ! -e $venv/complete ]] || exit 0
    say "Making a Python environment in $venv"
    [[ -t 2 ]] || quiet=(--quiet)
    # Scripts in a virtual environment name its path, so it is made where it will stay; the mark at
    # the end is what tells a complete one from one that was interrupted.
    rm -rf "$venv"
    trap '[[ -e $venv/complete ]] || rm -rf "$venv"' EXIT
    "$PYTHON" -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check "${quiet[@]}" \
        -r <(echo "$requirements") >&2 ||
        die "pip could not install the project's dependencies; its messages are above"
    touch "$venv/complete"
)
