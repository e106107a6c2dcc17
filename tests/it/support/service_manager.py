"""A service manager in the small: it holds the sockets that gateway.toml names, passes them as systemd
does (sd_listen_fds(3)), and starts the service anew at SIGUSR1, as `systemctl restart` does."""

import ctypes
import os
import re
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1
ours = {signal.SIGUSR1, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, ours)

sockets = []
for port in re.findall(r'^(?:https|http|admin) = "127\.0\.0\.1:(\d+)"', open("gateway.toml").read(), re.M):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(port)))
    listener.listen(4096)
    sockets.append(listener)
copies = [os.dup(listener.fileno()) for listener in sockets]
high = [os.dup2(copy, 100 + at) for at, copy in enumerate(copies)]


def start():
    child = os.fork()
    if child:
        return child
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
    for at, copy in enumerate(high):
        os.dup2(copy, 3 + at, inheritable=True)
    passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets))}
    os.execve(sys.argv[1], sys.argv[1:], {**os.environ, **passed})


child = start()
while True:
    received = signal.sigwait(ours)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    if received == signal.SIGTERM or status:
        sys.exit(os.waitstatus_to_exitcode(status))
    child = start()
