# The functions of a shell that runs the commands of a document. The test writes `run_step FILE
# OUTPUT` to its standard input and reads `done`, or a question of a stand-in, from its standard
# output, which are the file descriptors 4 and 3 of the commands.

run_step() { # file of the commands, file of their output
  . "$1" >"$2" 2>&1 </dev/null
  echo done >&3
}

# Asks the test for the commands to run in place of a program, and runs them.
ask() { # program, arguments…
  local question reply
  question=$(IFS=$'\x1f' && printf '%s' "$*")
  printf 'ask\x1f%s\n' "$question" >&3
  IFS= read -r reply <&4
  eval "$reply"
}

cargo() { ask cargo "$@"; }
docker() { ask docker "$@"; }
sleep() { ask sleep "$@"; }

# Debian 12 has the program only under its older name. The server of the test is on a socket.
valkey-cli() { "$(type -P valkey-cli || type -P redis-cli)" -s "$VALKEY_SOCKET" "$@"; }

# `serve` runs in the background, as in another terminal, and on free ports.
call2me-auth() {
  if [ "${1-}" = serve ]; then
    start_node "$PROGRAM" "$@"
  else
    "$PROGRAM" "$@"
  fi
}

# Starts a node and waits until it serves. Sets the addresses that it listens on.
start_node() { # arguments of env
  local log=node-$((++node_count)).log options=()
  [ "$1" != -i ] || { options=(-i) && shift; }
  metrics_address=127.0.0.1:$(free_port)
  setpriv --pdeathsig KILL env "${options[@]}" CALL2ME_AUTH__SERVER__ADDRESS=127.0.0.1:0 \
    CALL2ME_AUTH__SERVER__METRICS_ADDRESS="$metrics_address" "$@" >"$log" 2>&1 </dev/null 3>&- 4<&- &
  nodes+=($!)
  until grep -q '"message":"serving"' "$log"; do
    kill -0 $! || { cat "$log"; return 2; }
    command sleep 0.1
  done
  node_address=$(sed -n 's/.*"message":"serving","address":"\([^"]*\)".*/\1/p' "$log")
}

# Stops all nodes as a supervisor does, and checks that they report success.
stop_nodes() {
  kill "${nodes[@]}"
  wait "${nodes[@]}"
  nodes=()
}

# Runs the program as a container does: with the variables of a file only, taken literally.
run_container() { # file of variables, arguments…
  local variables
  # The addresses are those of the test.
  mapfile -t variables < <(grep -v '__SERVER__METRICS_ADDRESS=' "$1")
  variables+=("PATH=$PATH" "PGSSLROOTCERT=$PGSSLROOTCERT")
  if [ "${2-serve}" = serve ]; then
    start_node -i "${variables[@]}" "$PROGRAM" serve
  else
    env -i "${variables[@]}" "$PROGRAM" "${@:2}"
  fi
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

node_count=0
nodes=()
set -eu
