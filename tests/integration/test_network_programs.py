"""What sidecars, VPNs, service meshes and docker in a pod need of its network: tables, links, devices.

The programs are this host's own iproute2 and iptables, so the container has this host's /usr. They are called
by their paths, for busybox's shell prefers its own.
"""

from __future__ import annotations

import shutil

import pytest

from node import Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

LINKS = """\
link add one type dummy
link add two type dummy
link add bridge0 type bridge
link add v0 type veth peer name v1
link set v0 master bridge0
link set v1 netns $other
link add one.7 link one type vlan id 7
link add mv link one type macvlan mode bridge
link add iv link two type ipvlan mode l2
link add vx type vxlan id 7 dstport 4789 local 127.0.0.1
link add wg type wireguard
link add ifb7 type ifb
link add tunl type ipip local 127.0.0.1 remote 127.0.0.2
tuntap add dev tun7 mode tun
tuntap add dev tap7 mode tap
rule add fwmark 1 lookup 100
"""
TRAFFIC = """\
qdisc add dev one clsact
filter add dev one ingress matchall action mirred egress redirect dev bridge0
"""
RULES = """\
*nat
-A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 15001
-A POSTROUTING -j MASQUERADE
COMMIT
*filter
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A OUTPUT -m owner --uid-owner 1337 -j RETURN
COMMIT
*mangle
-A PREROUTING -j MARK --set-mark 1
COMMIT
*raw
-A PREROUTING -p udp --dport 53 -j CT --notrack
COMMIT
"""
INPUTS = {
    "/usr/bin/ip -batch -": LINKS,
    "/usr/sbin/tc -batch -": TRAFFIC,
    "/usr/sbin/iptables-nft-restore": RULES,
    "/usr/sbin/ip6tables-nft-restore": RULES,
    "/usr/sbin/iptables-legacy-restore": RULES,
    "/usr/sbin/ip6tables-legacy-restore": RULES,
}


def test_tables_links_and_devices(node: Node) -> None:
    for program in ("iptables-nft", "ip", "tc"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: run make test-packages")
    mounts = [f"--mount=type=bind,src={path},dst={path},options=rbind:ro" for path in ("/usr", "/lib64")]
    capabilities = ("--cap-add=CAP_NET_ADMIN", "--cap-add=CAP_SYS_ADMIN", "--device=/dev/net/tun")
    lines = ["ln -s usr/lib /lib", "unshare -n sleep 3600 & other=$!"]
    lines += [f"{command} <<end || echo failed: {command}\n{text}end" for command, text in INPUTS.items()]
    result = node.run("/bin/sh", "-c", "\n".join(lines), options=(*mounts, *capabilities))
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
