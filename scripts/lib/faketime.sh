# Installs libfaketime, which has no command. To be sourced after debian.sh.

# Fails where it cannot be had.
setup_faketime() {
  local library
  for library in /usr/lib/*/faketime/libfaketime.so.1; do
    if [ -e "$library" ]; then return; fi
  done
  install_debian libfaketime
}
