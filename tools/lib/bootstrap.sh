# shellcheck shell=bash
# Sourced by the scripts in tools/: brings a fresh Debian machine to the point where they can run.
#
#   need_packages PACKAGE...   installs the Debian packages that are missing
#   use_python MODULE...       sets PYTHON to an interpreter that imports these modules
#
# The machine's own python3 is taken when it has the modules. Otherwise a virtual environment with
# the project's `dev` extra is made, once, in the cache (PYVFIO_CACHE, by default ~/.cache/pyvfio).
# The checkout itself is never installed: PYTHONPATH points at it.
#
# Each step is one line on stderr. What apt and pip print goes to a file in the cache's logs/, which
# is shown when they fail; with PYVFIO_VERBOSE=1 it is shown as it comes.

set -euo pipefail

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
HOME=${HOME:-$(getent passwd "$EUID" | cut -d: -f6)} # not set where systemd starts us
export HOME PYVFIO_CACHE=${PYVFIO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pyvfio}
# An ordinary user's PATH on Debian lacks these; depmod and modprobe are there.
export PATH=$PATH:/usr/sbin:/sbin
export PYTHONPATH=$CHECKOUT${PYTHONPATH:+:$PYTHONPATH}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# step TITLE LOG COMMAND...: runs a command with its output in the file LOG. Shows TITLE, how far it
# is (on a terminal) and how long it took; where it failed, the log.
step() {
    local title=$1 log=$2 start=$SECONDS status=0 line ticker
    shift 2
    if [[ ${PYVFIO_VERBOSE:-0} != 0 ]]; then
        line="$title ..."
        say "$line"
        "$@" </dev/null 2>&1 9>&- | tee "$log" >&2 || status=$?
    elif [[ -t 2 && ${TERM:-dumb} != dumb ]]; then
        line=$'\r\e[K'"$title ..."
        show_progress "$title" "$log" &
        ticker=$!
        # It is the command that stays in the foreground: Ctrl-C does not end what a script runs in
        # the background.
        "$@" </dev/null >"$log" 2>&1 9>&- || status=$?
        kill "$ticker" || true
        wait "$ticker" 2>/dev/null || true
    else
        line=
        printf '%s ...' "$title" >&2
        "$@" </dev/null >"$log" 2>&1 9>&- || status=$?
    fi
    if ((status == 0)); then
        say "$line $((SECONDS - start)) s"
    else
        say "$line failed after $((SECONDS - start)) s"
        [[ ${PYVFIO_VERBOSE:-0} != 0 ]] || cat "$log" >&2
    fi
    return "$status"
}

