"""A link of the kernel's own TCP: two network namespaces, joined by TUN devices through this process. Root only.

What the kernel sends into one device is read here packet by packet, held for as long as the link's queue, rate and
delay say, lost as often as it says, and written to the other.

    python tun.py NAME ROUND_TRIP_MS MBIT LOSS

makes the namespaces NAME-a (10.77.1.1) and NAME-b (10.77.1.2), prints "ready", and deletes them once its input ends.
"""

import contextlib
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500
QUEUE_S = 0.5  # the longest that a packet waits for the rate; then the queue is full and it is dropped
ADDRESSES = {"a": "10.77.1.1", "b": "10.77.1.2"}


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def open_device(name, namespace, address):
    """A TUN device in a namespace; what is read from the descriptor, the kernel has sent there."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    ip("link", "set", name, "netns", namespace)
    ip("-n", namespace, "addr", "add", f"{address}/24", "dev", name)
    ip("-n", namespace, "link", "set", name, "mtu", str(MTU), "up")
    return device


def carry(devices, half_s, bytes_per_s, loss):
    """Carry packets both ways until the input ends."""
    queues = {devices[0]: deque(), devices[1]: deque()}  # (when it arrives, packet), by where it goes to
    free = dict.fromkeys(devices, 0.0)
    draw = random.Random(0)
    while True:
        now = time.monotonic()
        for device, queue in queues.items():
            while queue and queue[0][0] <= now:
                with contextlib.suppress(BlockingIOError, OSError):
                    os.write(device, queue.popleft()[1])
        due = min((queue[0][0] for queue in queues.values() if queue), default=now + 0.1)
        readable, _, _ = select.select([0, *devices], [], [], max(0.0, due - time.monotonic()))
        if 0 in readable and not os.read(0, 1):
            return
        for device in set(readable) - {0}:
            other = devices[1 - devices.index(device)]
            for _ in range(64):
                try:
                    packet = os.read(device, MTU + 4)
                except BlockingIOError:
                    break
                now = time.monotonic()
                leaves = max(now, free[other])
                if leaves - now > QUEUE_S:
                    continue
                free[other] = leaves + len(packet) / bytes_per_s
                if draw.random() >= loss:
                    queues[other].append((free[other] + half_s, packet))


def main():
    name, round_trip_ms, mbit, loss = sys.argv[1], *map(float, sys.argv[2:])
    names = {side: f"{name}-{side}" for side in ADDRESSES}
    made = []
    try:
        for namespace in names.values():
            ip("netns", "add", namespace)
            made.append(namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        devices = [open_device(f"{name[:10]}{s}", names[s], ADDRESSES[s]) for s in ADDRESSES]
        print("ready", flush=True)
        carry(devices, round_trip_ms / 2000, 125_000 * mbit, loss)
    finally:
        for namespace in made:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


if __name__ == "__main__":
    main()
