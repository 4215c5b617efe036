/* A unikernel for Solo5's target spt, version 2, which makes system calls of its own: it prints its MAC address and
 * MTU, and echoes frames until one begins with "q". */

#define ABI_TARGET 2
#define DEVICES NET_DEVICE("service")
#define _start start_of_hvt
#include "unikernel.h"
#undef _start
#include "link_text.h"

struct spt_boot_info {
    u64 memory_size, kernel_end;
    const char *command_line;
    const struct manifest *manifest;
    int epoll, timer;
};

enum { READ = 0, WRITE_TO = 1, EXIT_GROUP = 231, EPOLL_PWAIT = 281 };

static char buffer[4096];

static long system_call(long number, long first, void *second, long third, long fourth, long fifth)
{
    register long r10 __asm__("r10") = fourth;
    register long r8 __asm__("r8") = fifth;
    __asm__ volatile("syscall" : "+a"(number) : "D"(first), "S"(second), "d"(third), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return number;
}

void __attribute__((noreturn, used)) _start(const struct spt_boot_info *boot)
{
    const struct device *device = &boot->manifest->device[1];
    int tap = (int)device->own;
    char event[12];
    describe_link(device, buffer);
    system_call(WRITE_TO, 1, buffer, LINK_TEXT, 0, 0);
    for (;;) {
        long size = system_call(READ, tap, buffer, sizeof buffer, 0, 0);
        if (size > 0)
            system_call(WRITE_TO, tap, buffer, size, 0, 0);
        else
            system_call(EPOLL_PWAIT, boot->epoll, event, 1, -1, 0);
        if (size > 0 && buffer[0] == 'q')
            system_call(EXIT_GROUP, 0, 0, 0, 0, 0);
    }
}

/* What a unikernel for hvt would begin with: the header asks for it, and nobody calls it. */
static int unikernel(const struct boot_info *boot)
{
    print(boot->command_line);
    return 0;
}
