# What scripts/bench needs besides our own environment. To be sourced after setup.sh.

# command that must exist -> Debian package that brings it
bench_needs="nginx:nginx wrk:wrk redis-server:redis-server"

# Debian starts a service with its installation, unless this file forbids it; it is there only as long as apt runs.
bench_policy=/usr/sbin/policy-rc.d

# Fails where a program cannot be had.
setup_bench_programs() {
  local need missing=""
  for need in $bench_needs; do
    PATH=$PATH:/usr/sbin command -v "${need%%:*}" >/dev/null || missing="$missing ${need#*:}"
  done
  if [ -z "$missing" ]; then return; fi
  if [ "$(id -u)" != 0 ] || [ ! -e /etc/debian_version ]; then return 1; fi
  echo "installing$missing ..." >&2
  (
    if [ ! -e "$bench_policy" ]; then
      trap 'rm -f "$bench_policy"' EXIT
      printf '#!/bin/sh\nexit 101\n' >"$bench_policy"
      chmod 755 "$bench_policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of package names
    apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing
  ) >/dev/null
}

bench_wanted_stamp() {
  "$python" -I -S -c '
import hashlib, pathlib, sys
lock = pathlib.Path("requirements-bench.lock").read_bytes()
print(hashlib.sha256(sys.version.encode() + str(pathlib.Path.cwd()).encode() + lock).hexdigest())'
}

# Fails where the packages cannot be had, as without a network.
setup_bench_packages() {
  if [ -e .venv-bench/.stamp ] && [ "$(cat .venv-bench/.stamp)" = "$(bench_wanted_stamp)" ]; then return; fi
  echo "setting up .venv-bench (only when its lock changed) ..." >&2
  "$python" -m venv --clear .venv-bench || return 1
  .venv-bench/bin/python -m pip --disable-pip-version-check --quiet install \
    --require-hashes --only-binary :all: -r requirements-bench.lock || return 1
  bench_wanted_stamp >.venv-bench/.stamp
}
