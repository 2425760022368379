# Set-up shared by the scripts here: makes .venv, installs what requirements.lock pins, then the project itself.
# To be sourced. Leaves the shell in the top folder of the checkout, with $python as the environment's Python.
# A stamp in .venv records what was installed, so that every later run costs a moment.

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=.venv/bin/python

# Prints the first Python that can make the environment, or says what is missing.
find_python() {
  local candidate
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$candidate"
        return
      fi
      echo "$candidate has no venv: install it (on Debian: apt install python3-venv)" >&2
      return 1
    fi
  done
  echo "Python 3.11 or newer is needed, and there is none on PATH" >&2
  return 1
}

# Prints what the environment should hold: its Python, its place, and every word of the lock and the project file.
wanted_stamp() {
  "$python" -I -S - 2>/dev/null <<'PYTHON'
import hashlib, pathlib, sys
digest = hashlib.sha256()
for part in (sys.version, sys.prefix, str(pathlib.Path.cwd())):
    digest.update(part.encode())
for name in ("requirements.lock", "pyproject.toml"):
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PYTHON
}

is_current() {
  [ -e .venv/.stamp ] && [ "$(cat .venv/.stamp)" = "$(wanted_stamp)" ]
}

# Takes the Python to make the environment with. Only wheels: building from source would fetch unpinned build tools.
install() {
  echo "setting up .venv (only when the lock or the project file changed) ..." >&2
  if ! "$python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    "$1" -m venv --clear .venv
  fi
  local pip=("$python" -m pip --disable-pip-version-check --quiet install)
  "${pip[@]}" --require-hashes --only-binary :all: -r requirements.lock
  # hatchling comes from the lock, so that nothing unpinned is fetched to build the project
  "${pip[@]}" --no-deps --no-build-isolation -e .
  wanted_stamp >.venv/.stamp
}

setup() {
  if is_current; then return; fi
  local found
  found=$(find_python)
  exec 9<scripts
  # one set-up at a time; the lock lives as long as descriptor 9, and Python has flock() everywhere
  "$found" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
  if ! is_current; then install "$found"; fi
  exec 9<&-
}

setup
