"""A program for containers that meet in a volume: a socket, locks, shared memory, notification."""

from __future__ import annotations

import subprocess
from pathlib import Path

NAME = "meet"
_SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void check(int good, const char *what) { if (!good) { perror(what); exit(1); } }
static void say(const char *text) { printf("%s\n", text); fflush(stdout); }

static struct sockaddr_un address(const char *path) {
    struct sockaddr_un made = {.sun_family = AF_UNIX};
    strncpy(made.sun_path, path, sizeof made.sun_path - 1);
    return made;
}

static int lock(const char *how, const char *path) {
    int fd = open(path, O_RDWR | O_CREAT, 0666);
    check(fd >= 0, path);
    if (!strcmp(how, "flock")) return flock(fd, LOCK_EX | LOCK_NB);
    struct flock wanted = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, !strcmp(how, "ofd") ? F_OFD_SETLK : F_SETLK, &wanted);
}

static volatile char *map(const char *path) {
    int fd = open(path, O_RDWR);
    check(fd >= 0, path);
    volatile char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check(page != MAP_FAILED, "mmap");
    return page;
}

int main(int count, char **words) {
    const char *what = words[1], *path = words[2];
    char text[4096] = "";
    if (!strcmp(what, "listen")) {
        struct sockaddr_un at = address(path);
        int listener = socket(AF_UNIX, SOCK_STREAM, 0);
        check(!bind(listener, (void *)&at, sizeof at) && !listen(listener, 1), "bind");
        say("ready");
        int peer = accept(listener, 0, 0);
        check(peer >= 0 && read(peer, text, sizeof text - 1) > 0, "accept");
        say(text);
    } else if (!strcmp(what, "connect")) {
        struct sockaddr_un at = address(path);
        int peer = socket(AF_UNIX, SOCK_STREAM, 0);
        check(!connect(peer, (void *)&at, sizeof at), "connect");
        check(write(peer, "hello", 5) == 5, "write");
    } else if (!strcmp(what, "hold")) {
        check(!lock(words[3], path), "lock");
        say("ready");
        pause();
    } else if (!strcmp(what, "try")) {
        int denied = lock(words[3], path) ? errno : 0;
        say(!denied ? "free" : denied == EAGAIN || denied == EACCES ? "taken" : strerror(denied));
    } else if (!strcmp(what, "await")) {
        volatile char *page = map(path);
        say("ready");
        while (!page[0]) usleep(1000);
        page[1] = 2;
        say("seen");
        pause();
    } else if (!strcmp(what, "poke")) {
        volatile char *page = map(path);
        page[0] = 1;
        while (!page[1]) usleep(1000);
        say("answered");
    } else if (!strcmp(what, "watch")) {
        int fd = inotify_init1(0);
        check(inotify_add_watch(fd, path, IN_CREATE | IN_MOVED_TO) >= 0, "inotify");
        say("ready");
        check(read(fd, text, sizeof text) > 0, "read");
        say(((struct inotify_event *)text)->name);
    } else if (!strcmp(what, "tmpfile")) {
        say(open(path, O_TMPFILE | O_RDWR, 0600) < 0 ? strerror(errno) : "made");
    }
    return 0;
}
"""


def compile_into(directory: Path) -> None:
    """Put the program into a directory of a root file system."""
    command = ["gcc", "-static", "-x", "c", "-o", str(directory / NAME), "-"]
    subprocess.run(command, input=_SOURCE.encode(), check=True)
