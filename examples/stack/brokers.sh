#!/usr/bin/env bash
# Installs and starts the brokers that the tests talk to, where they do not answer yet:
# RabbitMQ on 5672, Redis on 6379, NATS with JetStream on 4222, Mosquitto on 1883. All of them listen on 127.0.0.1 only.
# Installs Prometheus and Alertmanager too, which the tests start themselves. Does nothing where all is there. Knows Debian and Ubuntu; elsewhere it says what to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

SECONDS_TO_START=60

declare -A PORT=([rabbitmq]=5672 [redis]=6379 [nats]=4222 [mosquitto]=1883)
declare -A PACKAGE=([rabbitmq]=rabbitmq-server [redis]=redis-server [nats]=nats-server [mosquitto]=mosquitto)
declare -A PROGRAM=(
    [rabbitmq]=/usr/sbin/rabbitmq-server [redis]=/usr/bin/redis-server [nats]=/usr/sbin/nats-server
    [mosquitto]=/usr/sbin/mosquitto
)

answers() {
    timeout 1 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1" 2>/dev/null
}

start() {
    case $1 in
    rabbitmq)
        # Its own wrapper changes to the user rabbitmq. Erlang's two helper ports stay on the loopback interface too.
        RABBITMQ_NODENAME=rabbit@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT=5672 \
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}' \
            ERL_EPMD_ADDRESS=127.0.0.1 rabbitmq-server -detached
        ;;
    redis)
        redis-server --daemonize yes --bind 127.0.0.1 --port 6379 --save '' --appendonly no >/dev/null
        ;;
    nats)
        local store=/var/lib/rtobs-test-nats
        mkdir -p "$store"
        setsid nats-server --addr 127.0.0.1 --port 4222 --jetstream --store_dir "$store" --log "$store/log" \
            </dev/null >/dev/null 2>&1 &
        ;;
    mosquitto)
        local settings=/var/lib/mosquitto/rtobs-test.conf # of its own: the packaged one allows nobody in
        mkdir -p "${settings%/*}"
        printf 'listener 1883 127.0.0.1\nallow_anonymous true\n' >"$settings"
        mosquitto -d -c "$settings"
        ;;
    esac
}

# Packages start their service as soon as they are installed, on every interface. These are wanted for tests only:
# the usual Debian switch holds them back, and they are not started at boot either.
install() {
    local held=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        held=yes
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet=2
    apt-get install --quiet=2 --yes --no-install-recommends "$@" >/dev/null
    if [ -n "$held" ]; then
        rm -f /usr/sbin/policy-rc.d
        trap - EXIT
    fi
    if [ -d /run/systemd/system ]; then
        systemctl disable --quiet "$@"
    fi
}

silent=()
for broker in rabbitmq redis nats mosquitto; do
    answers "${PORT[$broker]}" || silent+=("$broker")
done

# Tests that stop and kill a broker start one of their own, so the program has to be there besides the open port.
for broker in rabbitmq nats mosquitto; do
    if [ ${#silent[@]} -eq 0 ] && [ ! -x "${PROGRAM[$broker]}" ]; then
        echo "All brokers answer. The program ${PACKAGE[$broker]} is not installed: tests that stop it will be skipped." >&2
    fi
done
programs=() # the program only: each test starts one of its own
command -v prometheus >/dev/null && command -v promtool >/dev/null || programs+=(prometheus)
command -v amtool >/dev/null || programs+=(prometheus-alertmanager)
if [ ${#silent[@]} -eq 0 ] && [ ${#programs[@]} -eq 0 ]; then
    echo "RabbitMQ, Redis, NATS and Mosquitto answer on 127.0.0.1."
    exit 0
fi

if [ ${#silent[@]} -eq 0 ] && { ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; }; then
    if command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then exec sudo -n bash "$PWD/brokers.sh"; fi
    echo "RabbitMQ, Redis, NATS and Mosquitto answer on 127.0.0.1. Not installed, and cannot be without root on Debian or Ubuntu:" \
        "${programs[*]}. Tests that run it will be skipped." >&2
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    echo "No answer on 127.0.0.1 from: ${silent[*]}." >&2
    echo "This script installs brokers on Debian and Ubuntu only. Elsewhere, with Docker:" >&2
    echo "    docker compose -f examples/stack/compose.yaml up --detach --wait" >&2
    echo "or install RabbitMQ, Redis, NATS (with JetStream) and Mosquitto your usual way, on their usual ports." >&2
    echo "The tests need no more than that, and skip what does not answer." >&2
    exit 1
fi

if [ "$(id -u)" -ne 0 ]; then
    echo "Installing and starting ${silent[*]} ${programs[*]} needs root; asking sudo." >&2
    if ! command -v sudo >/dev/null; then
        echo "There is no sudo. Run this as root: bash examples/stack/brokers.sh" >&2
        exit 1
    fi
    # Without a terminal nobody can type a password, so sudo must not wait for one.
    if [ -t 0 ]; then exec sudo bash "$PWD/brokers.sh"; else exec sudo -n bash "$PWD/brokers.sh"; fi
fi

missing=()
for broker in "${silent[@]}"; do
    [ -x "${PROGRAM[$broker]}" ] || missing+=("${PACKAGE[$broker]}")
done
missing+=("${programs[@]}")
if [ ${#missing[@]} -gt 0 ]; then
    echo "Installing ${missing[*]} …"
    install "${missing[@]}"
fi

for broker in "${silent[@]}"; do
    echo "Starting $broker on 127.0.0.1:${PORT[$broker]} …"
    start "$broker"
done

for broker in "${silent[@]}"; do
    until answers "${PORT[$broker]}"; do
        if [ "$SECONDS" -gt "$SECONDS_TO_START" ]; then
            echo "$broker does not answer on 127.0.0.1:${PORT[$broker]} after $SECONDS s; see /var/log." >&2
            exit 1
        fi
        sleep 0.3
    done
done
echo "RabbitMQ, Redis, NATS and Mosquitto answer on 127.0.0.1."
