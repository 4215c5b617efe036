/* A VMM that a guest owns: it says that it is there, waits for a byte, and tries what its argument names.
 *
 * "thread-NAME" tries NAME on a second thread.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *attack;

static int is(const char *name)
{
    return strcmp(attack, name) == 0;
}

static long try(void)
{
    if (is("fork"))
        return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (is("exec"))
        return execl("/proc/self/exe", "again", (char *)0);
    if (is("socket"))
        return socket(AF_UNIX, SOCK_STREAM, 0);
    if (is("bind"))
        return socket(AF_INET, SOCK_STREAM, 0);
    if (is("write"))
        return open("/new", O_WRONLY | O_CREAT, 0600);
    if (is("device"))
        return open("/dev/null", O_RDWR);
    if (is("kill"))
        return syscall(SYS_kill, -1, SIGKILL);
    if (is("namespace"))
        return unshare(CLONE_NEWUSER);
    if (is("ptrace"))
        return ptrace(PTRACE_TRACEME, 0, 0, 0);
    if (is("memory"))
        return memfd_create("memory", 0);
    if (is("execute")) {
        void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return mprotect(page, 4096, PROT_READ | PROT_EXEC);
    }
    if (is("abort"))
        assert(!"owned");
    return -1;
}

static void *run(void *unused)
{
    if (try() >= 0)
        puts("did it");
    fflush(stdout);
    return unused;
}

int main(int argc, char **argv)
{
    char byte;
    pthread_t thread;

    assert(argc == 2);
    attack = argv[1];
    if (write(1, "r", 1) != 1 || read(0, &byte, 1) != 1)
        return 1;
    if (strncmp(attack, "thread-", 7) != 0) {
        run(0);
        return 0;
    }
    attack += 7;
    return pthread_create(&thread, 0, run, 0) || pthread_join(thread, 0);
}
