/*
 * The work whose speed is measured, the same program in the guest and on the host; static.
 *
 *   load serve PORT             in the guest: obeys one command for each connection, on vsock and on TCP
 *   load ask CID|ADDRESS PORT COMMAND...   on the host: gives a command, and prints "COUNT NANOSECONDS"
 *
 * Commands:
 *   send MS         stream to the host                                            COUNT: bytes
 *   receive MS      stream from the host
 *   echo MS         one byte there and back, one after the other                  COUNT: round trips
 *   file PATH read|write random|sequential SIZE MS                                COUNT: requests
 *                   direct requests of SIZE bytes, one after the other
 *
 * The host measures the time, from the command until all has arrived: the guest's clock only ends the loops.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LINE 256
#define CHUNK (256 << 10)

static char *buffer;

static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static long long deadline(const char *milliseconds)
{
    return now() + atoll(milliseconds) * 1000000;
}

static long long pour(int stream, long long end)
{
    long long count = 0;
    while (now() < end) {
        ssize_t done = write(stream, buffer, CHUNK);
        if (done < 0)
            fail("write to the stream");
        count += done;
    }
    return count;
}

static long long drain(int stream)
{
    long long count = 0;
    ssize_t done;
    while ((done = read(stream, buffer, CHUNK)) > 0)
        count += done;
    if (done < 0)
        fail("read from the stream");
    return count;
}

static long long size_of(int file)
{
    unsigned long long bytes;
    struct stat status;
    if (fstat(file, &status) < 0)
        fail("fstat");
    if (S_ISREG(status.st_mode))
        return status.st_size;
    if (ioctl(file, BLKGETSIZE64, &bytes) < 0)
        fail("BLKGETSIZE64");
    return bytes;
}

static long long transfer(char **arguments)
{
    int writing = !strcmp(arguments[1], "write"), random = !strcmp(arguments[2], "random");
    long long size = atoll(arguments[3]), end = deadline(arguments[4]), count = 0;
    int file = open(arguments[0], (writing ? O_WRONLY : O_RDONLY) | O_DIRECT);
    if (file < 0)
        fail(arguments[0]);
    long long places = size_of(file) / size;
    unsigned long long place = 88172645463325252ULL;
    while (now() < end) {
        if (random) {
            place ^= place << 13, place ^= place >> 7, place ^= place << 17; /* xorshift: the same every time */
        } else {
            place = count;
        }
        off_t at = (place % places) * size;
        if ((writing ? pwrite(file, buffer, size, at) : pread(file, buffer, size, at)) != size)
            fail(arguments[1]);
        count++;
    }
    close(file);
    return count;
}

static int split(char *line, char **arguments, int most)
{
    int count = 0;
    for (char *word = strtok(line, " \n"); word && count < most; word = strtok(NULL, " \n"))
        arguments[count++] = word;
    return count;
}

static void read_line(int stream, char *line)
{
    for (int at = 0; at < LINE - 1; at++) {
        if (read(stream, line + at, 1) != 1)
            exit(1);
        if (line[at] == '\n') {
            line[at] = 0;
            return;
        }
    }
    exit(1);
}

static void obey(int stream)
{
    char line[LINE] = "", *arguments[8];
    read_line(stream, line);
    int count = split(line, arguments, 8);
    long long result = 0;
    if (count == 2 && !strcmp(arguments[0], "send"))
        exit(pour(stream, deadline(arguments[1])) < 0);
    else if (count == 2 && !strcmp(arguments[0], "receive"))
        result = drain(stream);
    else if (count == 2 && !strcmp(arguments[0], "echo"))
        while (read(stream, buffer, 1) == 1 && write(stream, buffer, 1) == 1)
            ;
    else if (count == 6 && !strcmp(arguments[0], "file"))
        result = transfer(arguments + 1);
    dprintf(stream, "%lld\n", result);
    exit(0);
}

static int listen_on(int family, const struct sockaddr *address, socklen_t size)
{
    int one = 1, listener = socket(family, SOCK_STREAM, 0);
    if (listener < 0)
        fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, address, size) < 0 || listen(listener, 8) < 0)
        fail("listen");
    return listener;
}

static void serve(int listener)
{
    for (;;) {
        int stream = accept(listener, NULL, NULL);
        if (stream < 0)
            fail("accept");
        if (!fork())
            obey(stream);
        close(stream);
    }
}

static int reach(const char *where, int port)
{
    struct sockaddr_in internet = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_vm vsock = {.svm_family = AF_VSOCK, .svm_port = port, .svm_cid = strtoul(where, NULL, 10)};
    int by_internet = inet_pton(AF_INET, where, &internet.sin_addr) == 1;
    int stream = socket(by_internet ? AF_INET : AF_VSOCK, SOCK_STREAM, 0);
    if (by_internet ? connect(stream, (void *)&internet, sizeof internet)
                    : connect(stream, (void *)&vsock, sizeof vsock))
        fail("connect");
    return stream;
}

static void ask(int stream, char **arguments, int given)
{
    char line[LINE] = "";
    long long count = 0;
    for (int at = 0; at < given; at++)
        snprintf(line + strlen(line), LINE - strlen(line), "%s ", arguments[at]);
    strcpy(line + strlen(line) - 1, "\n");
    long long begin = now();
    if (write(stream, line, strlen(line)) < 0)
        fail("write the command");
    if (!strcmp(arguments[0], "send")) {
        count = drain(stream);
    } else {
        if (!strcmp(arguments[0], "echo"))
            for (long long end = deadline(arguments[1]); now() < end; count++)
                if (write(stream, "x", 1) != 1 || read(stream, buffer, 1) != 1)
                    fail("echo");
        if (!strcmp(arguments[0], "receive"))
            count = pour(stream, deadline(arguments[1]));
        if (strcmp(arguments[0], "file")) {
            shutdown(stream, SHUT_WR);
        }
        read_line(stream, line);
        if (!strcmp(arguments[0], "file"))
            count = atoll(line);
        if (!strcmp(arguments[0], "receive") && count != atoll(line))
            fail("what was sent has not all arrived");
    }
    printf("%lld %lld\n", count, now() - begin);
}

int main(int argc, char **argv)
{
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    buffer = aligned_alloc(1 << 20, 1 << 20);
    memset(buffer, 'x', 1 << 20);
    if (argc == 3 && !strcmp(argv[1], "serve")) {
        int port = atoi(argv[2]);
        struct sockaddr_vm vsock = {.svm_family = AF_VSOCK, .svm_port = port, .svm_cid = VMADDR_CID_ANY};
        struct sockaddr_in internet = {.sin_family = AF_INET, .sin_port = htons(port)};
        int by_internet = listen_on(AF_INET, (void *)&internet, sizeof internet);
        int by_vsock = listen_on(AF_VSOCK, (void *)&vsock, sizeof vsock);
        serve(fork() ? by_vsock : by_internet);
    }
    if (argc < 6 || strcmp(argv[1], "ask"))
        return 2;
    ask(reach(argv[2], atoi(argv[3])), argv + 4, argc - 4);
    return 0;
}