# show_progress TITLE LOG: a line that moves, with the seconds and the last line of the log, until
# it is killed or the script has ended.
show_progress() {
    local title=$1 log=$2 start=$SECONDS columns line
    while kill -0 $$ 2>/dev/null; do
        columns=$(stty size <&2 2>/dev/null | cut -d' ' -f2) || true
        ((columns > 20)) || columns=80
        line=" ... $((SECONDS - start)) s"
        line=${title:0:columns - 1 - ${#line}}$line
        line+="  $(tail -n 1 "$log" 2>/dev/null | tr -cd '[:print:]')"
        printf '\r\e[K%s' "${line:0:columns - 1}" >&2
        sleep 1
    done
}

# hold_lock NAME MESSAGE: makes other runs wait here until this subshell ends. It is descriptor 9,
# which commands of `step` do not inherit, since a daemon that one leaves behind would hold it.
hold_lock() {
    mkdir -p "$PYVFIO_CACHE/logs"
    exec 9>"$PYVFIO_CACHE/$1.lock"
    flock -n 9 || {
        say "$2; waiting for it"
        flock 9
    }
}

missing_packages() {
    local package
    for package; do
        # A package of several architectures has a line for each.
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null |
            grep -x installed >/dev/null || echo "$package"
    done
}

need_packages() (
    # A subshell: its lock, scratch directory and traps end with it.
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || exit 0
    command -v apt-get >/dev/null ||
        die "needs ${missing[*]}, and this is not a Debian machine: install what they hold by hand"
    become_root "${missing[@]}"
    hold_lock apt "Another run is installing Debian packages"
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || exit 0
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    # apt-get may end with an ordinary status on Ctrl-C; nothing else is to be tried then.
    trap 'exit 130' INT
    log=$PYVFIO_CACHE/logs/apt.log
    if step "Installing Debian packages: ${missing[*]}" "$log" \
        install_packages "$scratch" "${missing[@]}"; then
        exit 0
    fi
    lacking=$(paste -sd, "$scratch/lacking" 2>/dev/null || true)
    [[ -z $lacking ]] || die "the mirror lacks files that its own lists of packages name \
(${lacking//,/, }): it is probably being updated; try again in an hour"
    die "apt-get could not install ${missing[*]}; its messages are above and in $log"
)

# become_root PACKAGE...: sets AS_ROOT to what stands before a command that only root may run.
become_root() {
    AS_ROOT=()
    ((EUID != 0)) || return 0
    local reason="sudo is not installed"
    if command -v sudo >/dev/null; then
        AS_ROOT=(sudo -n)
        "${AS_ROOT[@]}" true 2>/dev/null && return
        reason="sudo refuses"
        # Where somebody can type, sudo may ask for the password.
        if [[ -t 0 && -t 2 ]]; then
            say "Debian packages are missing, and sudo is needed to install them: $*"
            AS_ROOT=(sudo)
            "${AS_ROOT[@]}" true && return
        fi
    fi
    die "needs Debian packages that only root can install, and $reason. As root:
    apt-get update && apt-get install --no-install-recommends $*"
}

# install_packages SCRATCH PACKAGE...: where it fails, SCRATCH/lacking may have names and versions of
# packages that the mirror does not deliver.
install_packages() {
    local scratch=$1 name version
    shift
    try_install "$scratch" "$@" && return
    # Package lists may be absent (containers), or name files that the mirror has no more. A source
    # of other software that fails does not keep Debian's lists from being fetched.
    update_lists "$scratch"
    try_install "$scratch" "$@" && return
    # While a mirror takes over a point release it lacks files that its lists name. Where such a
    # version is forbidden, apt takes an older one of another suite, if there is one.
    cp /etc/apt/preferences "$scratch/preferences" 2>/dev/null || true
    while undelivered "$scratch/output" >"$scratch/new" && [[ -s $scratch/new ]]; do
        cat "$scratch/new" >>"$scratch/lacking"
        while read -r name version; do
            # The epoch of a version is not in its file's name.
            printf '\nPackage: %s\nPin: version *%s\nPin-Priority: -1\n' "$name" "$version"
        done <"$scratch/new" >>"$scratch/preferences"
        try_install "$scratch" -o Dir::Etc::preferences="$scratch/preferences" "$@" && return
    done
    return 1
}

# apt has an option to wait for dpkg's lock, and none for that of its lists, which a machine that was
# just started often holds for its daily update.
update_lists() {
    local scratch=$1 until=$((SECONDS + 300))
    while ! run_apt update 2>&1 | tee "$scratch/output"; do
        grep -q "^E: Could not get lock" "$scratch/output" && ((SECONDS < until)) || return 0
        sleep 2
    done
}

try_install() {
    local scratch=$1
    shift
    run_apt install --no-install-recommends "$@" 2>&1 | tee "$scratch/output"
}

run_apt() {
    echo "+ apt-get $*"
    # Nobody can answer a question; the locale is for `undelivered`, which reads the messages.
    "${AS_ROOT[@]}" env LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
        apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@"
}

# undelivered OUTPUT: name and version of each package that apt-get tried to fetch in vain, from a
# mirror that did answer.
undelivered() {
    local url file
    sed -nE 's/^E: Failed to fetch (\S+)  (404 |Hash Sum|File has unexpected size).*/\1/p' "$1" |
        while read -r url; do
            file=$(printf '%b' "${url//%/\\x}") # "+" is %2b there
            file=${file##*/}
            [[ $file != *_*_*.deb ]] || tr _ ' ' <<<"${file%_*}"
        done
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
    if [[ -z $PYTHON ]] || ! can_make_venv "$PYTHON"; then
        need_packages python3 python3-venv
        PYTHON=/usr/bin/python3
        can_make_venv "$PYTHON" ||
            die "needs Python 3.10 or later, and $PYTHON is $("$PYTHON" --version): put one on PATH"
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

can_make_venv() {
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
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
    # A subshell: its lock and traps end with it.
    local venv=$1 requirements=$2 log=$PYVFIO_CACHE/logs/pip.log
    hold_lock venv "Another run is making a Python environment"
    [[ ! -e $venv/complete ]] || exit 0
    # Scripts in a virtual environment name its path, so it is made where it will stay; the mark at
    # the end is what tells a complete one from one that was interrupted.
    rm -rf "$venv"
    trap '[[ -e $venv/complete ]] || rm -rf "$venv"' EXIT
    trap 'exit 130' INT
    step "Making a Python environment" "$log" fill_venv "$venv" "$requirements" ||
        die "pip could not install the project's dependencies; its messages are above and in $log"
    touch "$venv/complete"
)

fill_venv() {
    "$PYTHON" -m venv "$1" &&
        "$1/bin/python" -m pip install --no-input --disable-pip-version-check -r <(echo "$2")
}
