# Installs Debian's packages where that is allowed. To be sourced.

# Debian starts a service with its installation, unless this file forbids it; it is there only as long as apt runs.
service_policy=/usr/sbin/policy-rc.d

# Takes the names of packages. No service of theirs is started. Fails where we are not root, or this is not Debian.
install_debian() {
  if [ "$(id -u)" != 0 ] || [ ! -e /etc/debian_version ]; then return 1; fi
  echo "installing $* ..." >&2
  (
    if [ ! -e "$service_policy" ]; then
      trap 'rm -f "$service_policy"' EXIT
      printf '#!/bin/sh\nexit 101\n' >"$service_policy"
      chmod 755 "$service_policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@"
  ) >/dev/null
}
