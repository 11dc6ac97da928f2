#!/usr/bin/env bash
# Debian's PostgreSQL for a Prefect server, on loopback only, beside whatever cluster the system has.
#
#   postgres.sh install                install it where it is missing (root or sudo)
#   postgres.sh start FOLDER [PORT]    make a database in FOLDER where there is none, start it; prints its URL
#   postgres.sh stop FOLDER            stop it; the data stay
#
# PostgreSQL refuses to run as root, which starts it as the user "postgres".
set -euo pipefail

binaries() { ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null | sort -V | tail -n 1 | xargs -r dirname; }

install() {
    [ -n "$(binaries)" ] && return
    local root=""
    [ "$(id -u)" = 0 ] || root=sudo
    $root apt-get update -q
    # No cluster of the system's own: the package would start one on the usual port.
    $root mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo "create_main_cluster = false" | $root tee /etc/postgresql-common/createcluster.conf >/dev/null
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends postgresql
}

as_user() {
    if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

start() {
    local folder=$1 port=${2:-5433} bin
    bin=$(binaries)
    [ -n "$bin" ] || { echo "PostgreSQL is not installed: run $0 install" >&2; exit 1; }
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    chmod 700 "$folder"
    [ "$(id -u)" != 0 ] || chown postgres "$folder"
    cd /
    if [ ! -e "$folder/data/PG_VERSION" ]; then
        head -c 24 /dev/urandom | base64 | tr '+/' '-_' | as_user tee "$folder/password" >/dev/null
        as_user "$bin/initdb" --pgdata "$folder/data" --username prefect --encoding UTF8 --locale C.UTF-8 \
            --auth scram-sha-256 --pwfile "$folder/password" >/dev/null
    fi
    as_user "$bin/pg_ctl" --pgdata "$folder/data" status >/dev/null ||
        as_user "$bin/pg_ctl" --pgdata "$folder/data" --log "$folder/log.txt" --wait start >/dev/null \
            --options "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories='' -c max_connections=200"
    port=$(sed -n 4p "$folder/data/postmaster.pid")
    export PGPASSWORD
    PGPASSWORD=$(cat "$folder/password")
    local at=(--host 127.0.0.1 --port "$port" --username prefect)
    "$bin/psql" "${at[@]}" --dbname prefect --command "" 2>/dev/null || "$bin/createdb" "${at[@]}" prefect
    echo "postgresql+asyncpg://prefect:$PGPASSWORD@127.0.0.1:$port/prefect"
}

stop() {
    local folder
    folder=$(cd "$1" && pwd)
    cd /
    as_user "$(binaries)/pg_ctl" --pgdata "$folder/data" --mode fast --wait stop >/dev/null
}

case "${1:-}" in
    install) install ;;
    start) start "${@:2}" ;;
    stop) stop "$2" ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
