/* The smallest unikernel that has something to say: its command line, and where it runs. "wait": then it sleeps. */

#include "unikernel.h"

#define MINUTE 60000000000ul /* nanoseconds */

static void print_number(u64 number)
{
    char digits[21], *at = digits + 20;
    *at = 0;
    do {
        *--at = '0' + number % 10;
    } while (number /= 10);
    print(at);
}

static int ends_with_wait(const char *line)
{
    const char *word = "wait";
    u64 size = length(line);
    if (size < 4)
        return 0;
    for (line += size - 4; *word && *word == *line; word++)
        line++;
    return !*word;
}

static void sleep(u64 nanoseconds)
{
    volatile struct { u64 timeout, ready; int count; } argument = { nanoseconds, 0, 0 };
    call(POLL, &argument);
}

static int unikernel(const struct boot_info *boot)
{
    print("unikernel: no kernel, no agent, ");
    print_number(boot->memory_size >> 20);
    print(" MiB of memory, ");
    print_number(boot->kernel_end - 0x100000);
    print(" bytes of code and data\nunikernel: ");
    print(boot->command_line);
    print("\n");
    if (ends_with_wait(boot->command_line))
        sleep(MINUTE);
    return 0;
}
