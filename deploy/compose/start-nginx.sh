#!/bin/sh
# Starts nginx in its container (docker-compose.yml) with nginx.conf, adapted to the container. Arguments are nginx's.
set -eu

# The lines marked #new and #dns need nginx 1.27.4, which the image has.
sed -e 's/^\( *\)#new /\1/' -e 's/^\( *\)#dns /\1/' -e '/# static$/d' /etc/nginx/nginx.conf >/run/nginx.conf

# The DNS server that the engine gives to this container: 127.0.0.11 with Docker, the network's gateway with podman. Only the
# first one: nginx asks all in turn, and the machine's own server, which podman adds, does not know the replicas.
server=$(sed -n -e 's/^nameserver *\([0-9.]*\) *$/\1/p' -e 's/^nameserver *\([0-9a-fA-F]*:[^ %]*\) *$/[\1]/p' /etc/resolv.conf |
    head -n 1)
sed -i "s/resolver 127\.0\.0\.11 /resolver $server /" /run/nginx.conf

# Without IPv6 in the kernel, nginx would not start.
[ -e /proc/net/if_inet6 ] || sed -i '/# ipv6/d' /run/nginx.conf

exec nginx -e stderr -c /run/nginx.conf "$@"
