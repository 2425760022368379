# The `dispatcher` command, for scripts that hand their arguments to it. To be sourced. Leaves the shell in the folder
# that it was called in, since the arguments may name files there, with $dispatcher as the command.

called_in=$PWD
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
dispatcher=$PWD/.venv/bin/dispatcher
cd "$called_in"
