# What scripts/bench needs besides our own environment. To be sourced after setup.sh and debian.sh.

# command that must exist -> Debian package that brings it
bench_needs="nginx:nginx wrk:wrk redis-server:redis-server initdb:postgresql"

# Fails where a program cannot be had.
setup_bench_programs() {
  local need missing=""
  local programs=$PATH:/usr/sbin$(printf ':%s' /usr/lib/postgresql/*/bin)
  for need in $bench_needs; do
    PATH=$programs command -v "${need%%:*}" >/dev/null || missing="$missing ${need#*:}"
  done
  if [ -z "$missing" ]; then return; fi
  # shellcheck disable=SC2086  # a list of package names
  install_debian $missing
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
